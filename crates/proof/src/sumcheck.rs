//! Sum-checks over products of multilinear polynomials: of two, as of a committed vector and public weights, and of three.

use crate::field::{Challenger, E, draw, quadratic};
use crate::value::Value;

/// Follows `claim = Σ_x weights(x) · vector(x)` to a point; the claim becomes that of the product there.
pub(crate) fn verify<V: Value>(rounds: &[[V; 2]], claim: &mut V, challenger: &mut Challenger) -> Vec<E> {
    rounds.iter().map(|round| round_claim(*round, claim, challenger)).collect()
}

/// One round: from the claim `h(0) + h(1)` to `h(r)`; returns `r`.
fn round_claim<V: Value>(round: [V; 2], claim: &mut V, challenger: &mut Challenger) -> E {
    V::absorb(&round, challenger);
    let r = draw(challenger);
    *claim = quadratic(round[0], *claim - round[0], round[1], r);
    r
}

/// As [`verify`], for a product of three: a round is the value at 0 and the coefficients of `X²` and `X³`.
pub(crate) fn verify_cubic<V: Value>(
    rounds: &[[V; 3]],
    claim: &mut V,
    challenger: &mut Challenger,
) -> Vec<E> {
    rounds.iter().map(|round| cubic_round_claim(*round, claim, challenger)).collect()
}

fn cubic_round_claim<V: Value>(round: [V; 3], claim: &mut V, challenger: &mut Challenger) -> E {
    V::absorb(&round, challenger);
    let r = draw(challenger);
    let [at_0, square, cube] = round;
    // h(0) + h(1) is the claim.
    let linear = *claim - at_0 - at_0 - square - cube;
    *claim = at_0 + (linear + (square + cube * r) * r) * r;
    r
}

#[cfg(feature = "prover")]
pub(crate) mod prover {
    use super::*;
    use crate::field::F;
    use crate::fractions::prover::fold;
    use crate::packed::{Packed, WIDTH, lanes, pack, unpack};
    use p3_field::{Algebra, Field, PackedValue as _, PrimeCharacteristicRing as _};
    use rayon::prelude::*;

    const PARALLEL_MIN: usize = 1 << 10;

    /// Proves `claim = Σ_x weights(x) · vector(x)`; returns the rounds, the point, and the vector's value there.
    pub(crate) fn prove(
        vector: &[F],
        weights: Vec<E>,
        mut claim: E,
        challenger: &mut Challenger,
    ) -> (Vec<[E; 2]>, Vec<E>, E) {
        // The first round multiplies with the base field, and its fold leaves it. The vector has at least 2^8 values.
        let mut packed = pack(&weights);
        drop(weights);
        let (low, high) = <F as Field>::Packing::pack_slice(vector).split_at(packed.len() / 2);
        let round = message(&packed, low.len(), |i| (Packed::from(low[i]), Packed::from(high[i] - low[i])));
        let r = round_claim(round.map(lanes), &mut claim, challenger);
        let mut rounds = vec![round.map(lanes)];
        let mut point = vec![r];
        let wide = Packed::from(r);
        let folded = (0..low.len())
            .into_par_iter()
            .with_min_len(PARALLEL_MIN)
            .map(|i| wide * (high[i] - low[i]) + low[i])
            .collect();
        fold(&mut packed, r);
        let end = finish(folded, packed, &mut claim, challenger, &mut rounds, &mut point);
        (rounds, point, end)
    }

    /// As [`prove`] for a vector over the extension.
    pub(crate) fn prove_extension(
        vector: Vec<E>,
        mut weights: Vec<E>,
        mut claim: E,
        challenger: &mut Challenger,
    ) -> (Vec<[E; 2]>, Vec<E>, E) {
        let (mut rounds, mut point) = (Vec::new(), Vec::new());
        let end = if vector.len() < WIDTH {
            fold_out(vector, &mut weights, &mut claim, challenger, &mut rounds, &mut point, |x| x)[0]
        } else {
            finish(pack(&vector), pack(&weights), &mut claim, challenger, &mut rounds, &mut point)
        };
        (rounds, point, end)
    }

    /// All rounds on packs, and then on their elements; returns the vector's value at the point.
    fn finish(
        vector: Vec<Packed>,
        mut weights: Vec<Packed>,
        claim: &mut E,
        challenger: &mut Challenger,
        rounds: &mut Vec<[E; 2]>,
        point: &mut Vec<E>,
    ) -> E {
        let left = fold_out(vector, &mut weights, claim, challenger, rounds, point, lanes);
        let mut weights = unpack(&weights);
        fold_out(unpack(&left), &mut weights, claim, challenger, rounds, point, |x| x)[0]
    }

    /// Rounds until one value is left of the vector and of the weights.
    fn fold_out<T: Algebra<E> + Copy + Send + Sync>(
        mut vector: Vec<T>,
        weights: &mut Vec<T>,
        claim: &mut E,
        challenger: &mut Challenger,
        rounds: &mut Vec<[E; 2]>,
        point: &mut Vec<E>,
        sum: impl Fn(T) -> E,
    ) -> Vec<T> {
        while vector.len() > 1 {
            let half = vector.len() / 2;
            let round = message(weights, half, |i| (vector[i], vector[i + half] - vector[i])).map(&sum);
            let r = round_claim(round, claim, challenger);
            rounds.push(round);
            point.push(r);
            fold(&mut vector, r);
            fold(weights, r);
        }
        vector
    }

    fn message<T: Algebra<E> + Copy + Send + Sync>(
        weights: &[T],
        half: usize,
        vector: impl Fn(usize) -> (T, T) + Sync,
    ) -> [T; 2] {
        let term = |i: usize| {
            let (low, step) = vector(i);
            [weights[i] * low, (weights[i + half] - weights[i]) * step]
        };
        let add = |x: [T; 2], y: [T; 2]| [x[0] + y[0], x[1] + y[1]];
        (0..half).into_par_iter().with_min_len(PARALLEL_MIN).map(term).reduce(|| [T::ZERO; 2], add)
    }

    /// Proves `claim = Σ_x weights(x) · a(x) · b(x)`; returns the rounds, the point, and the values of `a` and `b` there.
    pub(crate) fn prove_cubic(
        mut weights: Vec<E>,
        [mut a, mut b]: [Vec<E>; 2],
        mut claim: E,
        challenger: &mut Challenger,
    ) -> (Vec<[E; 3]>, Vec<E>, [E; 2]) {
        let (mut rounds, mut point) = (Vec::new(), Vec::new());
        while weights.len() > 1 {
            let half = weights.len() / 2;
            let term = |i: usize| {
                let at = |list: &[E]| (list[i], list[i + half] - list[i]);
                let ((w, dw), (a, da), (b, db)) = (at(&weights), at(&a), at(&b));
                let (ab, cross, dab) = (a * b, a * db + da * b, da * db);
                [w * ab, w * dab + dw * cross, dw * dab]
            };
            let add = |x: [E; 3], y: [E; 3]| [x[0] + y[0], x[1] + y[1], x[2] + y[2]];
            let terms = (0..half).into_par_iter().with_min_len(PARALLEL_MIN).map(term);
            let round = terms.reduce(|| [E::ZERO; 3], add);
            let r = cubic_round_claim(round, &mut claim, challenger);
            rounds.push(round);
            point.push(r);
            [&mut weights, &mut a, &mut b].into_iter().for_each(|list| fold(list, r));
        }
        (rounds, point, [a[0], b[0]])
    }
}
