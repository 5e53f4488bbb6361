// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";

/// A scale of docs/arithmetic.md, section 2: `m * 2^e`.
struct Scale {
    uint256 m;
    int256 e;
}

/// @title Fixed
/// @notice The integer arithmetic of docs/arithmetic.md: scales, rescaling, and the tables' functions. Tables are computed,
/// not stored: an entry costs less than reading one.
library Fixed {
    uint256 private constant LOG2E = 1549082005;
    /// `rdiv(2^41, 2047)`.
    uint256 private constant INVERSE = 1074266368;

    /// @notice Number of bits of a number, 0 for 0.
    function bits(uint256 v) internal pure returns (uint256) {
        return v == 0 ? 0 : Math.log2(v) + 1;
    }

    /// @notice `floor((v + 2^(s-1)) / 2^s)`, and `v` for `s = 0`.
    function rshift(int256 v, uint256 s) internal pure returns (int256) {
        return s == 0 ? v : (v + int256(1 << (s - 1))) >> s;
    }

    /// @notice The nearest signed number of 32 bits.
    function sat(int256 v) internal pure returns (int256) {
        if (v > type(int32).max) return type(int32).max;
        return v < type(int32).min ? int256(type(int32).min) : v;
    }

    /// @notice `int(n)` for `n < 2^64`.
    function scale(uint256 n) internal pure returns (Scale memory) {
        if (n == 0) return Scale(0, 0);
        int256 s = int256(bits(n)) - 31;
        if (s <= 0) return Scale(n << uint256(-s), s);
        uint256 m = uint256(rshift(int256(n), uint256(s)));
        return m == 1 << 31 ? Scale(1 << 30, s + 1) : Scale(m, s);
    }

    /// @notice `a << k`: times `2^k`, the exponent kept within 32767.
    function shifted(Scale memory a, int256 k) internal pure returns (Scale memory) {
        if (a.m == 0) return a;
        int256 e = a.e + k;
        return Scale(a.m, e > 32767 ? int256(32767) : e < -32767 ? -32767 : e);
    }

    /// @notice `a * b`.
    function mul(Scale memory a, Scale memory b) internal pure returns (Scale memory) {
        return shifted(scale(a.m * b.m), a.e + b.e);
    }

    /// @notice `recip(a)`.
    function recip(Scale memory a) internal pure returns (Scale memory) {
        if (a.m == 0) return a;
        return shifted(scale(((1 << 61) + a.m / 2) / a.m), -61 - a.e);
    }

    /// @notice `isqrt(n)`, one over the square root of `n < 2^64`.
    function isqrt(uint256 n) internal pure returns (Scale memory) {
        if (n == 0) return Scale(0, 0);
        uint256 z = (64 - bits(n)) & ~uint256(1);
        return shifted(recip(scale(Math.sqrt(n << z))), int256(z / 2));
    }

    /// @notice `log2(e)` as a scale.
    function log2e() internal pure returns (Scale memory) {
        return Scale(LOG2E, -30);
    }

    /// @notice `unit` of a quantised row with the given largest magnitude.
    function unit(uint256 max) internal pure returns (Scale memory) {
        return mul(scale(max), Scale(INVERSE, -41));
    }

    /// @notice `rescale(A, a, b)`.
    function rescale(int256 sum, Scale memory a, Scale memory b) internal pure returns (int256) {
        return _rescale(sum, uint256(rshift(int256(a.m * b.m), 31)), -(a.e + b.e + 47));
    }

    /// @notice `rescale1(A, a, k)`.
    function rescale1(int256 sum, Scale memory a, int256 k) internal pure returns (int256) {
        return _rescale(sum, a.m, -(a.e + k + 16));
    }

    function _rescale(int256 sum, uint256 m, int256 s) private pure returns (int256) {
        int256 product = sum * int256(m);
        // |product| < 2^95: by 2^33 and more everything but 0 saturates, and from 2^97 down everything is 0.
        if (s <= 0) return sat(product << uint256(s < -33 ? int256(33) : -s));
        return s > 96 ? int256(0) : sat(rshift(product, uint256(s)));
    }

    /// @notice `EXP2[i]`, `i` up to 1,024.
    function exp2Entry(uint256 i) internal pure returns (uint256) {
        unchecked {
            uint256 c = 1 << 61;
            for (uint256 k; k < 10; ++k) {
                c = Math.sqrt(c << 62);
            }
            uint256 p = 1 << 62;
            for (uint256 k; k < i; ++k) {
                p = p * c >> 62;
            }
            return (p + (1 << 31)) >> 32;
        }
    }

    /// @notice `exp2neg(t)`: `2^-t` in Q30 for a Q16 `t < 2^32`.
    function exp2neg(uint256 t) internal pure returns (uint256) {
        uint256 n = t >> 16;
        if (n > 30) return 0;
        uint256 i = (t >> 6) & 1023;
        uint256 here = exp2Entry(i);
        uint256 step = (here - exp2Entry(i + 1)) * (t & 63);
        return uint256(rshift(int256(here - ((step + 32) >> 6)), n));
    }

    /// @notice `sigmoid(x)` in Q30 for a Q16 `x`.
    function sigmoid(int256 x) internal pure returns (uint256) {
        uint256 magnitude = uint256(x < 0 ? -x : x);
        uint256 e = exp2neg((magnitude * LOG2E + (1 << 29)) >> 30);
        uint256 i = e >> 20;
        uint256 here = ((1 << 40) + (1024 + i) / 2) / (1024 + i);
        uint256 next = ((1 << 40) + (1025 + i) / 2) / (1025 + i);
        uint256 q = here - (((here - next) * ((e >> 10) & 1023) + 512) >> 10);
        return x >= 0 ? q : (e * q + (1 << 29)) >> 30;
    }
}
