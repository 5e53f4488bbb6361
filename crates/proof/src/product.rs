//! A sum-check over the product of two multilinear polynomials: the committed vector and public weights.

use crate::field::{Challenger, E, draw, observe, quadratic};

/// Follows `claim = Σ_x weights(x) · vector(x)` to a point; the claim becomes that of the product there.
pub(crate) fn verify(rounds: &[[E; 2]], claim: &mut E, challenger: &mut Challenger) -> Vec<E> {
    rounds.iter().map(|round| round_claim(*round, claim, challenger)).collect()
}

/// One round: from the claim `h(0) + h(1)` to `h(r)`; returns `r`.
fn round_claim(round: [E; 2], claim: &mut E, challenger: &mut Challenger) -> E {
    observe(challenger, &round);
    let r = draw(challenger);
    *claim = quadratic(round[0], *claim - round[0], round[1], r);
    r
}

#[cfg(feature = "prover")]
pub(crate) mod prover {
    use super::*;
    use crate::field::F;
    use crate::fractions::prover::fold;
    use p3_field::PrimeCharacteristicRing as _;
    use rayon::prelude::*;

    const PARALLEL_MIN: usize = 1 << 12;

    /// Proves `claim = Σ_x weights(x) · vector(x)`; returns the rounds and the point.
    pub(crate) fn prove(
        vector: &[F],
        mut weights: Vec<E>,
        mut claim: E,
        challenger: &mut Challenger,
    ) -> (Vec<[E; 2]>, Vec<E>) {
        let (mut rounds, mut point) = (Vec::new(), Vec::new());
        // The first round multiplies with the base field, and its fold leaves it.
        let half = vector.len() / 2;
        let (low, high) = vector.split_at(half);
        let round = message(&weights, half, |i| (E::from(low[i]), E::from(high[i] - low[i])));
        let r = round_claim(round, &mut claim, challenger);
        rounds.push(round);
        point.push(r);
        let mut folded: Vec<E> = (0..half)
            .into_par_iter()
            .with_min_len(PARALLEL_MIN)
            .map(|i| r * (high[i] - low[i]) + low[i])
            .collect();
        fold(&mut weights, r);
        while folded.len() > 1 {
            let half = folded.len() / 2;
            let round = message(&weights, half, |i| (folded[i], folded[i + half] - folded[i]));
            let r = round_claim(round, &mut claim, challenger);
            rounds.push(round);
            point.push(r);
            fold(&mut folded, r);
            fold(&mut weights, r);
        }
        (rounds, point)
    }

    fn message(weights: &[E], half: usize, vector: impl Fn(usize) -> (E, E) + Sync) -> [E; 2] {
        let term = |i: usize| {
            let (low, step) = vector(i);
            [weights[i] * low, (weights[i + half] - weights[i]) * step]
        };
        let add = |x: [E; 2], y: [E; 2]| [x[0] + y[0], x[1] + y[1]];
        (0..half).into_par_iter().with_min_len(PARALLEL_MIN).map(term).reduce(|| [E::ZERO; 2], add)
    }
}
