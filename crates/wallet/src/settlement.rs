//! Receipts as the settlement contract takes them: vouchers, and lines of a batch with their sum trees (docs/settlement.md).

use assay_receipt::{Bytes32, Domain, Receipt, Signed, Typed, Voucher, encode_data, keccak256, typed_data};
use serde_json::{Value, json};

use crate::abi::text;

/// A signed type as the contracts' functions take it.
pub fn message<T: Typed>(value: &T) -> Value {
    // Names and forms of the fields are those of the typed data; the domain does not matter for them.
    typed_data(&Domain::default(), value)["message"].take()
}

/// A receipt with the voucher that makes it payable.
#[derive(Clone, Debug)]
pub struct Payable {
    /// What the worker signed.
    pub receipt: Signed<Receipt>,
    /// What the payer signed.
    pub voucher: Signed<Voucher>,
}

impl Payable {
    /// The contract's `Leaf`.
    pub fn leaf(&self) -> Value {
        json!({
            "receipt": message(&self.receipt.statement), "signature": self.receipt.signature,
            "voucher": message(&self.voucher.statement), "voucherSignature": self.voucher.signature,
        })
    }

    /// Hash of the ABI's encoding of the leaf: the structs are there as a whole, the signatures by where they begin, and follow at the end.
    fn hash(&self) -> [u8; 32] {
        let receipt = encode_data(&self.receipt.statement);
        let voucher = encode_data(&self.voucher.statement);
        let head = receipt.len() + voucher.len() + 2 * WORD;
        let mut bytes = Vec::with_capacity(WORD + head + 2 * SIGNATURE);
        bytes.extend(word(WORD));
        bytes.extend(receipt);
        bytes.extend(word(head));
        bytes.extend(voucher);
        bytes.extend(word(head + SIGNATURE));
        for signature in [&self.receipt.signature, &self.voucher.signature] {
            bytes.extend(word(signature.0.len()));
            bytes.extend(signature.0);
            bytes.resize(bytes.len().next_multiple_of(WORD), 0);
        }
        keccak256(bytes).0
    }
}

/// Bytes of a word of the ABI, and of a signature with its length and the zeros that fill its last word.
const WORD: usize = 32;
const SIGNATURE: usize = 4 * WORD;

fn word(number: usize) -> [u8; WORD] {
    let mut word = [0; WORD];
    word[WORD - 8..].copy_from_slice(&(number as u64).to_be_bytes());
    word
}

type Node = ([u8; 32], u128);

fn leaf(index: u64, amount: u128, data: &[u8; 32]) -> [u8; 32] {
    keccak256([&[0], &index.to_be_bytes()[..], &amount.to_be_bytes(), data].concat()).0
}

fn parent(left: &Node, right: &Node) -> Node {
    let bytes = [&[1], &left.0[..], &left.1.to_be_bytes(), &right.0, &right.1.to_be_bytes()].concat();
    (keccak256(bytes).0, left.1.saturating_add(right.1))
}

/// The receipts of one payer, one worker and one model in a batch, ascending by nonce.
#[derive(Clone, Debug)]
pub struct Line {
    /// What is paid.
    pub receipts: Vec<Payable>,
    levels: Vec<Vec<Node>>,
}

impl Line {
    /// Orders the receipts and builds their sum tree. All are of one payer, worker and model, with different nonces, and there is one
    /// at least.
    pub fn new(mut receipts: Vec<Payable>) -> Self {
        receipts.sort_by_key(|payable| payable.voucher.statement.nonce.0);
        let mut level = Vec::with_capacity(receipts.len());
        for (index, payable) in (0..).zip(&receipts) {
            let price = payable.receipt.statement.price;
            level.push((leaf(index, price, &payable.hash()), price));
        }
        let mut levels = vec![level];
        while let Some(level) = levels.last().filter(|level| level.len() > 1) {
            let above = level.chunks(2).map(|pair| match pair {
                [left, right] => parent(left, right),
                // The last one of an odd level goes up unchanged.
                _ => pair[0],
            });
            let above = above.collect();
            levels.push(above);
        }
        Self { receipts, levels }
    }

    /// Root of the sum tree; zero for a line without receipts.
    pub fn root(&self) -> Bytes32 {
        let top = self.levels.last().and_then(|level| level.first());
        top.map_or(Bytes32::ZERO, |(root, _)| Bytes32(*root))
    }

    /// The contract's `Line`; null for a line without receipts.
    pub fn json(&self) -> Value {
        let (Some(first), Some(last)) = (self.receipts.first(), self.receipts.last()) else {
            return Value::Null;
        };
        let Some(&[(root, sum)]) = self.levels.last().map(Vec::as_slice) else { return Value::Null };
        json!({
            "payer": first.voucher.statement.payer, "model": first.voucher.statement.model, "count": self.receipts.len(),
            "sum": sum.to_string(), "first": first.voucher.statement.nonce, "last": last.voucher.statement.nonce, "root": Bytes32(root),
        })
    }

    /// The contract's `Opening` of a receipt of this line, which is number `line` of its batch.
    pub fn opening(&self, line: usize, index: usize) -> Option<Value> {
        let payable = self.receipts.get(index)?;
        let (mut siblings, mut sums) = (Vec::new(), Vec::new());
        let mut at = index;
        for level in &self.levels {
            if let Some((hash, sum)) = level.get(at ^ 1) {
                siblings.push(text(Bytes32(*hash)));
                sums.push(text(sum));
            }
            at /= 2;
        }
        Some(json!({
            "line": line, "index": index, "amount": payable.receipt.statement.price.to_string(),
            "leaf": payable.leaf(), "siblings": siblings, "sums": sums,
        }))
    }
}
