//! The precompiled contract that checks proofs of predictions (`assay-proof`), specified in `docs/proof.md`.
//!
//! Its input is the length of a model's file (4 bytes, big-endian), that file (an integer graph or a key) and the file of a proof. When the proof holds, it
//! returns `abi.encode(bytes32 model, int32[] inputs, int32[] outputs)`; a caller compares the model's id and the inputs with those that it means. Otherwise it
//! reverts with a sentence.

use std::sync::OnceLock;

use alloy_primitives::{Address, Bytes, address};
use assay_proof::{AnyProof, Model};
use revm::handler::EthPrecompiles;
use revm::precompile::{
    Precompile, PrecompileHalt, PrecompileId, PrecompileOutput, PrecompileResult, PrecompileSpecId,
    Precompiles,
};
use revm::primitives::hardfork::SpecId;

/// Where it is.
pub const PROOF_VERIFIER: Address = address!("000000000000000000000000000000000000a55b");

/// The most bytes of input. What is larger reverts.
const INPUT_MAX: usize = 1 << 20;

// Prices, from the times of `assay bench proof` at 50 gas a microsecond, rounded up: checking takes 2 ms and more for the openings, 10 to 25 ns a byte
// of the files, 10 to 30 ns for each multiplication of the model, and below 160 ns for each of its values.
const GAS: u64 = 150_000;
const GAS_A_BYTE: u64 = 2;
const GAS_AN_OPERATION: u64 = 2;
const GAS_A_VALUE: u64 = 8;

/// Ethereum's precompiled contracts and this one.
pub(crate) fn precompiles() -> EthPrecompiles {
    static ALL: OnceLock<Precompiles> = OnceLock::new();
    let spec = SpecId::OSAKA;
    let precompiles = ALL.get_or_init(|| {
        let mut all = Precompiles::new(PrecompileSpecId::from_spec_id(spec)).clone();
        let id = PrecompileId::Custom("assay proof".into());
        all.extend([Precompile::new(id, PROOF_VERIFIER, run)]);
        all
    });
    EthPrecompiles { precompiles, spec }
}

/// What it costs, found before anything is checked: work is paid for before it is done.
fn price(input: &[u8], model: &[u8]) -> Result<u64, String> {
    let work = Model::work(model).map_err(|error| error.to_string())?;
    let bytes = GAS_A_BYTE.saturating_mul(input.len() as u64);
    let run = GAS_AN_OPERATION.saturating_mul(work.operations);
    Ok(GAS.saturating_add(bytes).saturating_add(run).saturating_add(GAS_A_VALUE.saturating_mul(work.values)))
}

fn run(input: &[u8], gas_limit: u64, reservoir: u64) -> PrecompileResult {
    // The least that reading the input is worth.
    let mut gas = GAS.saturating_add(GAS_A_BYTE.saturating_mul(input.len() as u64));
    if gas > gas_limit {
        return Ok(PrecompileOutput::halt(PrecompileHalt::OutOfGas, reservoir));
    }
    let checked = || -> Result<Option<Vec<u8>>, String> {
        if input.len() > INPUT_MAX {
            return Err(format!("the input is larger than {INPUT_MAX} bytes"));
        }
        let (model, proof) = split(input).ok_or("the input is shorter than the model in it")?;
        gas = price(input, model)?;
        if gas > gas_limit {
            return Ok(None);
        }
        let said = |error: assay_proof::Error| error.to_string();
        let (model, proof) =
            (Model::from_bytes(model).map_err(said)?, AnyProof::from_bytes(proof).map_err(said)?);
        // What hidden inputs take to check grows with their ranges, which is not in the price.
        let inputs = proof.inputs().ok_or("the proof hides its inputs")?;
        model.verify_any(&proof).map_err(said)?;
        Ok(Some(encoded(proof.model(), inputs, proof.outputs())))
    };
    // A defect of the verifier is the same on every node, and ends this call and not the chain.
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(checked));
    let found = found.unwrap_or_else(|_| Err("the proof cannot be checked".to_owned()));
    Ok(match found {
        Ok(Some(output)) => PrecompileOutput::new(gas, output.into(), reservoir),
        Ok(None) => PrecompileOutput::halt(PrecompileHalt::OutOfGas, reservoir),
        Err(reason) => PrecompileOutput::revert(gas, Bytes::from(reason.into_bytes()), reservoir),
    })
}

/// The model's file and the proof's.
fn split(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = input.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*len)).ok()?)
}

/// `abi.encode(bytes32, int32[], int32[])`.
fn encoded(model: [u8; 32], inputs: &[i32], outputs: &[i32]) -> Vec<u8> {
    fn word(number: u64) -> [u8; 32] {
        let mut word = [0; 32];
        word[24..].copy_from_slice(&number.to_be_bytes());
        word
    }
    let mut out = model.to_vec();
    out.extend(word(96));
    out.extend(word(128 + 32 * inputs.len() as u64));
    for values in [inputs, outputs] {
        out.extend(word(values.len() as u64));
        for value in values {
            // Sign-extended.
            out.extend([if *value < 0 { 0xff } else { 0 }; 28]);
            out.extend(value.to_be_bytes());
        }
    }
    out
}
