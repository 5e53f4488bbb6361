// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Fixed, Scale} from "./Fixed.sol";
import {Case, Referee} from "./Referee.sol";
import {Tiles} from "./Tiles.sol";

/// @title AttentionReferee
/// @notice Judges norms of heads, rotation and attention: arrays 11 to 29 of docs/disputes.md.
contract AttentionReferee is Referee {
    using Tiles for *;

    /// Exponent that stands for no value at all.
    int256 private constant NONE = -40_000;

    function _special(Shape memory, Case calldata) internal pure override returns (bool) {
        revert NoSuchEntry();
    }

    function _compute(Shape memory h, Case calldata k) internal pure override returns (bytes memory) {
        uint256 cell = k.claim.cell;
        if (cell < 11 || cell > 29) revert NoSuchEntry();
        if (cell <= 12) return _headNorm(h, k);
        if (cell <= 14) return _rotate(h, k);
        if (cell == 15 || cell == 17 || cell == 19) return _headRow(h, k);
        if (cell <= 20) return _headValue(h, k);
        return _attention(h, k);
    }

    function _headNorm(Shape memory h, Case calldata k) private pure returns (bytes memory) {
        uint256 d = h.headDim;
        uint256 own = k.claim.b % d;
        bytes memory x = _row(h, k, k.claim.cell == 11 ? 6 : 8, k.claim.a, k.claim.b - own, d);
        bytes memory w =
            _words(k, k.claim.places[2], _name(k.claim.layer, k.claim.cell == 11 ? "q_norm" : "k_norm"), 0, d);
        (uint256 squares, uint256 max) = _norm(x, w);
        uint256 mean = (squares + d / 2) / d + h.eps;
        if (mean > type(uint64).max) mean = type(uint64).max;
        uint256 shift = Fixed.bits(max) > 30 ? Fixed.bits(max) - 30 : 0;
        int256 p = Fixed.rshift(x.signed(own, 4) * w.signed(own, 4), shift);
        return Fixed.rescale1(p, Fixed.shifted(Fixed.isqrt(mean), 16), int256(shift) - 32).pack(4);
    }

    function _norm(bytes memory x, bytes memory w) private pure returns (uint256 squares, uint256 max) {
        for (uint256 i; i < x.length / 4; ++i) {
            int256 v = x.signed(i, 4);
            squares += uint256(v * v);
            v = v * w.signed(i, 4);
            if (uint256(v < 0 ? -v : v) > max) max = uint256(v < 0 ? -v : v);
        }
    }

    function _rotate(Shape memory h, Case calldata k) private pure returns (bytes memory) {
        uint256 source = k.claim.cell == 13 ? (h.headNorm ? 11 : 6) : (h.headNorm ? 12 : 8);
        uint256 d = h.headDim / 2;
        uint256 own = k.claim.b % h.headDim;
        bool second = h.half ? own >= d : own & 1 == 1;
        uint256 other = h.half ? (second ? k.claim.b - d : k.claim.b + d) : k.claim.b ^ 1;
        int256 x = _entry(h, k, source, k.claim.a, k.claim.b);
        int256 y = _entry(h, k, source, k.claim.a, other);
        uint256 pair = k.claim.a * d + (h.half ? own % d : own / 2);
        return _turned(k, pair, x, y, second);
    }

    function _turned(Case calldata k, uint256 pair, int256 x, int256 y, bool second)
        private
        pure
        returns (bytes memory)
    {
        int256 cos = _words(k, k.claim.places[2], "rope_cos", pair, 1).signed(0, 4);
        int256 sin = _words(k, k.claim.places[3], "rope_sin", pair, 1).signed(0, 4);
        return Fixed.sat(Fixed.rshift(second ? y * sin + x * cos : x * cos - y * sin, 30)).pack(4);
    }

    function _headSource(uint256 cell) private pure returns (uint256) {
        return cell <= 16 ? 13 : cell <= 18 ? 14 : 10;
    }

    function _headRow(Shape memory h, Case calldata k) private pure returns (bytes memory) {
        (uint256 token, uint256 head) = k.claim.cell == 19 ? (k.claim.b, k.claim.a) : (k.claim.a, k.claim.b);
        bytes memory x =
            _row(h, k, _headSource(k.claim.cell), token, head * h.headDim, h.headDim);
        return _rowOf(_max(x));
    }

    function _headValue(Shape memory h, Case calldata k) private pure returns (bytes memory) {
        (uint256 token, uint256 column) = k.claim.cell == 20 ? (k.claim.b, k.claim.a) : (k.claim.a, k.claim.b);
        int256 x = _entry(h, k, _headSource(k.claim.cell), token, column);
        uint256 head = column / h.headDim;
        bytes memory row = k.claim.cell == 20
            ? _row(h, k, 19, head, token, 1)
            : _row(h, k, k.claim.cell - 1, token, head, 1);
        return _quantised(x, row);
    }

    function _attention(Shape memory h, Case calldata k) private pure returns (bytes memory) {
        if (k.claim.cell == 21) return _score(h, k);
        if (k.claim.cell == 22) return _topPart(h, k);
        if (k.claim.cell == 23) return _top(h, k);
        if (k.claim.cell == 24) {
            int256 top = _row(h, k, 23, k.claim.a, k.claim.b, 1).signed(0, 4);
            int256 x = _run(h, k, 21, k.claim.a, k.claim.b, k.claim.c, 1).signed(0, 4);
            // A top below a score is an earlier fault of the trace; nothing here may revert for it.
            return int256(Fixed.exp2neg(top > x ? uint256(top - x) : 0)).pack(4);
        }
        if (k.claim.cell == 25) return _fold(h, k);
        if (k.claim.cell == 26) {
            (uint256 from, uint256 count) = _past(k.claim.b, k.claim.c);
            bytes memory e = count == 0 ? new bytes(0) : _run(h, k, 24, k.claim.a, k.claim.b, from, count);
            uint256 total;
            for (uint256 i; i < count; ++i) {
                total += (e.unsigned(i, 4) + 128) >> 8;
            }
            return int256(total).pack(8);
        }
        if (k.claim.cell == 27) {
            int256 total = _sum(_row(h, k, 26, k.claim.a, k.claim.b, _segments(h.n)));
            Scale memory r = Fixed.recip(Fixed.scale(uint256(total) & type(uint64).max));
            return bytes.concat(int256(r.m).pack(4), r.e.pack(4));
        }
        return k.claim.cell == 28 ? _weightedSum(h, k) : _attended(h, k);
    }

    /// The tokens of segment `s` that token `t` may see: the first, and how many.
    function _past(uint256 t, uint256 s) private pure returns (uint256 from, uint256 count) {
        from = s * SEGMENT;
        count = from > t ? 0 : t + 1 - from < SEGMENT ? t + 1 - from : SEGMENT;
    }

    function _score(Shape memory h, Case calldata k) private pure returns (bytes memory) {
        uint256 kv = k.claim.a / (h.heads / h.kvHeads);
        Scale memory query = _scaleOf(_row(h, k, 15, k.claim.b, k.claim.a, 1));
        Scale memory key = _scaleOf(_row(h, k, 17, k.claim.c, kv, 1));
        int256 sum = _product(
            _row(h, k, 16, k.claim.b, k.claim.a * h.headDim, h.headDim),
            2,
            _row(h, k, 18, k.claim.c, kv * h.headDim, h.headDim),
            2,
            h.headDim
        );
        Scale memory factor = Fixed.mul(Fixed.isqrt(h.headDim), Fixed.log2e());
        return Fixed.rescale(sum, Fixed.mul(query, factor), key).pack(4);
    }

    function _topPart(Shape memory h, Case calldata k) private pure returns (bytes memory) {
        (uint256 from, uint256 count) = _past(k.claim.b, k.claim.c);
        if (count == 0) return bytes.concat(int256(type(int32).min).pack(4), NONE.pack(4));
        return _highest(
            _run(h, k, 21, k.claim.a, k.claim.b, from, count),
            _row(h, k, 19, k.claim.a / (h.heads / h.kvHeads), from, count)
        );
    }

    /// The largest score, and the largest exponent of the values' scales that are not zero.
    function _highest(bytes memory scores, bytes memory values) private pure returns (bytes memory) {
        int256 top = type(int32).min;
        int256 exponent = NONE;
        for (uint256 i; i < scores.length / 4; ++i) {
            int256 x = scores.signed(i, 4);
            if (x > top) top = x;
            x = values.signed(4 * i + 1, 4);
            if (values.unsigned(4 * i, 4) != 0 && x > exponent) exponent = x;
        }
        return bytes.concat(top.pack(4), exponent.pack(4));
    }

    function _top(Shape memory h, Case calldata k) private pure returns (bytes memory) {
        uint256 segments = _segments(h.n);
        bytes memory parts = _row(h, k, 22, k.claim.a, k.claim.b, segments);
        int256 top = type(int32).min;
        int256 exponent = NONE;
        for (uint256 i; i < segments; ++i) {
            if (parts.signed(2 * i, 4) > top) top = parts.signed(2 * i, 4);
            if (parts.signed(2 * i + 1, 4) > exponent) exponent = parts.signed(2 * i + 1, 4);
        }
        return bytes.concat(top.pack(4), exponent.pack(4));
    }

    function _fold(Shape memory h, Case calldata k) private pure returns (bytes memory) {
        Scale memory v = _scaleOf(_row(h, k, 19, k.claim.a / (h.heads / h.kvHeads), k.claim.c, 1));
        int256 exponent = _row(h, k, 23, k.claim.a, k.claim.b, 1).signed(1, 4);
        uint256 e = uint256(_run(h, k, 24, k.claim.a, k.claim.b, k.claim.c, 1).signed(0, 4)) & type(uint32).max;
        int256 down = exponent - v.e;
        uint256 m = v.m >> uint256(down < 0 ? int256(0) : down > 31 ? int256(31) : down);
        return int256((e * m + (1 << 38)) >> 39).pack(4);
    }

    function _weightedSum(Shape memory h, Case calldata k) private pure returns (bytes memory) {
        (uint256 from, uint256 count) = _past(k.claim.a, k.claim.c);
        if (count == 0) return new bytes(8);
        uint256 head = k.claim.b / h.headDim;
        bytes memory u = _run(h, k, 25, head, k.claim.a, from, count);
        uint256 column = head / (h.heads / h.kvHeads) * h.headDim + k.claim.b % h.headDim;
        return _product(u, 4, _row(h, k, 20, column, from, count), 2, count).pack(8);
    }

    function _attended(Shape memory h, Case calldata k) private pure returns (bytes memory) {
        uint256 head = k.claim.b / h.headDim;
        int256 exponent = _row(h, k, 23, head, k.claim.a, 1).signed(1, 4);
        if (exponent == NONE) return new bytes(4);
        int256 sum = _sum(_row(h, k, 28, k.claim.a, k.claim.b, _segments(h.n)));
        return Fixed.rescale1(sum, _scaleOf(_row(h, k, 27, head, k.claim.a, 1)), 31 + exponent).pack(4);
    }
}
