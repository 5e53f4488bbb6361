//! The commitment to a vector and its opening at a point: WHIR (ePrint 2024/1586) from Plonky3, over BLAKE3 Merkle trees.

use p3_blake3::Blake3;
use p3_commit::MultilinearPcs;
use p3_dft::Radix2DFTSmallBatch;
use p3_merkle_tree::MerkleTreeMmcs;
use p3_multilinear_util::point::Point;
use p3_sumcheck::layout::PrefixProver;
use p3_sumcheck::{OpeningBatch, OpeningProtocol, PrescribedPointPcs as _, TableShape, TableSpec};
use p3_symmetric::{CompressionFunctionFromHasher, MerkleCap, SerializingHasher};
use p3_whir::{FoldingFactor, PcsProof, ProtocolParameters, SecurityAssumption, WhirConfig, WhirProver};

use crate::Error;
use crate::circuit::{LOG_MAX, LOG_MIN};
use crate::field::{Challenger, E, F};

type Leaf = SerializingHasher<Blake3>;
type Node = CompressionFunctionFromHasher<Blake3, 2, 32>;
type Trees = MerkleTreeMmcs<F, u8, Leaf, Node, 2, 32>;
type Dft = Radix2DFTSmallBatch<F>;
type Whir = WhirProver<E, F, Dft, Trees, Challenger, PrefixProver<F, E>>;

/// The opening of a commitment.
pub(crate) type Opening = PcsProof<F, E, Trees>;

/// Bits that each error term of the commitment is held to, 14 of which may be proof of work. Their sum over all rounds
/// stays above 100: see [`security_bits`].
const TARGET_BITS: usize = 106;
const WORK_BITS: usize = 14;

/// The protocol for vectors of 2^`log` elements: rate 1/4, then folding by 16 (by 32 when large), in the list-decoding
/// regime up to the Johnson bound, which is proved.
fn config(log: usize) -> Result<WhirConfig<E, F, Challenger>, Error> {
    let parameters = ProtocolParameters {
        starting_log_inv_rate: 2,
        round_log_inv_rates: Vec::new(),
        folding_factor: FoldingFactor::Constant(if log < 18 { 4 } else { 5 }),
        soundness_type: SecurityAssumption::JohnsonBound,
        security_level: TARGET_BITS,
        pow_bits: WORK_BITS,
    };
    WhirConfig::new(log, parameters).map_err(|error| Error::Prover(error.to_string()))
}

fn whir(log: usize, domain: Dft) -> Result<Whir, Error> {
    Ok(Whir::new(config(log)?, domain, Trees::new(Leaf::new(Blake3), Node::new(Blake3), 0)))
}

fn schedule(log: usize) -> OpeningProtocol {
    OpeningProtocol::new(vec![TableSpec::new(
        TableShape::new(log, 1),
        vec![OpeningBatch::new(vec![0], vec![])],
    )])
}

/// The proven soundness, in bits, of proofs whose committed vector has 2^`log` elements: the sum of the errors of the
/// commitment, with its work, and of the sum-checks and the look-ups, for every codeword that the commitment may stand for.
pub(crate) fn security_bits(log: usize) -> Option<f64> {
    if !(LOG_MIN..=LOG_MAX).contains(&log) {
        return None;
    }
    let security = whir(log, Dft::default()).ok()?.prescribed_security(&schedule(log))?;
    // 2^27 covers the look-ups (the roots of a rational function with at most 2^24 poles of degree 3 in the challenges) and
    // the rounds of both sum-checks (degree 3, at most 24 · 25 of them).
    let outer = security.log2_max_candidates + 27.0 - 154.9;
    Some(-(2f64.powf(-security.error().bits()) + 2f64.powf(outer)).log2())
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_size_has_more_than_a_hundred_bits() {
        for log in super::LOG_MIN..=super::LOG_MAX {
            let bits = super::security_bits(log).unwrap_or(0.0);
            assert!((100.0..128.0).contains(&bits), "2^{log}: {bits}");
        }
        assert!(super::security_bits(7).is_none() && super::security_bits(25).is_none());
    }
}

/// A Merkle root.
pub(crate) type Root = [u8; 32];

/// Checks an opening of `root` at `point`, whose first coordinate is the most significant; returns the value.
///
/// # Errors
/// [`Error::Rejected`].
pub(crate) fn verify(
    root: &Root,
    opening: &Opening,
    point: &[E],
    challenger: &mut Challenger,
) -> Result<E, Error> {
    const INVALID: Error = Error::Rejected("the opening of the commitment fails");
    let caps = opening.whir.rounds.iter().map(|round| &round.commitment);
    if caps.into_iter().flatten().any(|cap| cap.num_roots() != 1) {
        return Err(INVALID);
    }
    let root = MerkleCap::new(vec![*root]);
    let points = [Point::new(point.to_vec())];
    let evals = whir(point.len(), Dft::default())?
        .verify_at(&root, opening, &schedule(point.len()), &points, challenger)
        .map_err(|_| INVALID)?;
    evals.first().and_then(|batch| batch.current().first().copied()).ok_or(INVALID)
}

/// Absorbs a commitment as the prover did when it committed.
///
/// # Errors
/// [`Error::Prover`] when there is no commitment to vectors of 2^`log` elements.
pub(crate) fn observe(root: &Root, log: usize, challenger: &mut Challenger) -> Result<(), Error> {
    let whir = whir(log, Dft::default())?;
    MultilinearPcs::<E, Challenger>::observe_commitment(&whir, &MerkleCap::new(vec![*root]), challenger);
    Ok(())
}

#[cfg(feature = "prover")]
pub(crate) mod prover {
    use super::*;
    use p3_matrix::dense::RowMajorMatrix;
    use p3_sumcheck::layout::{Layout as _, Table};

    /// A commitment that can be opened.
    pub(crate) struct Committed {
        whir: Whir,
        log: usize,
        data: <Whir as MultilinearPcs<E, Challenger>>::ProverData,
    }

    /// Commits to a vector of a power-of-two length and absorbs the commitment.
    ///
    /// # Errors
    /// [`Error::Prover`] when there is no commitment to vectors of this length.
    pub(crate) fn commit(vector: Vec<F>, challenger: &mut Challenger) -> Result<(Root, Committed), Error> {
        let log = vector.len().trailing_zeros() as usize;
        let config = config(log)?;
        let whir = whir(log, Dft::new(1 << config.max_fft_size()))?;
        let folding = config.folding_schedule()[0];
        let witness = PrefixProver::<F, E>::new_witness(
            vec![Table::new(RowMajorMatrix::new(vector, 1 << log))],
            folding,
        );
        let (cap, data) = MultilinearPcs::<E, Challenger>::commit(&whir, witness, challenger)
            .map_err(|error| Error::Prover(error.to_string()))?;
        let root = cap.roots().first().copied().ok_or_else(|| Error::Prover("a tree without root".into()))?;
        Ok((root, Committed { whir, log, data }))
    }

    /// Opens a commitment at a point.
    ///
    /// # Errors
    /// [`Error::Prover`].
    pub(crate) fn open(
        committed: Committed,
        point: &[E],
        challenger: &mut Challenger,
    ) -> Result<Opening, Error> {
        let points = [Point::new(point.to_vec())];
        committed
            .whir
            .open_at(committed.data, &schedule(committed.log), &points, challenger)
            .map_err(|error| Error::Prover(error.to_string()))
    }
}
