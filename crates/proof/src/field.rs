//! The fields, and multilinear polynomials over them.
//!
//! A polynomial in `n` variables is the list of its 2^n values on the corners of the cube. The first coordinate of a point
//! is the most significant bit of the index.

use p3_challenger::{CanObserve as _, FieldChallenger as _, HashChallenger, SerializingChallenger32};
use p3_field::extension::QuinticTrinomialExtensionField;
use p3_field::{BasedVectorSpace as _, PrimeCharacteristicRing as _, PrimeField32 as _};
use p3_koala_bear::KoalaBear;

use crate::hash::Blake3;
use crate::value::Value;

/// The base field: integers modulo 2^31 - 2^24 + 1.
pub(crate) type F = KoalaBear;
/// The field of challenges: degree 5, 2^154.9 elements.
pub(crate) type E = QuinticTrinomialExtensionField<F>;
/// The transcript as the commitments know it: BLAKE3 over everything sent so far.
pub(crate) type Sponge = SerializingChallenger32<F, HashChallenger<u8, Blake3, 32>>;

/// The transcript.
#[derive(Clone)]
pub(crate) struct Challenger {
    pub(crate) sponge: Sponge,
    /// What a hiding prover adds to its messages.
    #[cfg(feature = "prover")]
    pub(crate) pads: Option<Pads>,
}

/// One-time pads of messages, in their order.
#[cfg(feature = "prover")]
#[derive(Clone)]
pub(crate) struct Pads {
    pub(crate) pads: Vec<E>,
    /// What was sent: each message plus its pad.
    pub(crate) sent: Vec<E>,
}

/// The degree of [`E`] over [`F`].
pub(crate) const DEGREE: usize = 5;

/// A transcript that starts with these bytes.
pub(crate) fn transcript(statement: Vec<u8>) -> Challenger {
    Challenger {
        sponge: Sponge::from_hasher(statement, Blake3),
        #[cfg(feature = "prover")]
        pads: None,
    }
}

/// Sends messages: absorbs them, or with pads what hides them.
pub(crate) fn observe(challenger: &mut Challenger, values: &[E]) {
    #[cfg(feature = "prover")]
    if let Some(Pads { pads, sent }) = &mut challenger.pads {
        let first = sent.len();
        // Without a pad nothing of the message is sent; `sent` is then too long, which the prover finds.
        let masked = |(at, value): (usize, &E)| pads.get(at).map_or(E::ZERO, |pad| *pad + *value);
        sent.extend((first..).zip(values).map(masked));
        absorb(&mut challenger.sponge, &sent[first..]);
        return;
    }
    absorb(&mut challenger.sponge, values);
}

/// Absorbs elements as they are.
pub(crate) fn absorb(sponge: &mut Sponge, values: &[E]) {
    for value in values {
        let coefficients: &[F] = value.as_basis_coefficients_slice();
        sponge.observe_slice(coefficients);
    }
}

pub(crate) fn draw(challenger: &mut Challenger) -> E {
    challenger.sponge.sample_algebra_element()
}

pub(crate) fn draw_point(challenger: &mut Challenger, len: usize) -> Vec<E> {
    (0..len).map(|_| draw(challenger)).collect()
}

/// An integer as a field element; negative ones count down from the modulus.
pub(crate) fn int(value: i32) -> F {
    if value < 0 { -F::from_u32(value.unsigned_abs()) } else { F::from_u32(value.unsigned_abs()) }
}

/// The values of `eq(point, x)` for all corners `x`.
pub(crate) fn eq_table(point: &[E]) -> Vec<E> {
    let mut table = Vec::with_capacity(1 << point.len());
    table.push(E::ONE);
    for coordinate in point.iter().rev() {
        let half = table.len();
        #[cfg(feature = "prover")]
        if half >= 1 << 14 {
            use rayon::prelude::*;
            let high: Vec<E> = table.par_iter().map(|value| *value * *coordinate).collect();
            table.par_iter_mut().zip(&high).for_each(|(low, high)| *low -= *high);
            table.extend(high);
            continue;
        }
        for i in 0..half {
            let high = table[i] * *coordinate;
            table[i] -= high;
            table.push(high);
        }
    }
    table
}

/// `eq(a, b) = Π (a_i b_i + (1 - a_i)(1 - b_i))`.
pub(crate) fn eq(a: &[E], b: &[E]) -> E {
    a.iter().zip(b).map(|(a, b)| (*a * *b).double() - *a - *b + E::ONE).product()
}

/// `eq` of a point and the corner with this index.
pub(crate) fn select(point: &[E], index: usize) -> E {
    let bit = |(bit, coordinate): (usize, &E)| {
        if index >> bit & 1 == 1 { *coordinate } else { E::ONE - *coordinate }
    };
    point.iter().rev().enumerate().map(bit).product()
}

/// The point that is this one within the last 2^`log` places of a vector.
pub(crate) fn at_end(point: &[E], log: usize) -> Vec<E> {
    let (high, low) = point.split_at(point.len() - log);
    high.iter().map(|_| E::ONE).chain(low.iter().copied()).collect()
}

/// What a vector would be at a point with zeros in its last 2^`log` places, from what it is there and at [`at_end`].
pub(crate) fn without_end(point: &[E], log: usize, [whole, end]: [E; 2]) -> E {
    whole - point[..point.len() - log].iter().copied().product::<E>() * end
}

/// `base + r · (low + …)`: the quadratic through `h(0)`, `h(1)` with leading coefficient `top`, at `r`.
pub(crate) fn quadratic<V: Value>(at_0: V, at_1: V, top: V, r: E) -> V {
    at_0 + (at_1 - at_0 - top + top * r) * r
}

/// `Σ_i w_i · c_i` over integers `w` below 2^31 in sum of magnitudes and field elements `c`: lazily reduced sums of products.
#[derive(Clone, Copy, Default)]
pub(crate) struct Lazy(pub(crate) [i64; DEGREE]);

/// The coefficients of an element as integers below 2^31.
pub(crate) fn limbs(value: E) -> [i64; DEGREE] {
    let mut out = [0; DEGREE];
    for (out, coefficient) in out.iter_mut().zip(value.as_basis_coefficients_slice()) {
        *out = i64::from(F::as_canonical_u32(coefficient));
    }
    out
}

impl Lazy {
    /// Adds a product. The caller keeps `Σ |weight| < 2^31`, so that the sums stay below 2^62.
    #[inline(always)]
    pub(crate) fn add(&mut self, weight: i32, limbs: &[i64; DEGREE]) {
        for (sum, limb) in self.0.iter_mut().zip(limbs) {
            *sum += i64::from(weight) * limb;
        }
    }

    pub(crate) fn finish(self) -> E {
        let modulus = i64::from(F::ORDER_U32);
        // The remainder lies in 0..modulus, so the conversion is exact.
        E::from_basis_coefficients_fn(|i| F::from_u32(self.0[i].rem_euclid(modulus) as u32))
    }
}

/// The bound on sums of magnitudes that [`Lazy`] may take.
pub(crate) const LAZY_MAX: u64 = 1 << 31;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn element(seed: u64) -> E {
        let mut state = seed;
        E::from_basis_coefficients_fn(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            F::from_u32((state >> 33) as u32 % F::ORDER_U32)
        })
    }

    proptest! {
        #[test]
        fn a_table_holds_eq_at_every_corner(seeds in prop::collection::vec(any::<u64>(), 0..7)) {
            let point: Vec<E> = seeds.iter().map(|seed| element(*seed)).collect();
            let table = eq_table(&point);
            for (index, value) in table.iter().enumerate() {
                let corner: Vec<E> = (0..point.len())
                    .map(|i| E::from_u32((index >> (point.len() - 1 - i)) as u32 & 1))
                    .collect();
                prop_assert_eq!(*value, eq(&point, &corner));
            }
        }

        /// Tables that are made on several threads.
        #[test]
        fn a_large_table_holds_eq(seed in any::<u64>(), index in 0usize..1 << 16) {
            let point: Vec<E> = (0..16).map(|i| element(seed ^ i)).collect();
            prop_assert_eq!(eq_table(&point)[index], select(&point, index));
        }

        #[test]
        fn lazy_sums_are_sums(terms in prop::collection::vec((-(1i32 << 24)..1 << 24, any::<u64>()), 0..100)) {
            let (mut lazy, mut plain) = (Lazy::default(), E::ZERO);
            for (weight, seed) in terms {
                lazy.add(weight, &limbs(element(seed)));
                plain += element(seed) * int(weight);
            }
            prop_assert_eq!(lazy.finish(), plain);
        }
    }
}
