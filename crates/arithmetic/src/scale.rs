//! Scales: positive numbers of 31 significant bits, and the rescaling of sums by them.

/// A non-negative number `mantissa · 2^exponent`.
///
/// The mantissa lies in `2^30 ..= 2^31 - 1`; zero is mantissa 0 with exponent 0. A scale with any other mantissa is
/// not valid, see [`Scale::is_valid`]: operations on it never panic, but kernels may then differ in their results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Scale {
    /// `2^30 ..= 2^31 - 1`, or 0 for zero.
    pub mantissa: u32,
    /// The power of two, within ±32767; results saturate there. (32 bits, so that a scale has no padding.)
    pub exponent: i32,
}

/// The largest magnitude of an exponent: sums of a few exponents stay far from the ends of an `i32`.
const EXPONENT_MAX: i32 = 32767;

const _: () = assert!(size_of::<Scale>() == 8 && align_of::<Scale>() == 4);

impl Scale {
    /// Zero.
    pub const ZERO: Scale = Scale { mantissa: 0, exponent: 0 };
    /// One.
    pub const ONE: Scale = Scale { mantissa: 1 << 30, exponent: -30 };
    /// The binary logarithm of e, rounded to 31 bits.
    pub const LOG2_E: Scale = Scale { mantissa: crate::tables::LOG2_E_Q30, exponent: -30 };

    /// Whether this is a scale that the operations below can return: a mantissa in range, or zero with exponent 0.
    pub const fn is_valid(self) -> bool {
        (self.mantissa >= 1 << 30
            && self.mantissa < 1 << 31
            && self.exponent >= -EXPONENT_MAX
            && self.exponent <= EXPONENT_MAX)
            || (self.mantissa == 0 && self.exponent == 0)
    }

    /// An integer, rounded to 31 significant bits, half up.
    pub const fn from_integer(value: u64) -> Scale {
        if value == 0 {
            return Scale::ZERO;
        }
        let shift = 33 - value.leading_zeros() as i32; // bit length minus 31
        if shift <= 0 {
            return Scale { mantissa: (value << -shift) as u32, exponent: shift };
        }
        let rounded = (value >> shift) + (value >> (shift - 1) & 1);
        if rounded == 1 << 31 {
            return Scale { mantissa: 1 << 30, exponent: shift + 1 };
        }
        Scale { mantissa: rounded as u32, exponent: shift }
    }

    /// A finite float that is not negative, exactly. For importers only: nothing that runs a model calls it.
    ///
    /// Returns `None` for negative numbers, infinities and NaN. Minus zero is zero.
    pub fn from_f32(value: f32) -> Option<Scale> {
        if !value.is_finite() || value < 0.0 {
            return None;
        }
        let bits = value.to_bits() & 0x7fff_ffff;
        let (exponent, fraction) = ((bits >> 23) as i32, bits & 0x7f_ffff);
        // A subnormal has no hidden bit and the exponent of the smallest normal number.
        let mantissa = if exponent == 0 { fraction } else { fraction | 1 << 23 };
        Some(Scale::from_integer(u64::from(mantissa)).shifted(exponent.max(1) - 150))
    }

    /// This number times `2^by`. Zero stays zero; the exponent saturates.
    pub const fn shifted(self, by: i32) -> Scale {
        if self.mantissa == 0 {
            return self;
        }
        let exponent = self.exponent.saturating_add(by);
        if exponent > EXPONENT_MAX {
            return Scale { mantissa: self.mantissa, exponent: EXPONENT_MAX };
        }
        if exponent < -EXPONENT_MAX {
            return Scale { mantissa: self.mantissa, exponent: -EXPONENT_MAX };
        }
        Scale { mantissa: self.mantissa, exponent }
    }

    /// The product, rounded to 31 significant bits, half up.
    #[allow(clippy::should_implement_trait)] // a rounding product is not `*`
    pub const fn mul(self, other: Scale) -> Scale {
        let product = Scale::from_integer(self.mantissa as u64 * other.mantissa as u64);
        product.shifted(self.exponent.saturating_add(other.exponent))
    }

    /// One over this number: mantissa `round(2^61 / mantissa)`, half up. Zero gives zero.
    pub const fn recip(self) -> Scale {
        if self.mantissa == 0 {
            return Scale::ZERO;
        }
        let m = self.mantissa as u64;
        Scale::from_integer(((1 << 61) + m / 2) / m).shifted((-61i32).saturating_sub(self.exponent))
    }

    /// One over the square root of an integer; zero gives zero.
    ///
    /// With the even `z` that brings `value · 2^z` into `2^62 .. 2^64`: the reciprocal of
    /// `floor(sqrt(value · 2^z))`, times `2^(z/2)`.
    pub const fn inverse_sqrt(value: u64) -> Scale {
        if value == 0 {
            return Scale::ZERO;
        }
        let z = value.leading_zeros() & !1;
        Scale::from_integer((value << z).isqrt()).recip().shifted(z as i32 / 2)
    }

    /// Eight bytes: mantissa and exponent, both little-endian.
    pub fn to_bytes(self) -> [u8; 8] {
        let [a, b, c, d] = self.mantissa.to_le_bytes();
        let [e, f, g, h] = self.exponent.to_le_bytes();
        [a, b, c, d, e, f, g, h]
    }

    /// Reads what [`Scale::to_bytes`] writes; `None` if it is not a valid scale.
    pub fn from_bytes(bytes: [u8; 8]) -> Option<Scale> {
        let [a, b, c, d, e, f, g, h] = bytes;
        let scale =
            Scale { mantissa: u32::from_le_bytes([a, b, c, d]), exponent: i32::from_le_bytes([e, f, g, h]) };
        scale.is_valid().then_some(scale)
    }
}

/// A multiplier and a right shift that turn a sum into Q16: `round(sum · multiplier / 2^shift)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rescale {
    /// Below `2^31` for valid scales.
    pub(crate) multiplier: u32,
    /// Positive for every scale of a sane model; zero or less shifts left.
    pub(crate) shift: i32,
}

impl Rescale {
    /// For a sum whose unit is the product of two scales: `multiplier = (a.m · b.m + 2^30) >> 31`.
    #[inline(always)]
    pub(crate) fn of(a: Scale, b: Scale) -> Rescale {
        let product = (u64::from(a.mantissa).wrapping_mul(u64::from(b.mantissa))).wrapping_add(1 << 30) >> 31;
        Rescale {
            multiplier: product as u32 & 0x7fff_ffff,
            shift: (-31i32 - 16).wrapping_sub(a.exponent).wrapping_sub(b.exponent),
        }
    }

    /// For a sum whose unit is one scale times `2^exponent`: the multiplier is the mantissa itself.
    #[inline(always)]
    pub(crate) fn one(scale: Scale, exponent: i32) -> Rescale {
        Rescale {
            multiplier: scale.mantissa & 0x7fff_ffff,
            shift: (-16i32).wrapping_sub(exponent).wrapping_sub(scale.exponent),
        }
    }

    /// Rounds half up and saturates to 32 bits, for a sum below `2^31` in absolute value.
    #[inline(always)]
    pub(crate) fn apply(self, sum: i32) -> i32 {
        let product = i64::from(sum) * i64::from(self.multiplier);
        if (1..=62).contains(&self.shift) {
            // |product| < 2^62 and 2^(shift-1) <= 2^61: no overflow.
            return saturate32(product.wrapping_add(1 << (self.shift - 1)) >> self.shift);
        }
        self.apply_wide(i64::from(sum))
    }

    /// The same for any 64-bit sum.
    pub(crate) fn apply_wide(self, sum: i64) -> i32 {
        let product = i128::from(sum) * i128::from(self.multiplier); // below 2^94
        let shift = self.shift;
        let value = match shift {
            ..=0 => product << shift.max(-33).unsigned_abs(), // a product of at least 1 saturates from 2^31 on
            1..=96 => (product + (1 << (shift - 1))) >> shift,
            97.. => 0, // the product is less than half a unit
        };
        value.clamp(i128::from(i32::MIN), i128::from(i32::MAX)) as i32
    }
}

/// `rescale(A, a, b)` of docs/arithmetic.md, section 2: a sum whose unit is the product of two scales, in Q16.
pub fn rescale(sum: i64, a: Scale, b: Scale) -> i32 {
    Rescale::of(a, b).apply_wide(sum)
}

/// `rescale1(A, a, k)` of docs/arithmetic.md, section 2: a sum whose unit is one scale times `2^k`, in Q16.
pub fn rescale1(sum: i64, a: Scale, k: i32) -> i32 {
    Rescale::one(a, k).apply_wide(sum)
}

/// The nearest `i32`.
#[inline(always)]
pub(crate) fn saturate32(value: i64) -> i32 {
    value.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32
}

/// `floor(value / 2^shift + 1/2)`. `shift` is 0 to 62 and the sum must not overflow.
#[inline(always)]
pub(crate) fn round_shift(value: i64, shift: u32) -> i64 {
    if shift == 0 { value } else { value.wrapping_add(1 << (shift - 1)) >> shift }
}
