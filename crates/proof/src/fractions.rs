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
use crate::field::{Challenger, E, draw, observe, quadratic};

/// The messages about one level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    /// Value at 0 and leading coefficient of each round's quadratic.
    pub(crate) rounds: Vec<[E; 2]>,
    /// Numerators and denominators of the two halves at the point of the sum-check: `p0, p1, q0, q1`.
    pub(crate) ends: [E; 4],
}

/// A claim about the leaves.
pub(crate) struct Leaves {
    pub(crate) point: Vec<E>,
    pub(crate) numerator: E,
    pub(crate) denominator: E,
}

/// Follows the claim from the root, which must be zero, to the leaves.
///
/// # Errors
/// [`Error::Rejected`].
pub(crate) fn verify(levels: &[Level], challenger: &mut Challenger) -> Result<Leaves, Error> {
    let mut leaves = Leaves { point: Vec::new(), numerator: E::ZERO, denominator: E::ZERO };
    for (number, level) in levels.iter().enumerate() {
        let [p0, p1, q0, q1] = level.ends;
        let mut point = Vec::with_capacity(number + 1);
        if number == 0 {
            if p0 * q1 + p1 * q0 != E::ZERO || q0 * q1 == E::ZERO {
                return Err(Error::Rejected("a value is not in its table"));
            }
        } else {
            let lambda = draw(challenger);
            let mut claim = leaves.numerator + lambda * leaves.denominator;
            if level.rounds.len() != number {
                return Err(Error::Rejected("a sum-check has another number of rounds"));
            }
            for (coordinate, round) in leaves.point.iter().zip(&level.rounds) {
                point.push(round_claim(*coordinate, *round, &mut claim, challenger)?);
            }
            if p0 * q1 + q0 * (p1 + lambda * q1) != claim {
                return Err(Error::Rejected("a sum-check of the look-ups fails"));
            }
        }
        observe(challenger, &level.ends);
        let mu = draw(challenger);
        point.insert(0, mu);
        leaves = Leaves { point, numerator: p0 + mu * (p1 - p0), denominator: q0 + mu * (q1 - q0) };
    }
    Ok(leaves)
}

/// One round: from the claim `(1 - c) h(0) + c h(1)` to `h(r)`; returns `r`.
pub(crate) fn round_claim(
    c: E,
    round: [E; 2],
    claim: &mut E,
    challenger: &mut Challenger,
) -> Result<E, Error> {
    observe(challenger, &round);
    let r = draw(challenger);
    // Zero with probability 2^-155; the honest prover cannot go on then either.
    let inverse = c.try_inverse().ok_or(Error::Rejected("a challenge is zero"))?;
    let at_1 = (*claim - (E::ONE - c) * round[0]) * inverse;
    *claim = quadratic(round[0], at_1, round[1], r);
    Ok(r)
}

#[cfg(feature = "prover")]
pub(crate) mod prover {
    use super::*;
    use rayon::prelude::*;

    /// Below this many terms a round is not worth splitting over threads.
    const PARALLEL_MIN: usize = 1 << 12;

    /// Proves that the fractions sum to zero. `numerators` and `denominators` have one power-of-two length of at least 2.
    ///
    /// # Errors
    /// [`Error::Rejected`] when a challenge is zero.
    pub(crate) fn prove(
        numerators: Vec<E>,
        denominators: Vec<E>,
        challenger: &mut Challenger,
    ) -> Result<(Vec<Level>, Leaves), Error> {
        let mut tree = vec![(numerators, denominators)];
        while let Some((p, q)) = tree.last()
            && p.len() > 2
        {
            let half = p.len() / 2;
            let ((p0, p1), (q0, q1)) = (p.split_at(half), q.split_at(half));
            let sum = |i: usize| (p0[i] * q1[i] + p1[i] * q0[i], q0[i] * q1[i]);
            let level = (0..half).into_par_iter().with_min_len(PARALLEL_MIN).map(sum).unzip();
            tree.push(level);
        }
        let mut levels = Vec::with_capacity(tree.len());
        let mut leaves = Leaves { point: Vec::new(), numerator: E::ZERO, denominator: E::ZERO };
        for (number, (mut p, mut q)) in tree.into_iter().rev().enumerate() {
            let half = p.len() / 2;
            let (mut p1, mut q1) = (p.split_off(half), q.split_off(half));
            let mut level = Level { rounds: Vec::with_capacity(number), ends: [E::ZERO; 4] };
            let mut point = Vec::with_capacity(number + 1);
            let mut lambda = E::ZERO;
            if number > 0 {
                lambda = draw(challenger);
                let mut claim = leaves.numerator + lambda * leaves.denominator;
                // p0 q1 + q0 (p1 + λ q1): two products of two.
                p1.par_iter_mut()
                    .with_min_len(PARALLEL_MIN)
                    .zip(&q1)
                    .for_each(|(p1, q1)| *p1 += lambda * *q1);
                let rest = suffixes(&leaves.point);
                for (coordinate, rest) in leaves.point.iter().zip(rest.iter().rev()) {
                    let round = message(&p, &q1, &q, &p1, rest);
                    level.rounds.push(round);
                    let r = round_claim(*coordinate, round, &mut claim, challenger)?;
                    point.push(r);
                    [&mut p, &mut q1, &mut q, &mut p1].into_iter().for_each(|list| fold(list, r));
                }
            }
            level.ends = [p[0], p1[0] - lambda * q1[0], q[0], q1[0]];
            observe(challenger, &level.ends);
            let mu = draw(challenger);
            point.insert(0, mu);
            let [p0, p1, q0, q1] = level.ends;
            leaves = Leaves { point, numerator: p0 + mu * (p1 - p0), denominator: q0 + mu * (q1 - q0) };
            levels.push(level);
        }
        Ok((levels, leaves))
    }

    /// The tables of `eq` over the last 0, 1, … coordinates, all but the first of the point.
    fn suffixes(point: &[E]) -> Vec<Vec<E>> {
        let mut tables = vec![vec![E::ONE]];
        for coordinate in point[1..].iter().rev() {
            let last = &tables[tables.len() - 1];
            let mut next = Vec::with_capacity(2 * last.len());
            let high: Vec<E> = last.iter().map(|value| *value * *coordinate).collect();
            next.extend(last.iter().zip(&high).map(|(value, high)| *value - *high));
            next.extend(high);
            tables.push(next);
        }
        tables
    }

    /// `Σ_x eq(x) · (a b + c d)` in the first variable: value at 0 and leading coefficient.
    fn message(a: &[E], b: &[E], c: &[E], d: &[E], eq: &[E]) -> [E; 2] {
        let half = eq.len();
        let term = |i: usize| {
            let j = i + half;
            let at_0 = a[i] * b[i] + c[i] * d[i];
            let top = (a[j] - a[i]) * (b[j] - b[i]) + (c[j] - c[i]) * (d[j] - d[i]);
            [eq[i] * at_0, eq[i] * top]
        };
        let add = |x: [E; 2], y: [E; 2]| [x[0] + y[0], x[1] + y[1]];
        if half < PARALLEL_MIN {
            (0..half).map(term).fold([E::ZERO; 2], add)
        } else {
            (0..half).into_par_iter().with_min_len(PARALLEL_MIN).map(term).reduce(|| [E::ZERO; 2], add)
        }
    }

    /// Sets the first variable to `r`.
    pub(crate) fn fold(values: &mut Vec<E>, r: E) {
        let half = values.len() / 2;
        let (low, high) = values.split_at_mut(half);
        let fold = |(low, high): (&mut E, &mut E)| *low += r * (*high - *low);
        if half < PARALLEL_MIN {
            low.iter_mut().zip(high).for_each(fold);
        } else {
            low.par_iter_mut().with_min_len(PARALLEL_MIN).zip(high).for_each(fold);
        }
        values.truncate(half);
    }
}
