//! The commitment of proofs that hide: WHIR with zero knowledge (ePrint 2026/391) from Plonky3, over BLAKE3 Merkle trees with salted leaves.
//!
//! Every committed code word carries as many random coefficients as positions of it are opened, every sum-check is masked, and what is sent in
//! the clear at the end is padded. Leaves are salted because a few coefficients of randomness leave a guess at the rest testable: with the
//! opened positions, a guess gives all others, and the hashes of leaves would tell whether they fit.
//!
//! Distances are those of unique decoding, so that every commitment stands for one vector, and soundness needs no lists.

use p3_commit::MultilinearPcs;
use p3_merkle_tree::MerkleTreeHidingMmcs;
use p3_multilinear_util::point::Point;
use p3_symmetric::MerkleCap;
use p3_whir::{
    FoldingFactor, HidingWhirPcs, ProtocolParameters, SecurityAssumption, ZkParameters, ZkWhirConfig,
    ZkWhirProof,
};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::Error;
use crate::circuit::LOG_MAX;
use crate::commitment::{Dft, FIELD_BITS, Leaf, Node, Root};
use crate::field::{Challenger, E, F, Sponge};
use crate::hash::Blake3;

/// Elements of salt in a leaf: 155 bits.
const SALT: usize = 5;

type Trees = MerkleTreeHidingMmcs<F, u8, Leaf, Node, StdRng, 2, 32, SALT>;
type Whir = HidingWhirPcs<E, F, Dft, Trees, Sponge, StdRng>;

/// The opening of a hiding commitment at some points, with the values there.
pub(crate) type Opening = ZkWhirProof<F, E, Trees>;

/// The smallest base-two logarithm of a vector: below, the random coefficients do not fit.
pub(crate) const LOG_MIN: usize = 10;

/// Bits that each error term is asked to have, as far as the library counts it; 14 of them may be proof of work. The library counts queries of
/// inner rounds for codes without random coefficients: [`security_bits`] counts with them.
const TARGET_BITS: usize = 106;
const WORK_BITS: usize = 14;

/// The protocol for vectors of 2^`log` elements: how many variables each round folds, so that 6 are left, and the rates.
fn config(log: usize) -> Result<ZkWhirConfig<E, F, Sponge>, Error> {
    let (folds, starting_log_inv_rate, rate) = match log {
        ..14 => (vec![log.saturating_sub(6)], 4, 0),
        14..16 => (vec![log - 9, 3], 4, 5),
        16..18 => (vec![log - 10, 4], 3, 5),
        18..21 => (vec![log - 14, 4, 4], 2, 5),
        21..23 => (vec![log - 16, 5, 5], 2, 6),
        _ => (vec![log - 18, 6, 6], 2, 6),
    };
    let parameters = ProtocolParameters {
        starting_log_inv_rate,
        round_log_inv_rates: vec![rate; folds.len() - 1],
        folding_factor: FoldingFactor::PerRound(folds),
        soundness_type: SecurityAssumption::UniqueDecoding,
        security_level: TARGET_BITS,
        pow_bits: WORK_BITS,
    };
    // Round polynomials have degree 2, so masks have three coefficients.
    let hiding = ZkParameters { ell_zk: 3, mask_log_inv_rate: 4 };
    ZkWhirConfig::new(log, parameters, hiding).map_err(|error| Error::Prover(error.to_string()))
}

fn whir(log: usize, domain: Dft, rng: &mut StdRng) -> Result<Whir, Error> {
    let trees = Trees::new(Leaf::new(Blake3), Node::new(Blake3), 0, StdRng::from_rng(rng));
    Ok(Whir::new(config(log)?, domain, trees, StdRng::from_rng(rng)))
}

/// The proven soundness of one opening at up to 16 points, in bits: the sum of all errors, for code words within half the distance of
/// the codes that are used, random coefficients included. `None` when there is no commitment of such a size.
pub(crate) fn security_bits(log: usize) -> Option<f64> {
    let config = (LOG_MIN..=LOG_MAX).contains(&log).then(|| config(log).ok())??;
    let field = 2f64.powf(-FIELD_BITS);
    // What one query misses of a word that is no code word's neighbour: one minus half the distance.
    let misses = |dimension: usize, domain: f64, queries: usize, work: usize| {
        ((1.0 + dimension as f64 / domain) / 2.0).powi(queries as i32) * 2f64.powi(-(work as i32))
    };
    let mut error = 15.0 * field;
    let (mut variables, mut domain) = (log, (log + config.params().starting_log_inv_rate) as i32);
    let folds = config.folding_schedule();
    for (round, fold) in folds.iter().enumerate() {
        // Masked sum-checks of degree 2 and their combination with the masks; half a fold of words that are far from the code
        // is close to it for at most as many challenges as the domain has points.
        error += (1.0 + *fold as f64 * (2.0 + 2f64.powi(domain))) * field;
        let (rows, height) = (1 << (variables - fold), 2f64.powi(domain - *fold as i32));
        let randomness = config.oracle_randomness()[round];
        let (queries, work) = match config.round_parameters().get(round) {
            Some(parameters) => {
                error += (1 + parameters.num_queries + parameters.ood_samples) as f64 * field;
                let next = variables - fold + parameters.log_inv_rate;
                domain = next as i32;
                (parameters.num_queries, parameters.pow_bits)
            }
            None => {
                error += (1.0 + height) * field;
                (config.randomized_terminal().num_queries, config.randomized_terminal().pow_bits)
            }
        };
        if queries > randomness || work > WORK_BITS {
            return None;
        }
        error += misses(rows + randomness, height, queries, work);
        variables -= fold;
    }
    for group in config.mask_groups() {
        let domain = group.shape.domain_size as f64;
        let dimension = group.shape.message_len + group.shape.randomness_len;
        error += misses(dimension, domain, config.mask_queries(), 0) + domain * field;
        if config.mask_queries() > group.shape.randomness_len {
            return None;
        }
    }
    Some(-error.log2())
}

/// Checks an opening of `root` at points, whose first coordinate is the most significant. The values are in the opening.
///
/// # Errors
/// [`Error::Rejected`].
pub(crate) fn verify(
    root: &Root,
    opening: &Opening,
    points: &[Vec<E>],
    challenger: &mut Challenger,
) -> Result<(), Error> {
    const INVALID: Error = Error::Rejected("the opening of the hiding commitment fails");
    let (rounds, last) = (&opening.rounds, &opening.base_case);
    let caps = opening
        .sumcheck_mask_commitments
        .iter()
        .chain(rounds.iter().flat_map(|round| [&round.commitment, &round.mask_commitment]))
        .chain([&last.fresh_main_commitment])
        .chain(&last.fresh_mask_commitments);
    if caps.into_iter().any(|cap| cap.num_roots() != 1) {
        return Err(INVALID);
    }
    let log = points.first().map_or(0, Vec::len);
    // A verifier draws nothing.
    let whir = whir(log, Dft::default(), &mut StdRng::from_seed([0; 32]))?;
    let points = points.iter().map(|point| Point::new(point.clone())).collect();
    let root = MerkleCap::new(vec![*root]);
    whir.verify(&root, opening, &mut challenger.sponge, points).map_err(|_| INVALID)
}

#[cfg(feature = "prover")]
pub(crate) mod prover {
    use super::*;
    use p3_multilinear_util::poly::Poly;

    /// A hiding commitment that can be opened once.
    pub(crate) struct Committed {
        whir: Whir,
        root: MerkleCap<F, Root>,
        data: <Whir as MultilinearPcs<E, Sponge>>::ProverData,
    }

    impl Committed {
        pub(crate) fn root(&self) -> Result<Root, Error> {
            self.root.roots().first().copied().ok_or_else(|| Error::Prover("a tree without root".into()))
        }

        /// The vector's value at a point.
        pub(crate) fn value(&self, point: &[E]) -> E {
            self.data.message.eval_base(&Point::new(point.to_vec()))
        }
    }

    /// Commits to a vector of a power-of-two length.
    ///
    /// # Errors
    /// [`Error::Prover`] when there is no commitment to vectors of this length.
    pub(crate) fn commit(vector: Vec<F>, rng: &mut StdRng) -> Result<Committed, Error> {
        let log = vector.len().trailing_zeros() as usize;
        let domain = Dft::new(1 << config(log)?.max_fft_size());
        let whir = whir(log, domain, rng)?;
        // The transcript of a proof absorbs the root as all others.
        let mut other = crate::field::transcript(Vec::new()).sponge;
        let (root, data) =
            whir.commit(Poly::new(vector), &mut other).map_err(|error| Error::Prover(error.to_string()))?;
        Ok(Committed { whir, root, data })
    }

    /// Opens a commitment at points.
    ///
    /// # Errors
    /// [`Error::Prover`].
    pub(crate) fn open(
        Committed { whir, root, data }: Committed,
        points: &[Vec<E>],
        challenger: &mut Challenger,
    ) -> Result<Opening, Error> {
        // As the library's verifier does.
        MultilinearPcs::<E, Sponge>::observe_commitment(&whir, &root, &mut challenger.sponge);
        let points = points.iter().map(|point| Point::new(point.clone())).collect();
        whir.open(data, points, &mut challenger.sponge).map_err(|error| Error::Prover(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_more_than_a_hundred_bits() {
        for log in LOG_MIN..=LOG_MAX {
            let bits = security_bits(log).unwrap_or(0.0);
            println!("2^{log}: {bits:.2} bits");
            assert!((103.0..128.0).contains(&bits), "2^{log}: {bits}");
        }
        assert!(security_bits(LOG_MIN - 1).is_none() && security_bits(LOG_MAX + 1).is_none());
    }
}
