//! What a worker's key signs so that an operator can register it: nobody can register a key that is not theirs.

use assay_ledger::types::{Address, U256, keccak256};
use assay_receipt::{Bytes32, Key, Signature};

/// Signs `WorkerKey(operator, worker, epoch)` in the registry's domain (EIP-712: name `Assay Registry`, version `1`) with the worker's key.
/// `epoch` counts the keys of a worker from 1.
pub fn sign_worker_key(
    worker: &Key,
    chain_id: u64,
    registry: Address,
    operator: Address,
    epoch: u64,
) -> Signature {
    let number = |value: u64| U256::from(value).to_be_bytes::<32>();
    let hash = |words: &[[u8; 32]]| keccak256(words.concat()).0;
    let name = |text: &str| keccak256(text).0;
    let domain = hash(&[
        name("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
        name("Assay Registry"),
        name("1"),
        number(chain_id),
        registry.into_word().0,
    ]);
    let said = hash(&[
        name("WorkerKey(address operator,address worker,uint64 epoch)"),
        operator.into_word().0,
        Address::from(worker.address().0).into_word().0,
        number(epoch),
    ]);
    worker.sign(&Bytes32(keccak256([&[0x19, 0x01], &domain[..], &said].concat()).0))
}
