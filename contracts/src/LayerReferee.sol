// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Fixed, Scale} from "./Fixed.sol";
import {Manifest, Section} from "./Manifest.sol";
import {Case, Referee} from "./Referee.sol";
import {Tiles} from "./Tiles.sol";

/// @title LayerReferee
/// @notice Judges everything from the embedding to the logits: arrays 1 to 52 of docs/disputes.md.
contract LayerReferee is Referee {
    using Tiles for *;

    /// Exponent that stands for no value at all.
    int256 private constant NONE = -40_000;

    function _special(Shape memory, Case calldata) internal pure override returns (bool) {
        revert NoSuchEntry();
    }

    function _scaleOf(bytes memory row) private pure returns (Scale memory) {
        return Scale(row.unsigned(0, 4), row.signed(1, 4));
    }

    function _name(uint256 layer, string memory what) private pure returns (string memory) {
        bytes memory digits;
        do {
            digits = abi.encodePacked(bytes1(uint8(48 + layer % 10)), digits);
            layer /= 10;
        } while (layer != 0);
        return string.concat("layers.", string(digits), ".", what);
    }

    /// Weights `from` to `from + count` of a row, each a signed number. The section's representation is decided here alone.
    function _weights(Case calldata k, uint256 place, string memory name, uint256 r, uint256 from, uint256 count)
        private
        pure
        returns (bytes memory, uint256 width)
    {
        Section memory s = Manifest.section(k.manifest, place, string.concat(name, ".weights"));
        return (k.model.read(s.offset + r * s.cols + from, count), 1);
    }

    function _scaleAt(Case calldata k, uint256 place, string memory name, uint256 r)
        private
        pure
        returns (Scale memory)
    {
        Section memory s = Manifest.section(k.manifest, place, string.concat(name, ".scales"));
        bytes memory b = k.model.read(s.offset + 8 * r, 8);
        return Scale(b.unsigned(0, 4), b.signed(2, 2));
    }

    function _words(Case calldata k, uint256 place, string memory name, uint256 from, uint256 count)
        private
        pure
        returns (bytes memory)
    {
        Section memory s = Manifest.section(k.manifest, place, name);
        return k.model.read(s.offset + 4 * from, 4 * count);
    }

    // ---- operations ----

    function _compute(Shape memory h, Case calldata k) internal pure override returns (bytes memory) {
        uint256 cell = k.claim.cell;
        if (cell == 1) return _embed(h, k);
        if (cell == 2 || cell == 35 || cell == 48) return _normPart(h, k);
        if (cell == 3 || cell == 36 || cell == 49) return _normRow(h, k);
        if (cell == 4 || cell == 37 || cell == 50) return _normValue(h, k);
        if (cell == 5 || cell == 7 || cell == 9 || cell == 33 || cell == 38 || cell == 40 || cell == 46 || cell == 51) {
            return _dot(h, k);
        }
        if (cell == 6 || cell == 8 || cell == 10 || cell == 34 || cell == 39 || cell == 41 || cell == 47 || cell == 52) {
            return _output(h, k);
        }
        if (cell == 11 || cell == 12) return _headNorm(h, k);
        if (cell == 13 || cell == 14) return _rotate(h, k);
        if (cell == 15 || cell == 17 || cell == 19) return _headRow(h, k);
        if (cell == 16 || cell == 18 || cell == 20) return _headValue(h, k);
        if (cell >= 21 && cell <= 29) return _attention(h, k);
        if (cell == 30 || cell == 43) return _maxPart(h, k);
        if (cell == 31 || cell == 44) return _maxRow(h, k);
        if (cell == 32 || cell == 45) return _value(h, k);
        if (cell == 42) return _swiglu(h, k);
        revert NoSuchEntry();
    }

    function _embed(Shape memory h, Case calldata k)
        private
        pure
        returns (bytes memory)
    {
        uint256 token = uint256(_entry(h, k, 0, k.claim.a, 0));
        if (token >= h.vocab) return new bytes(4);
        (bytes memory w, uint256 width) = _weights(k, k.claim.places[2], "embedding", token, k.claim.b, 1);
        Scale memory scale = _scaleAt(k, k.claim.places[3], "embedding", token);
        return Fixed.rescale1(w.signed(0, width), scale, 0).pack(4);
    }

    /// Entries of the residual stream that a norm reads, or that the output of attention is added to.
    function _stream(Shape memory h, Case calldata k, uint256 cell, uint256 from, uint256 count)
        private
        pure
        returns (bytes memory)
    {
        uint256 row = k.claim.a;
        uint256 layer = k.claim.layer;
        if (cell >= 35 && cell < 48) return _line(h, k, 34, layer, row, from, 0, count);
        if (cell >= 48) (row, layer) = (row + h.prompt - 1, h.layers);
        return layer == 0
            ? _row(h, k, 1, row, from, count)
            : _line(h, k, 47, layer - 1, row, from, 0, count);
    }

    function _normName(uint256 cell, uint256 layer) private pure returns (string memory) {
        if (cell >= 48) return "output_norm";
        return _name(layer, cell < 35 ? "attention_norm" : "ffn_norm");
    }

    function _normPart(Shape memory h, Case calldata k)
        private
        pure
        returns (bytes memory)
    {
        uint256 from = k.claim.b * SEGMENT;
        uint256 count = h.dim - from < SEGMENT ? h.dim - from : SEGMENT;
        bytes memory x = _stream(h, k, k.claim.cell, from, count);
        bytes memory w = _words(k, k.claim.places[2], _normName(k.claim.cell, k.claim.layer), from, count);
        int256 squares;
        int256 most;
        int256 least;
        for (uint256 i; i < count; ++i) {
            int256 v = x.signed(i, 4);
            squares += v * v;
            int256 p = v * w.signed(i, 4);
            if (p > most) most = p;
            if (p < least) least = p;
        }
        return bytes.concat(squares.pack(16), most.pack(8), least.pack(8));
    }

    function _normRow(Shape memory h, Case calldata k) private pure returns (bytes memory) {
        uint256 segments = _segments(h.dim);
        bytes memory parts = _row(h, k, k.claim.cell - 1, k.claim.a, 0, segments);
        uint256 squares;
        int256 most;
        int256 least;
        for (uint256 i; i < segments; ++i) {
            squares += parts.unsigned(2 * i, 16);
            int256 p = parts.signed(4 * i + 2, 8);
            if (p > most) most = p;
            p = parts.signed(4 * i + 3, 8);
            if (p < least) least = p;
        }
        uint256 mean = (squares + h.dim / 2) / h.dim + h.eps;
        if (mean > type(uint64).max) mean = type(uint64).max;
        uint256 size = Fixed.bits(uint256(most > -least ? most : -least));
        uint256 shift = size > 30 ? size - 30 : 0;
        most = Fixed.rshift(most, shift);
        least = Fixed.rshift(least, shift);
        (Scale memory unit, uint256 r, uint256 b) = _quantiser(uint256(most > -least ? most : -least));
        Scale memory scale = Fixed.mul(
            Fixed.shifted(unit, int256(shift) - 32), Fixed.shifted(Fixed.isqrt(mean), 16)
        );
        return bytes.concat(_packRow(scale, r, b), int256(shift).pack(4), new bytes(12));
    }

    /// Unit, reciprocal and shift of docs/arithmetic.md, 4.1, for a largest magnitude.
    function _quantiser(uint256 max) private pure returns (Scale memory unit, uint256 r, uint256 shift) {
        if (max == 0) return (Scale(0, 0), 0, 0);
        shift = Fixed.bits(max) + 19;
        r = (2047 << shift) / max;
        unit = Fixed.unit(max);
    }

    /// 16 bytes: the scale, then reciprocal and shift.
    function _packRow(Scale memory scale, uint256 r, uint256 shift) private pure returns (bytes memory) {
        return bytes.concat(int256(scale.m).pack(4), scale.e.pack(4), int256(r).pack(4), int256(shift).pack(4));
    }

    function _normValue(Shape memory h, Case calldata k)
        private
        pure
        returns (bytes memory)
    {
        int256 x = _stream(h, k, k.claim.cell, k.claim.b, 1).signed(0, 4);
        int256 w = _words(k, k.claim.places[2], _normName(k.claim.cell, k.claim.layer), k.claim.b, 1).signed(0, 4);
        bytes memory head = _row(h, k, k.claim.cell - 1, k.claim.a, 0, 1);
        return _quantised(Fixed.rshift(x * w, head.unsigned(4, 4)), head);
    }

    function _quantised(int256 x, bytes memory row) private pure returns (bytes memory) {
        return Fixed.rshift(x * int256(row.unsigned(2, 4)), row.unsigned(3, 4)).pack(2);
    }

    /// Names of the matrices, and the arrays of their inputs.
    function _matrix(Shape memory h, uint256 cell, uint256 layer)
        private
        pure
        returns (string memory name, uint256 input, uint256 cols)
    {
        if (cell <= 10) {
            return (_name(layer, cell <= 6 ? "q" : cell <= 8 ? "k" : "v"), 4, h.dim);
        }
        if (cell <= 34) return (_name(layer, "o"), 32, h.heads * h.headDim);
        if (cell <= 41) return (_name(layer, cell <= 39 ? "gate" : "up"), 37, h.dim);
        if (cell <= 47) return (_name(layer, "down"), 45, h.ffn);
        return (h.tied ? "embedding" : "output", 50, h.dim);
    }

    function _dot(Shape memory h, Case calldata k)
        private
        pure
        returns (bytes memory)
    {
        (string memory name, uint256 input, uint256 cols) = _matrix(h, k.claim.cell, k.claim.layer);
        uint256 from = k.claim.c * SEGMENT;
        uint256 count = cols - from < SEGMENT ? cols - from : SEGMENT;
        bytes memory x = _row(h, k, input, k.claim.a, from, count);
        (bytes memory w, uint256 width) = _weights(k, k.claim.places[2], name, k.claim.b, from, count);
        return _product(x, 2, w, width, count).pack(8);
    }

    /// Sum of the products of two packed lists of signed numbers with the given widths.
    function _product(bytes memory x, uint256 xWidth, bytes memory y, uint256 yWidth, uint256 count)
        private
        pure
        returns (int256 sum)
    {
        for (uint256 i; i < count; ++i) {
            sum += x.signed(i, xWidth) * y.signed(i, yWidth);
        }
    }

    function _sum(bytes memory parts) private pure returns (int256 sum) {
        for (uint256 i; i < parts.length / 8; ++i) {
            sum += parts.signed(i, 8);
        }
    }

    function _output(Shape memory h, Case calldata k)
        private
        pure
        returns (bytes memory)
    {
        (string memory name, uint256 input, uint256 cols) = _matrix(h, k.claim.cell, k.claim.layer);
        int256 sum = _sum(_row(h, k, k.claim.cell - 1, k.claim.a, k.claim.b, _segments(cols)));
        Scale memory x = _scaleOf(_row(h, k, input - 1, k.claim.a, 0, 1));
        int256 out = Fixed.rescale(sum, x, _scaleAt(k, k.claim.places[2], name, k.claim.b));
        if (k.claim.cell <= 10 && h.bias) {
            out = Fixed.sat(out + _words(k, k.claim.places[3], string.concat(name, ".bias"), k.claim.b, 1).signed(0, 4));
        }
        if (k.claim.cell == 34) out = Fixed.sat(out + _stream(h, k, 2, k.claim.b, 1).signed(0, 4));
        if (k.claim.cell == 47) out = Fixed.sat(out + _entry(h, k, 34, k.claim.a, k.claim.b));
        return out.pack(4);
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

    function _rowOf(uint256 max) private pure returns (bytes memory) {
        (Scale memory unit, uint256 r, uint256 shift) = _quantiser(max);
        return _packRow(Fixed.shifted(unit, -16), r, shift);
    }

    function _max(bytes memory words) private pure returns (uint256 max) {
        for (uint256 i; i < words.length / 4; ++i) {
            int256 v = words.signed(i, 4);
            if (uint256(v < 0 ? -v : v) > max) max = uint256(v < 0 ? -v : v);
        }
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

    function _maxPart(Shape memory h, Case calldata k) private pure returns (bytes memory) {
        uint256 cols = k.claim.cell == 30 ? h.heads * h.headDim : h.ffn;
        uint256 from = k.claim.b * SEGMENT;
        uint256 count = cols - from < SEGMENT ? cols - from : SEGMENT;
        return int256(_max(_row(h, k, k.claim.cell - 1, k.claim.a, from, count))).pack(4);
    }

    function _maxRow(Shape memory h, Case calldata k) private pure returns (bytes memory) {
        uint256 segments = _segments(k.claim.cell == 31 ? h.heads * h.headDim : h.ffn);
        bytes memory parts = _row(h, k, k.claim.cell - 1, k.claim.a, 0, segments);
        uint256 max;
        for (uint256 i; i < segments; ++i) {
            if (parts.unsigned(i, 4) > max) max = parts.unsigned(i, 4);
        }
        return _rowOf(max);
    }

    function _value(Shape memory h, Case calldata k) private pure returns (bytes memory) {
        int256 x = _entry(h, k, k.claim.cell - 3, k.claim.a, k.claim.b);
        return _quantised(x, _row(h, k, k.claim.cell - 1, k.claim.a, 0, 1));
    }

    function _swiglu(Shape memory h, Case calldata k) private pure returns (bytes memory) {
        int256 gate = _entry(h, k, 39, k.claim.a, k.claim.b);
        int256 up = _entry(h, k, 41, k.claim.a, k.claim.b);
        int256 y = Fixed.rshift(gate * int256(Fixed.sigmoid(gate)), 30);
        return Fixed.sat(Fixed.rshift(y * up, 16)).pack(4);
    }
}
