//! A sum of fractions is zero: GKR over a binary tree (Papini and Haböck, "Improving logarithmic derivative lookups using
//! GKR", ePrint 2023/1284).
//!
//! Level `l` of the tree has 2^l fractions; fraction `i` is the sum of fractions `i` and `i + 2^l` of the level below. The
//! claim about level `l` at a point, one value for the numerators and one for the denominators, becomes a claim about level
//! `l + 1` by a sum-check over `eq(point, x) · (p0 q1 + p1 q0 + λ q0 q1)(x)`. In each round the prover sends the quadratic
//! that is left when the factor of `eq` in that variable is taken out (Gruen, ePrint 2024/108): its value at 0 and its leading
//! coefficient.

use p3_field::{Field as _, PrimeCharacteristicRing as _};

use crate::Error;
use crate::field::{Challenger, E, draw, quadratic};
use crate::value::{Residuals, Value};

/// Why a sum of fractions is refused that is not zero or has a zero in a denominator.
pub(crate) const NOT_IN_TABLE: &str = "a value is not in its table";

/// The messages about one level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Level<V = E> {
    /// Value at 0 and leading coefficient of each round's quadratic.
    pub(crate) rounds: Vec<[V; 2]>,
    /// Numerators and denominators of the two halves at the point of the sum-check: `p0, p1, q0, q1`.
    pub(crate) ends: [V; 4],
}

/// A claim about the leaves.
pub(crate) struct Leaves<V = E> {
    pub(crate) point: Vec<E>,
    pub(crate) numerator: V,
    pub(crate) denominator: V,
}

/// Follows the claim from the root, which must be zero, to the leaves. Also returns the root's denominator, which the caller holds to be no
/// zero.
///
/// # Errors
/// [`Error::Rejected`].
pub(crate) fn verify<V: Value>(
    levels: &[Level<V>],
    challenger: &mut Challenger,
    residuals: &mut Residuals,
) -> Result<(Leaves<V>, V::Product), Error> {
    let zero = V::known(E::ZERO);
    let mut leaves = Leaves { point: Vec::new(), numerator: zero, denominator: zero };
    let mut root = zero.times(zero);
    for (number, level) in levels.iter().enumerate() {
        let [p0, p1, q0, q1] = level.ends;
        let mut point = Vec::with_capacity(number + 1);
        if number == 0 {
            V::equal(p0.times(q1) + p1.times(q0), zero, residuals, NOT_IN_TABLE)?;
            root = q0.times(q1);
        } else {
            let lambda = draw(challenger);
            let mut claim = leaves.numerator + leaves.denominator * lambda;
            if level.rounds.len() != number {
                return Err(Error::Rejected("a sum-check has another number of rounds"));
            }
            for (coordinate, round) in leaves.point.iter().zip(&level.rounds) {
                point.push(round_claim(*coordinate, *round, &mut claim, challenger)?);
            }
            let product = p0.times(q1) + q0.times(p1 + q1 * lambda);
            V::equal(product, claim, residuals, "a sum-check of the look-ups fails")?;
        }
        V::absorb(&level.ends, challenger);
        let mu = draw(challenger);
        point.insert(0, mu);
        leaves = Leaves { point, numerator: p0 + (p1 - p0) * mu, denominator: q0 + (q1 - q0) * mu };
    }
    Ok((leaves, root))
}

/// One round: from the claim `(1 - c) h(0) + c h(1)` to `h(r)`; returns `r`.
pub(crate) fn round_claim<V: Value>(
    c: E,
    round: [V; 2],
    claim: &mut V,
    challenger: &mut Challenger,
) -> Result<E, Error> {
    V::absorb(&round, challenger);
    let r = draw(challenger);
    // Zero with probability 2^-155; the honest prover cannot go on then either.
    let inverse = c.try_inverse().ok_or(Error::Rejected("a challenge is zero"))?;
    let at_1 = (*claim - round[0] * (E::ONE - c)) * inverse;
    *claim = quadratic(round[0], at_1, round[1], r);
    Ok(r)
}

#[cfg(feature = "prover")]
pub(crate) mod prover {
    use super::*;
    use crate::field::observe;
    use crate::packed::{Packed, WIDTH, lanes, pack, unpack};
    use p3_field::Algebra;
    use rayon::prelude::*;

    /// Below this many terms a round is not worth splitting over threads.
    const PARALLEL_MIN: usize = 1 << 10;

    /// Numerators and denominators of one level: packed as long as both halves are.
    enum Fractions {
        Wide([Vec<Packed>; 2]),
        Narrow([Vec<E>; 2]),
    }

    /// Proves that the fractions sum to zero. `numerators` and `denominators` have one power-of-two length of at least 2.
    ///
    /// # Errors
    /// [`Error::Rejected`] when a challenge is zero.
    pub(crate) fn prove(
        numerators: Vec<E>,
        denominators: Vec<E>,
        challenger: &mut Challenger,
    ) -> Result<(Vec<Level>, Leaves), Error> {
        let mut tree = Vec::new();
        let mut next = if numerators.len() >= 2 * WIDTH {
            Fractions::Wide([pack(&numerators), pack(&denominators)])
        } else {
            Fractions::Narrow([numerators, denominators])
        };
        loop {
            let above = match &next {
                Fractions::Wide(level) => {
                    let sums = sums(level);
                    if sums[0].len() > 1 {
                        Fractions::Wide(sums)
                    } else {
                        Fractions::Narrow(sums.map(|list| unpack(&list)))
                    }
                }
                Fractions::Narrow(level) => Fractions::Narrow(sums(level)),
            };
            tree.push(std::mem::replace(&mut next, above));
            if matches!(&next, Fractions::Narrow([p, _]) if p.len() == 1) {
                break;
            }
        }
        let mut levels = Vec::with_capacity(tree.len());
        let mut leaves = Leaves { point: Vec::new(), numerator: E::ZERO, denominator: E::ZERO };
        for fractions in tree.into_iter().rev() {
            let mut level = Level { rounds: Vec::with_capacity(levels.len()), ends: [E::ZERO; 4] };
            let mut point = Vec::with_capacity(levels.len() + 1);
            let lambda = if levels.is_empty() { E::ZERO } else { draw(challenger) };
            let mut claim = leaves.numerator + lambda * leaves.denominator;
            let (narrow, wide) = suffixes(&leaves.point);
            let mut coordinates = leaves.point.iter();
            let mut round = |message: [E; 2]| {
                level.rounds.push(message);
                // There are as many coordinates as rounds.
                let coordinate = coordinates.next().copied().unwrap_or(E::ZERO);
                let r = round_claim(coordinate, message, &mut claim, challenger)?;
                point.push(r);
                Ok::<E, Error>(r)
            };
            let rest = match fractions {
                Fractions::Narrow(level) => halves(level, lambda),
                Fractions::Wide(level) => {
                    let mut parts = halves(level, lambda);
                    for eq in wide.iter().rev() {
                        let r = round(message(&parts, eq).map(lanes))?;
                        parts.iter_mut().for_each(|list| fold(list, r));
                    }
                    parts.map(|list| unpack(&list))
                }
            };
            let mut parts = rest;
            for eq in narrow.iter().rev() {
                if parts[0].len() == 1 {
                    break;
                }
                let r = round(message(&parts, eq))?;
                parts.iter_mut().for_each(|list| fold(list, r));
            }
            let [p0, q1, q0, p1] = parts.map(|list| list[0]);
            level.ends = [p0, p1 - lambda * q1, q0, q1];
            observe(challenger, &level.ends);
            let mu = draw(challenger);
            point.insert(0, mu);
            let [p0, p1, q0, q1] = level.ends;
            leaves = Leaves { point, numerator: p0 + mu * (p1 - p0), denominator: q0 + mu * (q1 - q0) };
            levels.push(level);
        }
        Ok((levels, leaves))
    }

    /// The level above: fraction `i` plus fraction `i + half`.
    fn sums<T: Algebra<E> + Copy + Send + Sync>([p, q]: &[Vec<T>; 2]) -> [Vec<T>; 2] {
        let half = p.len() / 2;
        let ((p0, p1), (q0, q1)) = (p.split_at(half), q.split_at(half));
        let sum = |i: usize| (p0[i] * q1[i] + p1[i] * q0[i], q0[i] * q1[i]);
        let (p, q) = (0..half).into_par_iter().with_min_len(PARALLEL_MIN).map(sum).unzip();
        [p, q]
    }

    /// `p0, q1, q0, p1 + λ q1`: with these, `p0 q1 + q0 (p1 + λ q1)` is two products of two.
    fn halves<T: Algebra<E> + Copy + Send + Sync>([mut p, mut q]: [Vec<T>; 2], lambda: E) -> [Vec<T>; 4] {
        let half = p.len() / 2;
        let (mut p1, q1) = (p.split_off(half), q.split_off(half));
        let pairs = p1.par_iter_mut().with_min_len(PARALLEL_MIN).zip(&q1);
        pairs.for_each(|(p1, q1)| *p1 += *q1 * lambda);
        [p, q1, q, p1]
    }

    /// The tables of `eq` over the last 0, 1, … coordinates, all but the first of the point: those shorter than a pack, and the
    /// others.
    fn suffixes(point: &[E]) -> (Vec<Vec<E>>, Vec<Vec<Packed>>) {
        let (mut narrow, mut wide) = (Vec::new(), Vec::new());
        let mut table = vec![E::ONE];
        for left in (0..point.len()).rev() {
            if table.len() >= WIDTH {
                wide.push(pack(&table));
                for coordinate in point[1..=left].iter().rev() {
                    let next = doubled(&wide[wide.len() - 1], *coordinate);
                    wide.push(next);
                }
                break;
            }
            narrow.push(table.clone());
            if left > 0 {
                table = doubled(&table, point[left]);
            }
        }
        (narrow, wide)
    }

    fn doubled<T: Algebra<E> + Copy>(table: &[T], coordinate: E) -> Vec<T> {
        let mut next = Vec::with_capacity(2 * table.len());
        let high: Vec<T> = table.iter().map(|value| *value * coordinate).collect();
        next.extend(table.iter().zip(&high).map(|(value, high)| *value - *high));
        next.extend(high);
        next
    }

    /// `Σ_x eq(x) · (a b + c d)` in the first variable: value at 0 and leading coefficient.
    fn message<T: Algebra<E> + Copy + Send + Sync>([a, b, c, d]: &[Vec<T>; 4], eq: &[T]) -> [T; 2] {
        let half = eq.len();
        let term = |i: usize| {
            let j = i + half;
            let at_0 = a[i] * b[i] + c[i] * d[i];
            let top = (a[j] - a[i]) * (b[j] - b[i]) + (c[j] - c[i]) * (d[j] - d[i]);
            [eq[i] * at_0, eq[i] * top]
        };
        let add = |x: [T; 2], y: [T; 2]| [x[0] + y[0], x[1] + y[1]];
        let zero = || [T::ZERO; 2];
        if half < PARALLEL_MIN {
            (0..half).map(term).fold(zero(), add)
        } else {
            (0..half).into_par_iter().with_min_len(PARALLEL_MIN).map(term).reduce(zero, add)
        }
    }

    /// Sets the first variable to `r`.
    pub(crate) fn fold<T: Algebra<E> + Copy + Send + Sync>(values: &mut Vec<T>, r: E) {
        let half = values.len() / 2;
        let (low, high) = values.split_at_mut(half);
        let fold = |(low, high): (&mut T, &mut T)| *low += (*high - *low) * r;
        if half < PARALLEL_MIN {
            low.iter_mut().zip(high).for_each(fold);
        } else {
            low.par_iter_mut().with_min_len(PARALLEL_MIN).zip(high).for_each(fold);
        }
        values.truncate(half);
    }
}
