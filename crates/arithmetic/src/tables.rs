//! Tables and the functions that read them. All are built by integer algorithms when the crate is compiled.

/// `round(2^30 · log2(e))`.
pub const LOG2_E_Q30: u32 = 1_549_082_005;
/// `round(2^30 · ln(2))`.
pub const LN_2_Q30: u32 = 744_261_118;

/// `EXP2[i] = round(2^30 · 2^(-i/1024))` for `i` in `0..=1024`.
pub static EXP2: [u32; 1025] = exp2_table();
/// `RECIPROCAL[i] = round(2^30 / (1 + i/1024))` for `i` in `0..=1025`.
pub static RECIPROCAL: [u32; 1026] = reciprocal_table();
/// `LOG2[i] = round(2^30 · log2(1 + i/1024))` for `i` in `0..=1024`.
pub static LOG2: [u32; 1025] = log2_table();

/// `NORMAL[i] = round(2^30 · Φ(i/128))` for `i` in `0..=1025`: the distribution function of the normal distribution.
pub static NORMAL: [u32; 1026] = normal_table();

/// Ten square roots of 1/2 in Q62 give `c = 2^(-1/1024)`; its powers in Q62, truncated, are rounded to Q30.
const fn exp2_table() -> [u32; 1025] {
    let mut c: u128 = 1 << 61;
    let mut i = 0;
    while i < 10 {
        c = (c << 62).isqrt();
        i += 1;
    }
    let mut table = [0; 1025];
    let mut power: u128 = 1 << 62;
    i = 0;
    while i < 1025 {
        table[i] = ((power + (1 << 31)) >> 32) as u32;
        power = (power * c) >> 62;
        i += 1;
    }
    table
}

const fn reciprocal_table() -> [u32; 1026] {
    let mut table = [0; 1026];
    let mut i = 0;
    while i < 1026 {
        let divisor = 1024 + i as u64;
        table[i] = (((1 << 40) + divisor / 2) / divisor) as u32;
        i += 1;
    }
    table
}

/// Thirty-two bits of each logarithm by squaring in Q62, then rounded to thirty.
const fn log2_table() -> [u32; 1025] {
    let mut table = [0; 1025];
    let mut i = 0;
    while i < 1024 {
        let mut x: u128 = (1024 + i as u128) << 52;
        let mut bits: u64 = 0;
        let mut n = 0;
        while n < 32 {
            x = (x * x) >> 62;
            bits <<= 1;
            if x >= 1 << 63 {
                x >>= 1;
                bits |= 1;
            }
            n += 1;
        }
        table[i] = ((bits + 2) >> 2) as u32;
        i += 1;
    }
    table[1024] = 1 << 30;
    table
}

/// Simpson's rule over steps of 1/128 from `Φ(0) = 1/2` on. The density's `exp(-(j/256)²/2)` is a product in Q62 whose
/// ratios fall by the square of the first, `exp(-2^-17)`; that is four terms of its series.
const fn normal_table() -> [u32; 1026] {
    const FIRST: u128 = (1 << 62) - (1 << 45) + (1 << 27) - 341;
    /// `round(2^62 / √(2π))`.
    const DENSITY_0: u128 = 1_839_796_536_686_825_613;
    let step = (FIRST * FIRST) >> 62;
    let (mut density, mut ratio): (u128, u128) = (1 << 62, FIRST);
    let mut sum: u128 = 1 << 61;
    let mut table = [0; 1026];
    let mut i = 0;
    while i < 1026 {
        table[i] = ((sum + (1 << 31)) >> 32) as u32;
        let middle = (density * ratio) >> 62;
        ratio = (ratio * step) >> 62;
        let end = (middle * ratio) >> 62;
        ratio = (ratio * step) >> 62;
        sum += (((density + 4 * middle + end) * DENSITY_0) >> 62) / 768;
        density = end;
        i += 1;
    }
    table
}

/// `2^(-t)` in Q30 for `t` in Q16: table, linear interpolation over 64 steps, rounding shift by the whole part.
/// Never increases with `t`; `2^30` at 0; 0 from `t = 31` on.
#[inline(always)]
pub fn exp2_neg(t: u32) -> u32 {
    let index = (t >> 6 & 1023) as usize;
    let (high, low) = (EXP2[index], EXP2[index + 1]);
    let value = high - (((high - low) * (t & 63) + 32) >> 6);
    match t >> 16 {
        0 => value,
        n @ 1..=30 => (value + (1 << (n - 1))) >> n,
        _ => 0,
    }
}

/// `1 / (1 + e)` in Q30 for `e` in Q30, at most `2^30`.
#[inline(always)]
pub(crate) fn reciprocal_one_plus(e: u32) -> u32 {
    let index = (e >> 20) as usize;
    let (high, low) = (RECIPROCAL[index], RECIPROCAL[index + 1]);
    high - (((high - low) * (e >> 10 & 1023) + 512) >> 10)
}

/// The logistic function `1 / (1 + exp(-x))` in Q30 for `x` in Q16.
#[inline(always)]
pub fn sigmoid(x: i32) -> u32 {
    let t = ((u64::from(x.unsigned_abs()) * u64::from(LOG2_E_Q30) + (1 << 29)) >> 30) as u32;
    let e = exp2_neg(t);
    let s = reciprocal_one_plus(e);
    if x >= 0 { s } else { ((u64::from(e) * u64::from(s) + (1 << 29)) >> 30) as u32 }
}

/// `2 √(2/π)` and that times 0.044715, in Q28.
pub(crate) const GELU_LINEAR_Q28: i64 = 428_361_012;
pub(crate) const GELU_CUBIC_Q28: i64 = 19_154_163;
/// The argument of [`gelu_argument`] stays within this (6.0 in Q16), from where on the logistic function is 0 or 1.
pub(crate) const GELU_MAX: i32 = 6 << 16;

/// `2 √(2/π) (x + 0.044715 x³)` in Q16 for `x` in Q16 within ±6, else the value at ±6.
#[inline(always)]
pub(crate) fn gelu_argument(x: i32) -> i32 {
    let x = i64::from(x.clamp(-GELU_MAX, GELU_MAX));
    let square = (x * x + (1 << 15)) >> 16; // at most 36 in Q16
    let factor = GELU_LINEAR_Q28 + ((GELU_CUBIC_Q28 * square + (1 << 15)) >> 16); // below 2^31
    ((x * factor + (1 << 27)) >> 28) as i32
}

/// The distribution function `Φ(x)` of the normal distribution in Q30 for `x` in Q16.
#[inline(always)]
pub fn normal(x: i32) -> u32 {
    let magnitude = x.unsigned_abs().min(8 << 16);
    let index = (magnitude >> 9) as usize;
    let (low, high) = (NORMAL[index], NORMAL[index + 1]);
    let value = low + (((high - low) * (magnitude & 511) + 256) >> 9);
    if x >= 0 { value } else { (1 << 30) - value }
}

/// `log2(value)` in Q30 for a positive integer; 0 for 0.
pub fn log2(value: u64) -> u64 {
    if value == 0 {
        return 0;
    }
    let whole = 63 - u64::from(value.leading_zeros());
    // 63 bits after the leading one; the first 10 index the table, the next 20 interpolate.
    let fraction = value << value.leading_zeros() << 1;
    let index = (fraction >> 54) as usize;
    let step = fraction >> 34 & 0xf_ffff;
    let (low, high) = (u64::from(LOG2[index]), u64::from(LOG2[index + 1]));
    (whole << 30) + low + (((high - low) * step + (1 << 19)) >> 20)
}
