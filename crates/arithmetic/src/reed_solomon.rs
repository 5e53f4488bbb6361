//! A Reed-Solomon code over the complex numbers of the field of [`P`] elements, `2^61 - 1`.
//!
//! `-1` is no square modulo [`P`], so `a + b i` with `i² = -1` are the `P²` elements of a field ([`Complex`]); it holds two integers that
//! are small against `P`, exactly. Its numbers of norm 1 are a cyclic group of `P + 1 = 2^61` elements, in which a fast Fourier
//! transform finds roots of unity for every power of two. A message of `2^n` numbers is the list of coefficients of a
//! polynomial, and its code word the polynomial's values at the `2^(n+1)` roots of unity of that order: two different messages
//! agree in fewer than `2^n` of these, in less than half.

use std::ops::{Add, Mul, Sub};

use crate::freivalds::P;

/// A number `re + im · i`, both parts below [`P`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Complex {
    /// The real part.
    pub re: u64,
    /// The imaginary part.
    pub im: u64,
}

/// `(4 + i) / (4 - i)`, which has the order `2^61`: `17`, the norm of `4 + i`, is no square modulo [`P`].
const ROOT: Complex = Complex { re: 678_189_120_356_968_810, im: 1_898_929_536_999_512_666 };

/// The logarithm of that order.
const ROOT_LOG: u32 = 61;

/// The longest message, as a power of two.
pub const LOG_MAX: u32 = 24;

/// The residue of a number below `2^124`.
#[inline(always)]
fn reduce(value: u128) -> u64 {
    let folded = (value as u64 & P) + (value >> 61) as u64;
    let folded = (folded & P) + (folded >> 61);
    if folded >= P { folded - P } else { folded }
}

/// The residue of a small integer.
fn residue(value: i64) -> u64 {
    if value < 0 { P - value.unsigned_abs() } else { value as u64 }
}

impl Complex {
    /// One.
    pub const ONE: Complex = Complex { re: 1, im: 0 };

    /// The number of two integers, each below [`P`] in absolute value.
    pub fn of_integers(re: i64, im: i64) -> Complex {
        Complex { re: residue(re), im: residue(im) }
    }

    /// Sixteen bytes: both parts, little-endian.
    pub fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.re) | u128::from(self.im) << 64).to_le_bytes()
    }

    /// Reads what [`Complex::to_bytes`] wrote; `None` for parts that are not below [`P`].
    pub fn from_bytes(bytes: [u8; 16]) -> Option<Complex> {
        let number = u128::from_le_bytes(bytes);
        let number = Complex { re: number as u64, im: (number >> 64) as u64 };
        (number.re < P && number.im < P).then_some(number)
    }
}

impl Add for Complex {
    type Output = Complex;

    #[inline(always)]
    fn add(self, other: Complex) -> Complex {
        let add = |a: u64, b: u64| {
            let sum = a + b;
            if sum >= P { sum - P } else { sum }
        };
        Complex { re: add(self.re, other.re), im: add(self.im, other.im) }
    }
}

impl Sub for Complex {
    type Output = Complex;

    #[inline(always)]
    fn sub(self, other: Complex) -> Complex {
        let sub = |a: u64, b: u64| if a >= b { a - b } else { a + P - b };
        Complex { re: sub(self.re, other.re), im: sub(self.im, other.im) }
    }
}

impl Mul for Complex {
    type Output = Complex;

    #[inline(always)]
    fn mul(self, other: Complex) -> Complex {
        let mul = |a: u64, b: u64| u128::from(a) * u128::from(b);
        // Each product is below P², so neither sum exceeds 2^123, and the difference is not negative.
        let re = mul(self.re, other.re) + (u128::from(P) * u128::from(P) - mul(self.im, other.im));
        Complex { re: reduce(re), im: reduce(mul(self.re, other.im) + mul(self.im, other.re)) }
    }
}

/// The code for messages of `2^log` numbers, of rate one half.
#[derive(Debug)]
pub struct Code {
    log: u32,
    /// For each stage of the transform, from the whole word on, the powers of its root of unity.
    twiddles: Vec<Vec<Complex>>,
}

impl Code {
    /// The code for messages of `2^log` numbers; `log` is at most [`LOG_MAX`] (and is set to it above).
    pub fn new(log: u32) -> Code {
        let log = log.min(LOG_MAX);
        let mut twiddles: Vec<Vec<Complex>> = Vec::new();
        let root = root(log + 1);
        let powers = std::iter::successors(Some(Complex::ONE), |&power| Some(power * root));
        twiddles.push(powers.take(1 << log).collect());
        for stage in 0..log as usize {
            let half = twiddles[stage].iter().step_by(2).copied().collect();
            twiddles.push(half);
        }
        Code { log, twiddles }
    }

    /// Numbers of a message.
    pub fn message_len(&self) -> usize {
        1 << self.log
    }

    /// Numbers of a code word, twice as many.
    pub fn word_len(&self) -> usize {
        2 << self.log
    }

    /// Turns a message, followed by as many numbers that are overwritten, into its code word. At place `j` stands the value at the
    /// power `rev(j)` of the root of unity, where `rev` turns the `log + 1` bits of a number around.
    ///
    /// # Panics
    /// When the slice has not [`Code::word_len`] numbers.
    pub fn encode(&self, word: &mut [Complex]) {
        assert_eq!(word.len(), self.word_len());
        let mut stages = self.twiddles.iter();
        // The upper half of the coefficients is zero.
        if let Some(twiddles) = stages.next() {
            let (low, high) = word.split_at_mut(1 << self.log);
            low.iter().zip(high).zip(twiddles).for_each(|((&low, high), &twiddle)| *high = low * twiddle);
        }
        for twiddles in stages {
            for block in word.chunks_exact_mut(2 * twiddles.len()) {
                let (low, high) = block.split_at_mut(twiddles.len());
                butterflies(low, high, twiddles);
            }
        }
    }

    /// The number at one place of a message's code word, for a `place` below [`Code::word_len`]. What a message lacks at its end is
    /// zero.
    pub fn value(&self, message: &[Complex], place: usize) -> Complex {
        evaluate(message, self.point(0, place))
    }

    /// The numbers at some places of a message's code word, in their order: less work than [`Code::encode`] for few of them. The
    /// message is followed by as many numbers, and all are overwritten.
    ///
    /// # Panics
    /// When the slice has not [`Code::word_len`] numbers, or a place lies beyond them.
    pub fn values(&self, word: &mut [Complex], places: &[usize]) -> Vec<Complex> {
        assert!(word.len() == self.word_len() && places.iter().all(|&place| place < word.len()));
        let mut wanted: Vec<(usize, usize)> = places.iter().copied().zip(0..).collect();
        wanted.sort_unstable();
        let mut out = vec![Complex::default(); places.len()];
        word[1 << self.log..].fill(Complex::default());
        self.descend(0, word, &wanted, &mut out);
        out
    }

    /// The transform from a stage on, of the blocks alone where something is wanted. A block is a polynomial, and `wanted` has the places in
    /// its code word and where their numbers go.
    fn descend(&self, stage: usize, block: &mut [Complex], wanted: &[(usize, usize)], out: &mut [Complex]) {
        // A value takes as many products as the block has numbers, and each stage to come half of that.
        if 2 * wanted.len() <= self.log as usize + 1 - stage || block.len() == 1 {
            for &(place, index) in wanted {
                out[index] = match block {
                    [number] => *number,
                    _ => evaluate(block, self.point(stage, place)),
                };
            }
            return;
        }
        let half = block.len() / 2;
        let (low, high) = block.split_at_mut(half);
        butterflies(low, high, &self.twiddles[stage]);
        let (first, second) = wanted.split_at(wanted.partition_point(|&(place, _)| place < half));
        let second: Vec<_> = second.iter().map(|&(place, index)| (place - half, index)).collect();
        self.descend(stage + 1, low, first, out);
        self.descend(stage + 1, high, &second, out);
    }

    /// Where the polynomial of a block at a stage has the value that stands at a place of its code word.
    fn point(&self, stage: usize, place: usize) -> Complex {
        let twiddles = &self.twiddles[stage];
        let bits = twiddles.len().trailing_zeros() + 1;
        let power = ((place as u64).reverse_bits() >> (u64::BITS - bits)) as usize;
        // The second half of the powers is the first with another sign.
        match power.checked_sub(twiddles.len()) {
            None => twiddles[power],
            Some(power) => Complex::default() - twiddles[power],
        }
    }
}

/// One stage of the transform of a block.
fn butterflies(low: &mut [Complex], high: &mut [Complex], twiddles: &[Complex]) {
    for ((low, high), &twiddle) in low.iter_mut().zip(high).zip(twiddles) {
        (*low, *high) = (*low + *high, (*low - *high) * twiddle);
    }
}

/// The value of a polynomial.
fn evaluate(coefficients: &[Complex], point: Complex) -> Complex {
    // Four coefficients at a time: what waits for the number before it is one product in four.
    let square = point * point;
    let fourth = square * square;
    coefficients.chunks(4).rev().fold(Complex::default(), |sum, part| {
        let at = |i: usize| part.get(i).copied().unwrap_or_default();
        let (low, high) = (at(0) + at(1) * point, at(2) + at(3) * point);
        sum * fourth + (low + high * square)
    })
}

/// A number of norm 1 and of the order `2^log`.
fn root(log: u32) -> Complex {
    (log..ROOT_LOG).fold(ROOT, |root, _| root * root)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number() -> impl Strategy<Value = Complex> {
        let part = || prop_oneof![0..P, Just(P - 1), Just(0)];
        (part(), part()).prop_map(|(re, im)| Complex { re, im })
    }

    /// The product by 256-bit arithmetic in small steps.
    fn slow(a: Complex, b: Complex) -> Complex {
        let p = u128::from(P);
        let mul = |a: u64, b: u64| u128::from(a) * u128::from(b) % p;
        Complex {
            re: ((mul(a.re, b.re) + p - mul(a.im, b.im)) % p) as u64,
            im: ((mul(a.re, b.im) + mul(a.im, b.re)) % p) as u64,
        }
    }

    #[test]
    fn roots_have_their_orders() {
        let four = |im| Complex::of_integers(4, im);
        assert_eq!(ROOT * four(-1), four(1));
        let minus_one = Complex::of_integers(-1, 0);
        for log in [1, 2, 3, 10, 25, 61] {
            let half = (1..log).fold(root(log), |root, _| root * root);
            assert_eq!(half, minus_one, "{log}");
        }
    }

    #[test]
    fn a_word_has_the_values_of_its_polynomial() {
        for log in 0..6 {
            let code = Code::new(log);
            let mut word: Vec<Complex> = (0..code.message_len() as i64)
                .map(|i| Complex::of_integers(7 - 5 * i * i, 1_000_003 * i - 9))
                .collect();
            let message = word.clone();
            word.resize(code.word_len(), Complex::of_integers(3, 3));
            code.encode(&mut word);
            for (place, &found) in word.iter().enumerate() {
                assert_eq!(code.value(&message, place), found);
                let power = (0..=log).fold(0, |all, bit| all | (place >> bit & 1) << (log - bit));
                let point = (0..power).fold(Complex::ONE, |all, _| slow(all, root(log + 1)));
                let expected = message.iter().rev().fold(Complex::default(), |sum, &c| slow(sum, point) + c);
                assert_eq!(found, expected, "{log} {place}");
            }
        }
    }

    proptest! {
        #[test]
        fn arithmetic_is_the_fields(a in number(), b in number(), c in number()) {
            prop_assert_eq!(a * b, slow(a, b));
            prop_assert_eq!(a * (b + c), a * b + a * c);
            prop_assert_eq!((a - b) + b, a);
            prop_assert!((a * b).re < P && (a * b).im < P && (a + b).re < P && (a - b).im < P);
            prop_assert_eq!(Complex::from_bytes(a.to_bytes()), Some(a));
        }

        #[test]
        fn two_words_agree_in_less_than_half(log in 1u32..7, change in number(), at: prop::sample::Index, seed: u64) {
            prop_assume!(change != Complex::default());
            let code = Code::new(log);
            let encode = |message: &[Complex]| {
                let mut word = message.to_vec();
                word.resize(code.word_len(), Complex::default());
                code.encode(&mut word);
                word
            };
            let first: Vec<Complex> =
                (0..code.message_len() as i64).map(|i| Complex::of_integers((seed >> 8) as i64 ^ i, i)).collect();
            let mut second = first.clone();
            let at = at.index(second.len());
            second[at] = second[at] + change;
            let (a, b) = (encode(&first), encode(&second));
            prop_assert!(a.iter().zip(&b).filter(|(a, b)| a == b).count() < code.message_len());
        }
    }

    #[test]
    fn some_values_are_those_of_the_word() {
        for log in [0, 1, 4, 7] {
            let code = Code::new(log);
            let message: Vec<Complex> =
                (0..code.message_len() as i64).map(|i| Complex::of_integers(i * i - 40, 3 * i - 7)).collect();
            let mut word = message.clone();
            word.resize(code.word_len(), Complex::default());
            code.encode(&mut word);
            for count in [0, 1, 3, 20, 300] {
                let places: Vec<usize> = (0..count).map(|i| (i * 97 + 5) % code.word_len()).collect();
                let mut scratch = message.clone();
                scratch.resize(code.word_len(), Complex::of_integers(9, 9));
                let expected: Vec<Complex> = places.iter().map(|&place| word[place]).collect();
                assert_eq!(code.values(&mut scratch, &places), expected, "{log} {count}");
            }
        }
    }

    #[test]
    fn parts_beyond_the_prime_are_no_numbers() {
        for (re, im) in [(P, 0), (0, P), (u64::MAX, 0), (0, u64::MAX)] {
            assert_eq!(Complex::from_bytes(Complex { re, im }.to_bytes()), None);
        }
    }
}
