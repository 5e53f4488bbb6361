//! The commitment to a vector and its opening at a point: WHIR (ePrint 2024/1586) from Plonky3, over BLAKE3 Merkle trees.

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
use crate::field::{Challenger, E, F, Sponge};
use crate::hash::Blake3;

pub(crate) type Leaf = SerializingHasher<Blake3>;
pub(crate) type Node = CompressionFunctionFromHasher<Blake3, 2, 32>;
type Trees = MerkleTreeMmcs<F, u8, Leaf, Node, 2, 32>;
pub(crate) type Dft = Radix2DFTSmallBatch<F>;
type Whir = WhirProver<E, F, Dft, Trees, Sponge, PrefixProver<F, E>>;

/// The opening of a commitment.
pub(crate) type Opening = PcsProof<F, E, Trees>;

/// Bits that each error term of the commitment is held to, 14 of which may be proof of work. Their sum over all rounds
/// stays above 100: see [`security_bits`].
const TARGET_BITS: usize = 106;
const WORK_BITS: usize = 14;

/// The protocol for vectors of 2^`log` elements: rate 1/4, then folding by 16 (by 32 when large), in the list-decoding
/// regime up to the Johnson bound, which is proved.
fn config(log: usize) -> Result<WhirConfig<E, F, Sponge>, Error> {
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

/// The base-two logarithm of the number of elements of [`E`], rounded down.
pub(crate) const FIELD_BITS: f64 = 154.94;

/// The soundness of one opening of a commitment to 2^`log` elements, and the base-two logarithm of how many vectors it may stand for;
/// `None` when there is none of such a size.
pub(crate) fn opening_bits(log: usize) -> Option<(f64, f64)> {
    let sizes = LOG_MIN..=LOG_MAX;
    let report = sizes
        .contains(&log)
        .then(|| whir(log, Dft::default()).ok()?.prescribed_security(&schedule(log)))??;
    Some((report.error().bits(), report.log2_max_candidates))
}

/// The sum of the degrees of everything that challenges are drawn for between commitment and opening, for 2^`log_rows` look-ups and table entries
/// and a commitment to 2^`log` values, with or without one to weights.
pub(crate) fn degrees(log_rows: usize, log: usize, weights: bool) -> f64 {
    // Poles of degree 2 in the challenges; rounds of degree 3 with two combinations a level; three claims and the outputs'
    // point; rounds of degree 2; rounds of degree 2 and 3 over products, and two more claims.
    let (rows, levels) = ((1u64 << log_rows) as f64, log_rows as f64);
    let products = 5.0 * LOG_MAX as f64 + 2.0;
    let weights = if weights { 2.0 + 2.0 * LOG_MAX as f64 } else { 0.0 };
    2.0 * rows + 1.5 * levels * levels + 3.0 * levels + 2.0 + 22.0 + 2.0 * log as f64 + products + weights
}

/// The proven soundness, in bits, of proofs with 2^`log_rows` look-ups and table entries and a commitment to 2^`log` values, beside
/// one to 2^`log_weights` weights: the sum of the errors of the commitments, with their work, and of everything before them for
/// each pair of codewords that the commitments may stand for. `None` when there is no commitment of such a size.
pub(crate) fn security_bits(log_rows: usize, log: usize, log_weights: Option<usize>) -> Option<f64> {
    let (values, mut candidates) = opening_bits(log)?;
    let mut error = 2f64.powf(-values);
    if let Some(log) = log_weights {
        let (weights, more) = opening_bits(log)?;
        error += 2f64.powf(-weights);
        candidates += more;
    }
    let degrees = degrees(log_rows, log, log_weights.is_some());
    Some(-(error + degrees * 2f64.powf(candidates - FIELD_BITS)).log2())
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
        .verify_at(&root, opening, &schedule(point.len()), &points, &mut challenger.sponge)
        .map_err(|_| INVALID)?;
    evals.first().and_then(|batch| batch.current().first().copied()).ok_or(INVALID)
}

/// Absorbs a commitment as the prover did when it committed.
///
/// # Errors
/// [`Error::Prover`] when there is no commitment to vectors of 2^`log` elements.
pub(crate) fn observe(root: &Root, log: usize, challenger: &mut Challenger) -> Result<(), Error> {
    let whir = whir(log, Dft::default())?;
    let root = MerkleCap::new(vec![*root]);
    MultilinearPcs::<E, Sponge>::observe_commitment(&whir, &root, &mut challenger.sponge);
    Ok(())
}

#[cfg(feature = "prover")]
pub(crate) mod prover {
    use super::*;
    use p3_matrix::dense::RowMajorMatrix;
    use p3_sumcheck::layout::{Layout as _, Table};

    /// The codewords of a commitment to 2^`log` values and of its opening: each the base-two logarithms of how many values it stands for,
    /// of its length, and of how many of its elements one leaf of its tree has.
    ///
    /// # Errors
    /// [`Error::Prover`] when there is no commitment to vectors of this length.
    pub(crate) fn codewords(log: usize) -> Result<Vec<(usize, usize, usize)>, Error> {
        let config = config(log)?;
        let folding = config.folding_schedule();
        let (mut values, mut domain) = (log, log + config.params().starting_log_inv_rate);
        let mut out = vec![(values, domain, folding[0])];
        for (round, folding) in folding[1..].iter().enumerate().take(config.round_parameters().len()) {
            values -= config.folding_schedule()[round];
            domain -= 1;
            out.push((values, domain, *folding));
        }
        Ok(out)
    }

    /// A commitment that can be opened.
    pub(crate) struct Committed {
        whir: Whir,
        log: usize,
        data: <Whir as MultilinearPcs<E, Sponge>>::ProverData,
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
        let (cap, data) = MultilinearPcs::<E, Sponge>::commit(&whir, witness, &mut challenger.sponge)
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
            .open_at(committed.data, &schedule(committed.log), &points, &mut challenger.sponge)
            .map_err(|error| Error::Prover(error.to_string()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_more_than_a_hundred_bits() {
        for log in LOG_MIN..=LOG_MAX {
            for weights in [None, Some(LOG_MIN), Some(14), Some(LOG_MAX)] {
                let bits = security_bits(LOG_MAX, log, weights).unwrap_or(0.0);
                assert!((100.0..128.0).contains(&bits), "2^{log}, {weights:?}: {bits}");
            }
        }
        assert!(security_bits(9, 7, None).is_none() && security_bits(9, 25, None).is_none());
        assert!(security_bits(9, 9, Some(25)).is_none());
    }

    /// The sum of all errors of one opening, from the numbers of queries, samples, bits of work and rates that are used and
    /// published formulas, for a bound on the exceptional challenges of a fold: `line(m, rate, domain)`.
    fn recomputed(log: usize, line: impl Fn(f64, f64, f64) -> f64) -> f64 {
        let config = config(log).unwrap();
        let field = 2f64.powf(FIELD_BITS);
        // 1 - distance is 1.05 times the root of the rate, so m = 10; Johnson's list then has at most 10 / rate codewords.
        let list = |rate: f64| 10.0 / rate;
        let outside = |variables: usize, rate: f64, samples: usize| {
            list(rate).powi(2) / 2.0 * (2f64.powi(variables as i32) / field).powi(samples as i32)
        };
        let folds = |variables: usize, rate: f64, count: usize, work: usize| {
            // Each halves the domain; the first has the largest error.
            let domain = 2f64.powi(variables as i32) / rate;
            let each = line(10.0, rate - 1.0 / domain, domain) + 2.0 * list(rate);
            count as f64 * each / field * 2f64.powi(-(work as i32))
        };
        let queries = |rate: f64, count: usize, work: usize| {
            (1.05 * rate.sqrt()).powi(count as i32) * 2f64.powi(-(work as i32))
        };
        let rate_of = |log_inverse: usize| 2f64.powi(-(log_inverse as i32));

        let mut rate = rate_of(config.params().starting_log_inv_rate);
        let samples = config.commitment_ood_samples();
        let mut error = (1 + samples) as f64 * list(rate) / field + outside(log, rate, samples);
        error += folds(log, rate, config.folding_schedule()[0], config.starting_folding_pow_bits());
        let (mut variables, mut domain) = (log, log + config.params().starting_log_inv_rate);
        for (round, parameters) in config.round_parameters().iter().enumerate() {
            // The rate is what folding by 2^k and halving the domain once make of it.
            variables -= config.folding_schedule()[round];
            domain -= 1;
            assert_eq!((parameters.num_variables, parameters.log_inv_rate), (variables, domain - variables));
            error += queries(rate, parameters.num_queries, parameters.pow_bits);
            rate = rate_of(parameters.log_inv_rate);
            error += outside(variables, rate, parameters.ood_samples);
            let combined = (parameters.num_queries + parameters.ood_samples) as f64;
            error += combined * list(rate) / field * 2f64.powi(-(parameters.pow_bits as i32));
            error +=
                folds(variables, rate, config.folding_schedule()[round + 1], parameters.folding_pow_bits);
            assert!(parameters.pow_bits <= WORK_BITS && parameters.folding_pow_bits <= WORK_BITS);
        }
        let terminal = config.terminal();
        assert!(terminal.pow_bits <= WORK_BITS && config.final_folding_pow_bits() <= WORK_BITS);
        error += queries(rate, terminal.num_queries, terminal.pow_bits);
        error += 2.0 * config.final_sumcheck_rounds() as f64 / field;
        -error.log2()
    }

    /// The library's sum against one that was written apart from it. The bound on folds that it uses (ePrint 2026/2056,
    /// theorem 5.12) is young; what an older one gives (ePrint 2025/2055) is known too, and documented.
    #[test]
    fn the_bound_follows_from_the_parameters() {
        for log in LOG_MIN..=LOG_MAX {
            let library = whir(log, Dft::default()).unwrap().prescribed_security(&schedule(log)).unwrap();
            let young = |m: f64, rate: f64, domain: f64| 8.0 * domain * (m + 0.5).powi(3) / (3.0 * rate);
            let older = |m: f64, rate: f64, domain: f64| {
                let m = m + 0.5;
                (2.0 * m.powi(5) + 3.0 * m * rate) / (3.0 * rate.powf(1.5)) * domain + m / rate.sqrt()
            };
            let (found, older) = (recomputed(log, young), recomputed(log, older));
            println!("2^{log}: {found:.2} bits, {older:.2} with the older bound");
            assert!((-0.01..2.0).contains(&(found - library.error().bits())), "2^{log}: {found}");
            assert!(found > 103.0 && (older > 100.0 || log > 21), "2^{log}: {found}, {older}");
        }
    }
}
