// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Fixed, Scale} from "./Fixed.sol";
import {Manifest, Section} from "./Manifest.sol";
import {Case, Referee} from "./Referee.sol";
import {Tiles} from "./Tiles.sol";

/// @title LayerReferee
/// @notice Judges embedding, norms, linear layers and what lies between the feed-forward layers: arrays 1 to 10 and 30 to 52
/// of docs/disputes.md.
contract LayerReferee is Referee {
    using Tiles for *;

    /// @notice Weights are stored in 4, 6 or 8 bits.
    error Encoding(uint256 bits);

    function _special(Shape memory, Case calldata) internal pure override returns (bool) {
        revert NoSuchEntry();
    }

    /// Weights `from` to `from + count` of a row as signed numbers of 16 bits. `from` is a multiple of 64, or `count` is 1.
    /// How weights are stored is known here alone: docs/arithmetic.md, 4.3.
    function _weights(Case calldata k, uint256 place, string memory name, uint256 r, uint256 from, uint256 count)
        private
        pure
        returns (bytes memory)
    {
        Section memory s = Manifest.section(k.manifest, place, string.concat(name, ".weights"));
        if (s.bits != 4 && s.bits != 6 && s.bits != 8) revert Encoding(s.bits);
        uint256 chunk = 32 + 32 * s.bits;
        uint256 first = (r / 4 * ((s.cols + 63) / 64) + from / 64) * chunk;
        bytes memory data = k.model.read(s.offset + first, (from % 64 + count + 63) / 64 * chunk);
        return _expand(data, s.bits, r % 4, from % 64, count);
    }

    function _expand(bytes memory data, uint256 bits, uint256 r, uint256 from, uint256 count)
        private
        pure
        returns (bytes memory out)
    {
        out = new bytes(2 * count);
        for (uint256 i; i < count; ++i) {
            uint256 w = uint256(_weight(data, (from + i) / 64 * (32 + 32 * bits), r, (from + i) % 64, bits));
            out[2 * i] = bytes1(uint8(w));
            out[2 * i + 1] = bytes1(uint8(w >> 8));
        }
    }

    /// Weight `c` of row `r` of the chunk that begins at `place`.
    function _weight(bytes memory data, uint256 place, uint256 r, uint256 c, uint256 bits) private pure returns (int256) {
        uint256 integers = place + 32 + r * 8 * bits;
        // Column c is in word c mod 16 of its 16 (or of its half, with 8 bits), after c / 16 (or c / 16 mod 2) others.
        uint256 q;
        if (bits == 8) {
            q = uint8(data[integers + c / 32 * 32 + c % 16 * 2 + c / 16 % 2]);
        } else {
            q = uint8(data[integers + c % 16 * 2 + c / 32]) >> (c / 16 % 2 * 4) & 15;
            if (bits == 6) q |= (uint256(uint8(data[integers + 32 + c % 16])) >> (c / 16 * 2) & 3) << 4;
        }
        int256 value = int256(q << (256 - bits)) >> (256 - bits);
        uint256 parameters = place / 2 + r * 4;
        if (bits == 6) return Fixed.rshift(value * data.signed(parameters + c / 16, 2), 5);
        parameters += c / 32 * 2;
        return data.signed(parameters + 1, 2) + Fixed.rshift(value * data.signed(parameters, 2), bits - 1);
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
        bytes memory w = _weights(k, k.claim.places[2], "embedding", token, k.claim.b, 1);
        Scale memory scale = _scaleAt(k, k.claim.places[3], "embedding", token);
        return Fixed.rescale1(w.signed(0, 2), scale, 0).pack(4);
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
        bytes memory w = _weights(k, k.claim.places[2], name, k.claim.b, from, count);
        return _product(x, 2, w, 2, count).pack(8);
    }

    function _output(Shape memory h, Case calldata k) private pure returns (bytes memory) {
        int256 out = _rescaled(h, k);
        if (k.claim.cell <= 10 && h.bias) {
            (string memory name,,) = _matrix(h, k.claim.cell, k.claim.layer);
            bytes memory bias = _words(k, k.claim.places[3], string.concat(name, ".bias"), k.claim.b, 1);
            out = Fixed.sat(out + bias.signed(0, 4));
        }
        if (k.claim.cell == 34) out = Fixed.sat(out + _stream(h, k, 2, k.claim.b, 1).signed(0, 4));
        if (k.claim.cell == 47) out = Fixed.sat(out + _entry(h, k, 34, k.claim.a, k.claim.b));
        return out.pack(4);
    }

    function _rescaled(Shape memory h, Case calldata k) private pure returns (int256) {
        (string memory name, uint256 input, uint256 cols) = _matrix(h, k.claim.cell, k.claim.layer);
        int256 sum = _sum(_row(h, k, k.claim.cell - 1, k.claim.a, k.claim.b, _segments(cols)));
        Scale memory x = _scaleOf(_row(h, k, input - 1, k.claim.a, 0, 1));
        // The sum is brought below 2^31 first.
        uint256 shift = Fixed.bits(cols) > 6 ? Fixed.bits(cols) - 6 : 0;
        x = Fixed.shifted(x, int256(shift));
        return Fixed.rescale(Fixed.rshift(sum, shift), x, _scaleAt(k, k.claim.places[2], name, k.claim.b));
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
