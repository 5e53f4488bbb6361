// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Fixed, Scale} from "./Fixed.sol";
import {Manifest, Section} from "./Manifest.sol";
import {Tile, Tiles} from "./Tiles.sol";

/// Every sampling parameter, as docs/receipt.md has it.
struct Sampling {
    uint32 temperatureMilli;
    uint32 topK;
    uint32 topPPpm;
    uint32 minPPpm;
    uint32 repetitionPenaltyMilli;
    int32 frequencyPenaltyMilli;
    int32 presencePenaltyMilli;
    bytes32 logitBias;
    uint64 seed;
}

// The constraint of a request that has none but must call a tool.
uint8 constant FORCED_CALL = 255;

/// What a trace is the trace of, opened from a receipt's commitments.
/// @param model Model id.
/// @param promptTokens Tokens of the prompt.
/// @param completionTokens Tokens that were sampled, at least 1.
/// @param prompt The voucher's commitment to the prompt's tokens; zero when there is none.
/// @param salt The request's salt.
/// @param outputTokens EIP-712 hash of the output's tokens: keccak256 of them as 32-byte words.
/// @param constraintKind 0 when nothing but the model limits the output; else the request's, or `FORCED_CALL`.
/// @param sampling The sampling parameters.
struct Subject {
    bytes32 model;
    uint32 promptTokens;
    uint32 completionTokens;
    bytes32 prompt;
    bytes32 salt;
    bytes32 outputTokens;
    uint8 constraintKind;
    Sampling sampling;
}

/// One entry of a trace that is said to be wrong.
/// @param cell Which array, by its number in docs/disputes.md.
/// @param layer The layer, 0 for arrays outside the layers.
/// @param a First index.
/// @param b Second index.
/// @param c Third index.
/// @param places Where the manifest says what is needed: `config`, `data_bytes`, then the sections that the operation
/// reads, in the order of docs/disputes.md.
/// @param tokens For claims about tokens: the whole prompt, or the whole output. For an adjusted logit: the biases, each a
/// token and its thousandths (two's complement).
struct Claim {
    uint8 cell;
    uint32 layer;
    uint64 a;
    uint64 b;
    uint64 c;
    uint256[] places;
    uint32[] tokens;
}

/// What a referee judges.
/// @param subject What the trace is of.
/// @param manifest The model's manifest.
/// @param claim The entry that is said to be wrong.
/// @param trace Tiles of the trace that the operation reads and writes.
/// @param model Tiles of the model's data that it reads.
struct Case {
    Subject subject;
    bytes manifest;
    Claim claim;
    Tile[] trace;
    Tile[] model;
}

/// Judges one elementary operation of one version of the arithmetic.
interface IReferee {
    /// @notice Whether a case refutes a trace: the entry is not what the operation gives on the entries before it.
    /// Reverts when the claim makes no sense or an opening is wrong.
    /// @param root Merkle root of the trace.
    /// @param size Its length in bytes.
    /// @param k The case.
    function refutes(bytes32 root, uint64 size, Case calldata k) external view returns (bool);
}

/// @title Referee
/// @notice What the referees of arithmetic version 2 share: where the entries of the trace of a dense model are, as
/// docs/disputes.md lays it out. Each call recomputes one entry from entries that precede it and from the model's data.
/// Referees have no state and no owner.
/// @dev Arrays are numbered as in docs/disputes.md. `TABLE` has five bytes for each: three dimensions, the width of an
/// entry in bytes, and the section of the trace (0 before the layers, 1 in each layer, 2 after them).
abstract contract Referee is IReferee {
    using Tiles for *;

    /// @notice There is no such entry in the trace.
    error NoSuchEntry();

    /// Columns of a partial result.
    uint256 internal constant SEGMENT = 1024;

    // Symbols of dimensions.
    uint256 private constant TRI = 15;

    bytes internal constant TABLE =
        hex"0100000400" hex"0102000400" // 0 tokens, 1 embedding
        hex"010a002001" hex"0100002001" hex"0102000201" // 2 norm part, 3 norm row, 4 norm value
        hex"01030a0801" hex"0103000401" hex"01040a0801" hex"0104000401" hex"01040a0801" hex"0104000401" // 5-10 q k v
        hex"1003000401" hex"1004000401" // 11, 12 norms of heads
        hex"0103000401" hex"0104000401" // 13, 14 rotation
        hex"0105001001" hex"0103000201" hex"0106001001" hex"0104000201" hex"0601001001" hex"0401000201" // 15-20 rows
        hex"05000f0401" hex"05010b0801" hex"0501000801" // 21 score, 22 top part, 23 top
        hex"05000f0401" hex"05000f0401" // 24 exp, 25 fold
        hex"05010b0801" hex"0501000801" // 26 total part, 27 reciprocal
        hex"01030b0801" hex"0103000401" // 28 weighted sum, 29 attention
        hex"010c000401" hex"0100001001" hex"0103000201" hex"01020c0801" hex"0102000401" // 30-34 o
        hex"010a002001" hex"0100002001" hex"0102000201" // 35-37 norm
        hex"01070a0801" hex"0107000401" hex"01070a0801" hex"0107000401" hex"0107000401" // 38-42 gate, up, swiglu
        hex"010d000401" hex"0100001001" hex"0107000201" hex"01020d0801" hex"0102000401" // 43-47 down
        hex"090a002002" hex"0900002002" hex"0902000202" // 48-50 norm
        hex"09080a0802" hex"0908000402" hex"1108000402" hex"1808000402" // 51-54 logits, counts, adjusted
        hex"090e000802" hex"0900000802" // 55, 56 best
        hex"1708000402" hex"1513141002" hex"1613141002" // 57 weights before, 58, 59 searches of top-k and top-p
        hex"1208000402" hex"120e000802" hex"1200001002" hex"0900000402"; // 60-63 weights, draw, token
    uint256 internal constant CELLS = 64;
    uint8 internal constant IS_OUTPUT = 64;
    uint8 internal constant IS_TOKEN = 65;
    uint8 internal constant IS_SIZE = 66;
    uint8 internal constant IS_PADDING = 67;
    uint8 internal constant IS_LENGTH = 68;
    /// Steps of a search: the totals, one for each bit of a rank, the result.
    uint256 internal constant STEPS = 66;

    struct Shape {
        uint256 layers;
        uint256 dim;
        uint256 heads;
        uint256 kvHeads;
        uint256 headDim;
        uint256 ffn;
        uint256 vocab;
        uint256 eps;
        bool half;
        bool tied;
        bool bias;
        bool headNorm;
        uint256 n;
        uint256 outputs;
        uint256 prompt;
        uint256[25] symbols;
        uint256[64] start;
        uint256 layerStart;
        uint256 layerBytes;
        uint256 endStart;
        uint256 size;
    }

    /// @inheritdoc IReferee
    function refutes(bytes32 root, uint64 size, Case calldata k) external pure returns (bool) {
        Shape memory h = shape(k.subject, k.manifest, k.claim.places[0]);
        uint256 cell = k.claim.cell;
        if (cell == IS_SIZE) return size != h.size;
        Tiles.check(root, size, k.trace);
        if (cell >= CELLS) return _special(h, k);
        {
            (uint256 dataSize, bytes32 dataRoot) = Manifest.data(k.manifest, k.claim.places[1]);
            Tiles.check(dataRoot, dataSize, k.model);
        }
        (uint256 place, uint256 width) = address_(h, cell, k.claim.layer, k.claim.a, k.claim.b, k.claim.c);
        return keccak256(k.trace.read(place, width)) != keccak256(_compute(h, k));
    }

    /// What the operation gives for the claimed entry. Reverts for entries that another referee judges.
    function _compute(Shape memory h, Case calldata k) internal pure virtual returns (bytes memory);

    /// Claims that are not about an operation.
    function _special(Shape memory h, Case calldata k) internal pure virtual returns (bool);

    // ---- where everything is ----

    /// @notice The shape of a model and of its trace. `place` is where `,"config":` begins in the manifest.
    function shape(Subject calldata s, bytes calldata m, uint256 place) internal pure returns (Shape memory h) {
        if (keccak256(m) != s.model) revert Manifest.NotThere(0, "the manifest of the model");
        uint256 p = Manifest.skip(m, place, ",\"config\":{\"architecture\":\"");
        while (p < m.length && m[p] != "\"") ++p;
        (h.layers, p) = Manifest.number(m, p, "\",\"layers\":");
        (h.dim, p) = Manifest.number(m, p, ",\"dim\":");
        (h.heads, p) = Manifest.number(m, p, ",\"heads\":");
        (h.kvHeads, p) = Manifest.number(m, p, ",\"kv_heads\":");
        (h.headDim, p) = Manifest.number(m, p, ",\"head_dim\":");
        (h.ffn, p) = Manifest.number(m, p, ",\"ffn\":");
        (h.vocab, p) = Manifest.number(m, p, ",\"vocab\":");
        (, p) = Manifest.number(m, p, ",\"context\":");
        (h.eps, p) = Manifest.number(m, p, ",\"rms_eps_q32\":");
        p = Manifest.skip(m, p, ",\"rope\":\"");
        h.half = p < m.length && m[p] == "h";
        p = Manifest.skip(m, p, h.half ? "half\"" : "interleaved\"");
        (h.tied, p) = Manifest.flag(m, p, ",\"tied_embeddings\":");
        (h.bias, p) = Manifest.flag(m, p, ",\"qkv_bias\":");
        (h.headNorm, p) = Manifest.flag(m, p, ",\"qk_norm\":");
        Manifest.skip(m, p, "}");
        h.prompt = s.promptTokens;
        h.outputs = s.completionTokens;
        h.n = h.prompt + h.outputs - 1;
        bool drawn = s.sampling.temperatureMilli != 0 && s.sampling.topK != 1;
        uint256 q = h.heads * h.headDim;
        h.symbols = [
            1,
            h.n,
            h.dim,
            q,
            h.kvHeads * h.headDim,
            h.heads,
            h.kvHeads,
            h.ffn,
            h.vocab,
            h.outputs,
            _segments(h.dim),
            _segments(h.n),
            _segments(q),
            _segments(h.ffn),
            _segments(h.vocab),
            h.n * (h.n + 1) / 2,
            h.headNorm ? h.n : 0,
            _penalised(s.sampling) ? h.outputs : 0,
            drawn ? h.outputs : 0,
            STEPS,
            1 + _segments(h.vocab),
            drawn && s.sampling.topK > 1 ? h.outputs : 0,
            drawn && s.sampling.topPPpm < 1_000_000 ? h.outputs : 0,
            drawn && (s.sampling.topK > 1 || s.sampling.topPPpm < 1_000_000) ? h.outputs : 0,
            _penalised(s.sampling) || _biased(s.sampling) ? h.outputs : 0
        ];
        bytes memory table = TABLE;
        uint256[3] memory sums;
        for (uint256 i; i < CELLS; ++i) {
            uint256 part = uint8(table[5 * i + 4]);
            h.start[i] = sums[part];
            sums[part] = _aligned(sums[part] + _bytes(h, i));
        }
        h.layerStart = sums[0];
        h.layerBytes = sums[1];
        h.endStart = sums[0] + sums[1] * h.layers;
        h.size = h.endStart + sums[2];
    }

    /// Bytes of an array.
    function _bytes(Shape memory h, uint256 cell) internal pure returns (uint256) {
        bytes memory table = TABLE;
        return h.symbols[uint8(table[5 * cell])] * h.symbols[uint8(table[5 * cell + 1])]
            * h.symbols[uint8(table[5 * cell + 2])] * uint8(table[5 * cell + 3]);
    }

    /// Arrays begin at multiples of the widest entry, so that no entry lies in two tiles.
    function _aligned(uint256 place) internal pure returns (uint256) {
        return (place + 31) & ~uint256(31);
    }

    /// @notice Where an entry is in the trace, and its width in bytes.
    function address_(Shape memory h, uint256 cell, uint256 layer, uint256 a, uint256 b, uint256 c)
        internal
        pure
        returns (uint256 place, uint256 width)
    {
        if (cell >= CELLS) revert NoSuchEntry();
        bytes memory table = TABLE;
        uint256 third = uint8(table[5 * cell + 2]);
        uint256 dim2 = h.symbols[uint8(table[5 * cell + 1])];
        uint256 dim3 = h.symbols[third];
        width = uint8(table[5 * cell + 3]);
        uint256 part = uint8(table[5 * cell + 4]);
        bool inside = a < h.symbols[uint8(table[5 * cell])] && layer < (part == 1 ? h.layers : 1);
        if (third == TRI) {
            inside = inside && b < h.n && c <= b;
            place = a * dim3 + b * (b + 1) / 2 + c;
        } else {
            inside = inside && b < dim2 && c < dim3;
            place = (a * dim2 + b) * dim3 + c;
        }
        if (!inside) revert NoSuchEntry();
        place = place * width + h.start[cell];
        if (part == 1) place += h.layerStart + layer * h.layerBytes;
        if (part == 2) place += h.endStart;
    }

    function _segments(uint256 n) internal pure returns (uint256) {
        return (n + SEGMENT - 1) / SEGMENT;
    }

    function _penalised(Sampling calldata p) internal pure returns (bool) {
        return (p.repetitionPenaltyMilli != 0 && p.repetitionPenaltyMilli != 1000) || p.frequencyPenaltyMilli != 0
            || p.presencePenaltyMilli != 0;
    }

    function _biased(Sampling calldata p) internal pure returns (bool) {
        return p.logitBias != keccak256("");
    }

    /// `count` entries of an array from the given one on, which lie side by side, in the claim's layer.
    function _row(Shape memory h, Case calldata k, uint256 cell, uint256 a, uint256 b, uint256 count)
        internal
        pure
        returns (bytes memory)
    {
        return _line(h, k, cell, k.claim.layer, a, b, 0, count);
    }

    /// The same for arrays with three indices.
    function _run(Shape memory h, Case calldata k, uint256 cell, uint256 a, uint256 b, uint256 c, uint256 count)
        internal
        pure
        returns (bytes memory)
    {
        return _line(h, k, cell, k.claim.layer, a, b, c, count);
    }

    /// One entry of an array with two indices, as a signed number.
    function _entry(Shape memory h, Case calldata k, uint256 cell, uint256 a, uint256 b) internal pure returns (int256) {
        bytes memory row = _line(h, k, cell, k.claim.layer, a, b, 0, 1);
        return row.signed(0, row.length);
    }

    function _line(
        Shape memory h,
        Case calldata k,
        uint256 cell,
        uint256 layer,
        uint256 a,
        uint256 b,
        uint256 c,
        uint256 count
    ) internal pure returns (bytes memory) {
        (uint256 place, uint256 width) = address_(h, cell, layer, a, b, c);
        return k.trace.read(place, width * count);
    }

    // ---- what operations share ----

    function _scaleOf(bytes memory row) internal pure returns (Scale memory) {
        return Scale(row.unsigned(0, 4), row.signed(1, 4));
    }

    function _name(uint256 layer, string memory what) internal pure returns (string memory) {
        bytes memory digits;
        do {
            digits = abi.encodePacked(bytes1(uint8(48 + layer % 10)), digits);
            layer /= 10;
        } while (layer != 0);
        return string.concat("layers.", string(digits), ".", what);
    }

    function _words(Case calldata k, uint256 place, string memory name, uint256 from, uint256 count)
        internal
        pure
        returns (bytes memory)
    {
        Section memory s = Manifest.section(k.manifest, place, name);
        return k.model.read(s.offset + 4 * from, 4 * count);
    }

    /// Unit, reciprocal and shift of docs/arithmetic.md, 4.1, for a largest magnitude.
    function _quantiser(uint256 max) internal pure returns (Scale memory unit, uint256 r, uint256 shift) {
        if (max == 0) return (Scale(0, 0), 0, 0);
        shift = Fixed.bits(max) + 19;
        r = (2047 << shift) / max;
        unit = Fixed.unit(max);
    }

    /// 16 bytes: the scale, then reciprocal and shift.
    function _packRow(Scale memory scale, uint256 r, uint256 shift) internal pure returns (bytes memory) {
        return bytes.concat(int256(scale.m).pack(4), scale.e.pack(4), int256(r).pack(4), int256(shift).pack(4));
    }

    function _quantised(int256 x, bytes memory row) internal pure returns (bytes memory) {
        return Fixed.rshift(x * int256(row.unsigned(2, 4)), row.unsigned(3, 4)).pack(2);
    }

    function _rowOf(uint256 max) internal pure returns (bytes memory) {
        (Scale memory unit, uint256 r, uint256 shift) = _quantiser(max);
        return _packRow(Fixed.shifted(unit, -16), r, shift);
    }

    function _max(bytes memory words) internal pure returns (uint256 max) {
        for (uint256 i; i < words.length / 4; ++i) {
            int256 v = words.signed(i, 4);
            if (uint256(v < 0 ? -v : v) > max) max = uint256(v < 0 ? -v : v);
        }
    }

    /// Sum of the products of two packed lists of signed numbers with the given widths.
    function _product(bytes memory x, uint256 xWidth, bytes memory y, uint256 yWidth, uint256 count)
        internal
        pure
        returns (int256 sum)
    {
        for (uint256 i; i < count; ++i) {
            sum += x.signed(i, xWidth) * y.signed(i, yWidth);
        }
    }

    function _sum(bytes memory parts) internal pure returns (int256 sum) {
        for (uint256 i; i < parts.length / 8; ++i) {
            sum += parts.signed(i, 8);
        }
    }
}
