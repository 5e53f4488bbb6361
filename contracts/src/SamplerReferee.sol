// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Fixed} from "./Fixed.sol";
import {Case, Claim, Referee, Sampling, Subject} from "./Referee.sol";
import {Tiles} from "./Tiles.sol";

/// @title SamplerReferee
/// @notice Judges everything from the logits to the tokens: arrays 53 to 63 of docs/disputes.md, whether a trace is that of the
/// prompt and of the claimed output, and the zeros between arrays.
contract SamplerReferee is Referee {
    using Tiles for *;

    /// @notice The request uses a sampling parameter or a constraint that no contract judges yet.
    error Unsupported(string what);
    /// @notice The list of tokens is not the committed one.
    error WrongTokens();

    bytes32 private constant _BIAS = keccak256("LogitBias(uint32 token,int32 milli)");

    function _special(Shape memory h, Case calldata k) internal pure override returns (bool) {
        if (k.claim.cell == IS_PADDING) return _paddingClaim(h, k);
        if (k.claim.cell == IS_LENGTH) return _lengthClaim(k.subject, k.claim.tokens);
        if (k.claim.cell != IS_OUTPUT && k.claim.cell != IS_TOKEN) revert NoSuchEntry();
        // The trace has what would be chosen if nothing were banned.
        if (k.claim.cell == IS_OUTPUT) _unconstrained(k.subject);
        return _tokenClaim(h, k);
    }

    /// What a constraint bans is unknown here, so nothing that depends on it is judged: neither side could be held to it.
    function _unconstrained(Subject calldata s) private pure {
        if (s.constraintKind != 0) revert Unsupported("constraint");
    }

    /// Whether the number of tokens of the committed prompt or output is not the claimed one.
    function _lengthClaim(Subject calldata s, uint32[] calldata tokens) private pure returns (bool) {
        if (keccak256(abi.encodePacked(tokens)) == s.outputTokens) return tokens.length != s.completionTokens;
        if (keccak256(abi.encodePacked(s.salt, tokens)) == s.prompt) return tokens.length != s.promptTokens;
        revert WrongTokens();
    }

    function _tokenClaim(Shape memory h, Case calldata k) private pure returns (bool) {
        Claim calldata c = k.claim;
        bool own = c.cell == IS_TOKEN && c.a < h.prompt;
        if (own) _checkTokens(c.tokens, k.subject.promptTokens, abi.encode(k.subject.salt), k.subject.prompt);
        else _checkTokens(c.tokens, k.subject.completionTokens, "", k.subject.outputTokens);
        if (c.layer != 0 || c.a >= (c.cell == IS_TOKEN ? h.n : h.outputs)) revert NoSuchEntry();
        uint256 place = c.cell == IS_TOKEN && !own ? c.a - h.prompt : c.a;
        return _entry(h, k, c.cell == IS_TOKEN ? 0 : 63, c.a, 0) != int256(uint256(c.tokens[place]));
    }

    function _checkTokens(uint32[] calldata tokens, uint256 length, bytes memory salt, bytes32 hash) private pure {
        if (tokens.length != length || keccak256(abi.encodePacked(salt, tokens)) != hash) revert WrongTokens();
    }

    /// Whether byte `c.a`, between the end of array `c.b` and the next, is not zero.
    function _paddingClaim(Shape memory h, Case calldata k) private pure returns (bool) {
        Claim calldata c = k.claim;
        if (c.b >= CELLS) revert NoSuchEntry();
        uint256 part = uint8(TABLE[5 * c.b + 4]);
        if (c.layer >= (part == 1 ? h.layers : 1)) revert NoSuchEntry();
        uint256 end = h.start[c.b] + _bytes(h, c.b);
        uint256 next = _aligned(end);
        uint256 base = part == 1 ? h.layerStart + c.layer * h.layerBytes : part == 2 ? h.endStart : 0;
        if (c.a < base + end || c.a >= base + next) revert NoSuchEntry();
        return k.trace.read(c.a, 1)[0] != 0;
    }

    // ---- from logits to a token ----

    function _compute(Shape memory h, Case calldata k) internal pure override returns (bytes memory) {
        if (k.claim.cell < 53) revert NoSuchEntry();
        Sampling calldata p = k.subject.sampling;
        if (k.claim.cell == 53) return _count(h, k);
        if (k.claim.cell == 54) return _adjusted(h, k);
        _unconstrained(k.subject);
        uint256 logits = _penalised(p) || _biased(p) ? 54 : 52;
        if (k.claim.cell == 55) return _bestPart(h, k, logits);
        if (k.claim.cell == 56) return _best(h, k);
        bool greedy = p.temperatureMilli == 0 || p.topK == 1;
        if (greedy) return int256(_row(h, k, 56, k.claim.a, 0, 1).unsigned(1, 4)).pack(4);
        if (k.claim.cell == 57) return int256(_ranked(h, k, logits)).pack(4);
        if (k.claim.cell == 58 || k.claim.cell == 59) return k.claim.c == 0 ? _found(h, k) : _kept(h, k, logits);
        if (k.claim.cell == 60) return _weight(h, k, logits);
        if (k.claim.cell == 61) {
            (uint256 from, uint256 count) = _part(h.vocab, k.claim.b);
            bytes memory w = _row(h, k, 60, k.claim.a, from, count);
            uint256 sum;
            for (uint256 i; i < count; ++i) {
                sum += w.unsigned(i, 4);
            }
            return int256(sum).pack(8);
        }
        return k.claim.cell == 62 ? _draw(h, k) : _pick(h, k);
    }

    function _part(uint256 n, uint256 s) private pure returns (uint256 from, uint256 count) {
        from = s * SEGMENT;
        count = n - from < SEGMENT ? n - from : SEGMENT;
    }

    /// Bit 31: in the prompt or generated before; the rest: how often it was generated.
    function _count(Shape memory h, Case calldata k) private pure returns (bytes memory) {
        uint256 value;
        if (k.claim.a == 0) {
            bytes memory prompt = _row(h, k, 0, 0, 0, h.prompt);
            for (uint256 i; i < h.prompt; ++i) {
                if (prompt.unsigned(i, 4) == k.claim.b) value = 1 << 31;
            }
        } else {
            value = uint256(_entry(h, k, 53, k.claim.a - 1, k.claim.b)) & type(uint32).max;
            uint256 last = uint256(_entry(h, k, 0, h.prompt - 1 + k.claim.a, 0)) & type(uint32).max;
            if (last == k.claim.b) value = (value | 1 << 31) + 1;
        }
        return int256(value).pack(4);
    }

    function _adjusted(Shape memory h, Case calldata k)
        private
        pure
        returns (bytes memory)
    {
        Sampling calldata p = k.subject.sampling;
        int256 l = _entry(h, k, 52, k.claim.a, k.claim.b);
        if (l == type(int32).min) return l.pack(4);
        if (_penalised(p)) l = _penalty(h, k, l);
        return (_biased(p) ? _bias(p, k.claim, l) : l).pack(4);
    }

    /// A logit after the biases of its token, in their order.
    function _bias(Sampling calldata p, Claim calldata c, int256 l) private pure returns (int256) {
        if (c.tokens.length % 2 != 0) revert WrongTokens();
        bytes32[] memory hashes = new bytes32[](c.tokens.length / 2);
        for (uint256 i; i < c.tokens.length; i += 2) {
            int256 milli = int32(c.tokens[i + 1]);
            hashes[i / 2] = keccak256(abi.encode(_BIAS, c.tokens[i], milli));
            if (c.tokens[i] == c.b) l = _limited(l + _down(65536 * milli + 500));
        }
        if (keccak256(abi.encodePacked(hashes)) != p.logitBias) revert WrongTokens();
        return l;
    }

    /// Saturated, and not banned.
    function _limited(int256 l) private pure returns (int256) {
        l = Fixed.sat(l);
        return l == type(int32).min ? l + 1 : l;
    }

    function _penalty(Shape memory h, Case calldata k, int256 l) private pure returns (int256) {
        Sampling calldata p = k.subject.sampling;
        uint256 seen = uint256(_entry(h, k, 53, k.claim.a, k.claim.b)) & type(uint32).max;
        if (seen >> 31 == 0) return l;
        int256 penalty = int256(uint256(p.repetitionPenaltyMilli));
        if (penalty != 0 && penalty != 1000) {
            l = l > 0 ? (1000 * l + penalty / 2) / penalty : -((-l * penalty + 500) / 1000);
        }
        int256 n = int256(seen & ~(uint256(1) << 31));
        if (n > 0) {
            int256 off = 65536 * (n * p.frequencyPenaltyMilli + p.presencePenaltyMilli) + 500;
            l -= _down(off);
        }
        return _limited(l);
    }

    /// Thousandths, rounded towards minus infinity.
    function _down(int256 n) private pure returns (int256) {
        return n >= 0 ? n / 1000 : -((-n + 999) / 1000);
    }

    function _bestPart(Shape memory h, Case calldata k, uint256 logits)
        private
        pure
        returns (bytes memory)
    {
        (uint256 from, uint256 count) = _part(h.vocab, k.claim.b);
        bytes memory l = _row(h, k, logits, k.claim.a, from, count);
        int256 best = type(int32).min;
        uint256 id = from;
        for (uint256 i; i < count; ++i) {
            if (l.signed(i, 4) > best) (best, id) = (l.signed(i, 4), from + i);
        }
        return bytes.concat(best.pack(4), int256(id).pack(4));
    }

    function _best(Shape memory h, Case calldata k) private pure returns (bytes memory) {
        uint256 segments = _segments(h.vocab);
        bytes memory parts = _row(h, k, 55, k.claim.a, 0, segments);
        (int256 best, uint256 id) = (parts.signed(0, 4), parts.unsigned(1, 4));
        for (uint256 i = 1; i < segments; ++i) {
            if (parts.signed(2 * i, 4) > best) (best, id) = (parts.signed(2 * i, 4), parts.unsigned(2 * i + 1, 4));
        }
        return bytes.concat(best.pack(4), int256(id).pack(4));
    }

    /// A token's weight before any are left out.
    function _ranked(Shape memory h, Case calldata k, uint256 logits) private pure returns (uint256) {
        int256 l = _entry(h, k, logits, k.claim.a, k.claim.b);
        int256 top = _row(h, k, 56, k.claim.a, 0, 1).signed(0, 4);
        if (l == type(int32).min || top < l) return 0;
        uint256 temperature = k.subject.sampling.temperatureMilli;
        uint256 factor = (1000 * 1549082005 + temperature / 2) / temperature;
        uint256 x = (uint256(top - l) * factor + (1 << 29)) >> 30;
        return x > type(uint32).max ? 0 : Fixed.exp2neg(x);
    }

    /// Orders tokens, the most likely last: by logit, and the lower id before others among equals.
    function _rank(int256 l, uint256 id) private pure returns (uint256) {
        return uint256(l - type(int32).min) << 32 | (type(uint32).max - id);
    }

    /// What a step of a search tries when it has found this much.
    function _tried(uint256 found, uint256 step) private pure returns (uint256) {
        return step == 0 || step == STEPS - 1 ? found : found | 1 << (STEPS - 2 - step);
    }

    /// The least rank that a search has come to before a step.
    function _foundAt(Shape memory h, Case calldata k, uint256 cell, uint256 step) private pure returns (uint256) {
        return _run(h, k, cell, k.claim.a, step, 0, 1).unsigned(0, 8);
    }

    /// What is kept in a segment from the rank on that a step tries: weight and number.
    function _kept(Shape memory h, Case calldata k, uint256 logits) private pure returns (bytes memory) {
        uint256 least = _tried(_foundAt(h, k, k.claim.cell, k.claim.b), k.claim.b);
        if (k.claim.cell == 59 && k.subject.sampling.topK > 1) {
            uint256 base = _foundAt(h, k, 58, STEPS - 1);
            if (base > least) least = base;
        }
        (uint256 from, uint256 count) = _part(h.vocab, k.claim.c - 1);
        bytes memory l = _row(h, k, logits, k.claim.a, from, count);
        bytes memory w = _row(h, k, 57, k.claim.a, from, count);
        uint256 weight;
        uint256 number;
        for (uint256 i; i < count; ++i) {
            uint256 one = w.unsigned(i, 4);
            if (one == 0 || _rank(l.signed(i, 4), from + i) < least) continue;
            weight += one;
            ++number;
        }
        return bytes.concat(int256(weight).pack(8), int256(number).pack(8));
    }

    /// What a search has found before a step: what the step before tried, if that keeps enough.
    function _found(Shape memory h, Case calldata k) private pure returns (bytes memory) {
        if (k.claim.b < 2) return new bytes(16);
        Sampling calldata p = k.subject.sampling;
        uint256 found = _foundAt(h, k, k.claim.cell, k.claim.b - 1);
        (uint256 all,) = _totals(h, k, 0);
        (uint256 weight, uint256 number) = _totals(h, k, k.claim.b - 1);
        bool enough =
            k.claim.cell == 58 ? number >= p.topK : number > 0 && 1_000_000 * weight >= uint256(p.topPPpm) * all;
        if (enough) found = _tried(found, k.claim.b - 1);
        return bytes.concat(int256(found).pack(8), new bytes(8));
    }

    function _totals(Shape memory h, Case calldata k, uint256 step)
        private
        pure
        returns (uint256 weight, uint256 number)
    {
        uint256 segments = _segments(h.vocab);
        bytes memory parts = _run(h, k, k.claim.cell, k.claim.a, step, 1, segments);
        for (uint256 i; i < segments; ++i) {
            weight += parts.unsigned(2 * i, 8);
            number += parts.unsigned(2 * i + 1, 8);
        }
    }

    function _weight(Shape memory h, Case calldata k, uint256 logits)
        private
        pure
        returns (bytes memory)
    {
        Sampling calldata p = k.subject.sampling;
        uint256 w;
        if (p.topK > 1 || p.topPPpm < 1_000_000) {
            w = uint256(_entry(h, k, 57, k.claim.a, k.claim.b)) & type(uint32).max;
            uint256 least = _foundAt(h, k, p.topPPpm < 1_000_000 ? 59 : 58, STEPS - 1);
            if (_rank(_entry(h, k, logits, k.claim.a, k.claim.b), k.claim.b) < least) w = 0;
        } else {
            w = _ranked(h, k, logits);
        }
        if (1_000_000 * w < uint256(p.minPPpm > 1_000_000 ? 1_000_000 : p.minPPpm) << 30) w = 0;
        return int256(w).pack(4);
    }

    /// In which segment the running sum exceeds the drawn number, and what is left of it there.
    function _draw(Shape memory h, Case calldata k)
        private
        pure
        returns (bytes memory)
    {
        Sampling calldata p = k.subject.sampling;
        uint256 segments = _segments(h.vocab);
        bytes memory parts = _row(h, k, 61, k.claim.a, 0, segments);
        uint256 total;
        for (uint256 i; i < segments; ++i) {
            total += parts.unsigned(i, 8);
        }
        uint256 u = uint256(keccak256(abi.encodePacked(p.seed, k.claim.a))) >> 192;
        uint256 x = u * total >> 64;
        uint256 segment;
        while (segment + 1 < segments && x >= parts.unsigned(segment, 8)) {
            x -= parts.unsigned(segment, 8);
            ++segment;
        }
        return bytes.concat(int256(segment).pack(8), int256(x).pack(8));
    }

    function _pick(Shape memory h, Case calldata k) private pure returns (bytes memory) {
        bytes memory drawn = _row(h, k, 62, k.claim.a, 0, 1);
        uint256 x = drawn.unsigned(1, 8);
        uint256 segment = drawn.unsigned(0, 8);
        if (segment >= _segments(h.vocab)) return new bytes(4);
        (uint256 from, uint256 count) = _part(h.vocab, segment);
        bytes memory w = _row(h, k, 60, k.claim.a, from, count);
        uint256 i;
        while (i + 1 < count && x >= w.unsigned(i, 4)) {
            x -= w.unsigned(i, 4);
            ++i;
        }
        return int256(from + i).pack(4);
    }
}
