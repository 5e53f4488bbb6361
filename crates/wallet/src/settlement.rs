//! Receipts as the settlement contract takes them: vouchers, and lines of a batch with their sum trees (docs/settlement.md).

use assay_receipt::{Address, Bytes32, Domain, Key, Receipt, Signature, Signed, keccak256, typed_data};
use serde_json::{Value, json};

use crate::abi::{AbiError, text};
use crate::system::contract;

const VOUCHER: &str = "Voucher(address payer,address worker,bytes32 model,bytes32 request,bytes32 nonce,bytes32 prompt,uint128 promptPrice,uint128 completionPrice,uint128 cap,uint64 expiresAtMs)";

/// A payer's word that one answer to one request may be charged, and on which terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voucher {
    /// Who pays.
    pub payer: Address,
    /// Who may charge.
    pub worker: Address,
    /// Model that is to answer.
    pub model: Bytes32,
    /// Salted commitment to the request.
    pub request: Bytes32,
    /// The caller's nonce.
    pub nonce: Bytes32,
    /// Price of a prompt token in 10^-18 OPG.
    pub prompt_price: u128,
    /// Price of a sampled token in 10^-18 OPG.
    pub completion_price: u128,
    /// Most that may be charged, in 10^-18 OPG.
    pub cap: u128,
    /// The request must be received by then, in milliseconds since 1970.
    pub expires_at_ms: u64,
}

impl Voucher {
    /// What the payer signs: the EIP-712 digest.
    pub fn digest(&self, domain: &Domain) -> Bytes32 {
        let mut data = keccak256(VOUCHER).0.to_vec();
        for address in [&self.payer, &self.worker] {
            data.extend([0; 12]);
            data.extend(address.0);
        }
        // The prompt's own hash is left out: the worker tokenises.
        for word in [&self.model, &self.request, &self.nonce, &Bytes32::ZERO] {
            data.extend(word.0);
        }
        for number in [self.prompt_price, self.completion_price, self.cap, self.expires_at_ms.into()] {
            data.extend([0; 16]);
            data.extend(number.to_be_bytes());
        }
        let mut preimage = vec![0x19, 0x01];
        preimage.extend(domain.separator().0);
        preimage.extend(keccak256(data).0);
        keccak256(preimage)
    }

    fn json(&self) -> Value {
        json!({
            "payer": self.payer, "worker": self.worker, "model": self.model, "request": self.request,
            "nonce": self.nonce, "prompt": Bytes32::ZERO, "promptPrice": self.prompt_price.to_string(),
            "completionPrice": self.completion_price.to_string(), "cap": self.cap.to_string(),
            "expiresAtMs": self.expires_at_ms.to_string(),
        })
    }
}

/// A receipt with the voucher that makes it payable.
#[derive(Clone, Debug)]
pub struct Payable {
    /// What the worker signed.
    pub receipt: Signed<Receipt>,
    /// What the payer signs.
    pub voucher: Voucher,
    /// Its signature.
    pub voucher_signature: Signature,
}

impl Payable {
    /// Signs the voucher for a receipt at the prices that were offered: valid for a request that arrived as the receipt says.
    pub fn sign(
        key: &Key,
        domain: &Domain,
        receipt: Signed<Receipt>,
        prompt_price: u128,
        completion_price: u128,
    ) -> Self {
        let r = &receipt.statement;
        let voucher = Voucher {
            payer: r.payer,
            worker: r.worker,
            model: r.model,
            request: r.request,
            nonce: r.nonce,
            prompt_price,
            completion_price,
            cap: r.cap,
            expires_at_ms: r.received_at_ms,
        };
        let voucher_signature = key.sign(&voucher.digest(domain));
        Self { receipt, voucher, voucher_signature }
    }

    /// The contract's `Leaf`.
    pub fn leaf(&self) -> Value {
        // Names and forms of the fields are those of the typed data; the domain does not matter for them.
        let receipt = typed_data(&Domain::default(), &self.receipt.statement)["message"].clone();
        json!({
            "receipt": receipt, "signature": self.receipt.signature,
            "voucher": self.voucher.json(), "voucherSignature": self.voucher_signature,
        })
    }

    fn hash(&self) -> Result<[u8; 32], AbiError> {
        let rules = contract("Rules").ok_or_else(|| AbiError::NoFunction("Rules".to_owned(), 0))?;
        Ok(keccak256(rules.function("fault", 5)?.encode_input(4, &self.leaf())?).0)
    }
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
    pub fn new(mut receipts: Vec<Payable>) -> Result<Self, AbiError> {
        receipts.sort_by_key(|payable| payable.voucher.nonce.0);
        let mut level = Vec::with_capacity(receipts.len());
        for (index, payable) in (0..).zip(&receipts) {
            let price = payable.receipt.statement.price;
            level.push((leaf(index, price, &payable.hash()?), price));
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
        Ok(Self { receipts, levels })
    }

    /// The contract's `Line`; null for a line without receipts.
    pub fn json(&self) -> Value {
        let (Some(first), Some(last)) = (self.receipts.first(), self.receipts.last()) else {
            return Value::Null;
        };
        let Some(&[(root, sum)]) = self.levels.last().map(Vec::as_slice) else { return Value::Null };
        json!({
            "payer": first.voucher.payer, "model": first.voucher.model, "count": self.receipts.len(),
            "sum": sum.to_string(), "first": first.voucher.nonce, "last": last.voucher.nonce, "root": Bytes32(root),
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
