//! Receipts settle on the real contracts, in a chain that the ledger executes in this process: registration, deposit, batch, openings,
//! and what the contract makes of receipts that are not payable.
#![allow(clippy::unwrap_used)]

use assay_ledger::types::{Address, Bytes, U256};
use assay_ledger::{
    Attributes, Genesis, Header, Message, Overrides, Rules, State, Transaction, TxReceipt as _, build,
    simulate,
};
use assay_receipt::{Bytes32, Domain, Key, Level, Receipt, Signed, Voucher};
use assay_wallet::abi::text;
use assay_wallet::client::{Call, Fees, address_of, sign};
use assay_wallet::registry::sign_worker_key;
use assay_wallet::settlement::{Line, Payable};
use assay_wallet::system::{Description, System, contract};
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;
const MODEL: Bytes32 = Bytes32([0x77; 32]);
const PRICES: (u128, u128) = (3, 5);

struct World {
    rules: Rules,
    header: Header,
    state: State,
    system: System,
}

fn key(seed: u8) -> Key {
    Key::from_bytes([seed; 32]).unwrap()
}

impl World {
    /// The example genesis; `operator` and `payer` have coins and OPG.
    fn new(operator: &Key, payer: &Key) -> Self {
        let mut description: Value =
            serde_json::from_str(include_str!("../../../contracts/genesis.example.json")).unwrap();
        let coins = "1000000000000000000000";
        description["chainId"] = json!(7);
        description["timestamp"] = json!(NOW);
        description["alloc"] = json!({
            address_of(operator).to_string(): coins, address_of(payer).to_string(): coins,
        });
        description["supply"][1]["holder"] = text(address_of(operator));
        description["supply"][2]["holder"] = text(address_of(payer));
        let genesis: Genesis = Description::from_json(&description.to_string()).unwrap().genesis(0).unwrap();
        let (rules, first) = genesis.execute().unwrap();
        Self {
            rules,
            header: (*first.block.header).clone(),
            state: first.state,
            system: System::of_genesis(),
        }
    }

    /// One transaction in a block of its own, ten seconds later; whether it succeeded.
    fn send(&mut self, key: &Key, name: &str, function: &str, arguments: &[Value]) -> bool {
        let call = self.system.prepare(name, function, arguments).unwrap();
        let nonce = self.state.nonce(&address_of(key));
        let fees = Fees { most: 100_000_000_000, tip: 1 };
        let bytes = sign(key, self.rules.chain_id, nonce, 3_000_000, fees, &call);
        let attributes = Attributes { timestamp: self.header.timestamp + 10, ..Attributes::default() };
        let transaction = Transaction::decode(&bytes).unwrap();
        let done = build(&self.rules, &self.header, &self.state, &attributes, [transaction]);
        assert_eq!(done.receipts.len(), 1, "{name}.{function} got into no block");
        self.header = (*done.block.header).clone();
        self.state = done.state;
        done.receipts[0].status()
    }

    /// What a call gives, or why it reverts.
    fn view(&self, name: &str, function: &str, arguments: &[Value]) -> Result<Value, String> {
        let Call { to, data, .. } = self.system.prepare(name, function, arguments).unwrap();
        let message = Message {
            from: Address::ZERO,
            to,
            gas: 10_000_000,
            max_fee: 0,
            tip: None,
            value: U256::ZERO,
            data: Bytes::from(data),
            access_list: Vec::new(),
        };
        let outcome = simulate(&self.rules, &self.header, &self.state, &Overrides::default(), &message);
        let contract = contract(name).unwrap();
        match outcome.failure {
            None => {
                Ok(contract.function(function, arguments.len()).unwrap().output(&outcome.output).unwrap())
            }
            Some(failure) => Err(contract.error(&outcome.output).unwrap_or(format!("{failure:?}"))),
        }
    }
}

fn receipt(
    worker: &Key,
    domain: &Domain,
    payer: &Key,
    nonce: u8,
    change: impl FnOnce(&mut Receipt),
) -> Signed<Receipt> {
    let mut receipt = Receipt {
        worker: worker.address(),
        key_epoch: 1,
        model: MODEL,
        arithmetic: 1,
        level: Level::Signed,
        request: Bytes32([nonce; 32]),
        output: Bytes32([2; 32]),
        chunks: 3,
        chain: Bytes32([3; 32]),
        trace: Bytes32::ZERO,
        prompt_tokens: 10,
        completion_tokens: 20,
        price: 130,
        payer: payer.address(),
        cap: 1_000,
        nonce: Bytes32([nonce; 32]),
        sequence: nonce.into(),
        previous: Bytes32::ZERO,
        received_at_ms: (NOW + 100) * 1_000,
        first_token_at_ms: (NOW + 100) * 1_000 + 5,
        finished_at_ms: (NOW + 100) * 1_000 + 9,
    };
    change(&mut receipt);
    Signed::sign(worker, domain, receipt)
}

#[test]
fn a_batch_settles_and_every_receipt_of_it_can_be_opened() {
    let (operator, payer, worker) = (key(1), key(2), key(3));
    let mut world = World::new(&operator, &payer);
    let domain = Domain {
        chain_id: 7,
        contract: assay_receipt::Address(world.system.address("Settlement").unwrap().0.0),
    };
    let registry = world.system.address("Registry").unwrap();
    let bond = json!("1000000000000000000000");
    assert!(world.send(&operator, "Opg", "approve", &[text(registry), bond.clone()]));
    assert!(world.send(&operator, "Registry", "registerOperator", &[json!("Ada"), bond]));
    let url = json!("https://192.0.2.1:1");
    let add = |by: &Key, epoch| {
        let signature = sign_worker_key(by, 7, registry, address_of(&operator), epoch);
        [text(worker.address()), url.clone(), text(Bytes32([9; 32])), json!(signature)]
    };
    // Not by another key, and not for another epoch.
    assert!(!world.send(&operator, "Registry", "addWorker", &add(&payer, 1)));
    assert!(!world.send(&operator, "Registry", "addWorker", &add(&worker, 2)));
    assert!(world.send(&operator, "Registry", "addWorker", &add(&worker, 1)));
    let deposits = world.system.address("Deposits").unwrap();
    assert!(world.send(&payer, "Opg", "approve", &[text(deposits), json!(1_000_000)]));
    assert!(world.send(&payer, "Deposits", "deposit", &[text(payer.address()), json!(1_000_000)]));
    world.header.timestamp = NOW + 200;

    let signed_by = |key: &Key, receipt: Signed<Receipt>| {
        let r = &receipt.statement;
        let voucher = Voucher {
            payer: r.payer,
            worker: r.worker,
            model: r.model,
            request: r.request,
            nonce: r.nonce,
            prompt: Bytes32::ZERO,
            prompt_price: PRICES.0,
            completion_price: PRICES.1,
            cap: r.cap,
            expires_at_ms: r.received_at_ms,
        };
        Payable { voucher: Signed::sign(key, &domain, voucher), receipt }
    };
    let payable = |receipt| signed_by(&payer, receipt);
    let fault = |world: &World, payable: Payable| {
        let amount = json!(payable.receipt.statement.price.to_string());
        let leaf = payable.leaf();
        let line = Line::new(vec![payable]).json();
        let arguments = [text(worker.address()), json!(world.header.timestamp), line, amount, leaf];
        world.view("Rules", "fault", &arguments).unwrap()
    };
    let good = |nonce| payable(receipt(&worker, &domain, &payer, nonce, |_| {}));
    assert_eq!(fault(&world, good(1)), json!(""));
    // The rules of the contract, and the voucher's, on what we make.
    type Change = fn(&mut Receipt);
    let cases: [(&str, Change); 6] = [
        ("level", |r| r.level = Level::Replayed),
        ("times", |r| r.first_token_at_ms = r.finished_at_ms + 1),
        ("future", |r| r.finished_at_ms += 1_000_000_000),
        ("key epoch", |r| r.key_epoch = 2),
        ("price", |r| r.price = 131),
        ("cap", |r| r.cap = 129),
    ];
    for (name, change) in cases {
        assert_eq!(fault(&world, payable(receipt(&worker, &domain, &payer, 1, change))), json!(name));
    }
    let by_another = signed_by(&operator, good(1).receipt);
    assert_eq!(fault(&world, by_another), json!("voucher signature"));
    let elsewhere = Domain { chain_id: 8, ..domain };
    assert_eq!(fault(&world, payable(receipt(&worker, &elsewhere, &payer, 1, |_| {}))), json!("signature"));

    for (batch, nonces) in [(1, vec![1]), (2, vec![4, 2, 3]), (3, (10..17).collect())] {
        let count = nonces.len();
        let line = Line::new(nonces.into_iter().map(good).collect());
        let lines = json!([line.json()]);
        assert!(world.send(&operator, "Settlement", "submit", &[text(worker.address()), lines.clone()]));
        for index in 0..count {
            let mut opening = line.opening(0, index).unwrap();
            let arguments = |opening: &Value| [json!(batch), lines.clone(), opening.clone()];
            let found = world.view("Settlement", "opened", &arguments(&opening)).unwrap();
            assert_eq!(found["receiptHash"], text(line.receipts[index].receipt.hash(&domain)));
            opening["amount"] = json!("131");
            let refused = world.view("Settlement", "opened", &arguments(&opening)).unwrap_err();
            assert!(refused.starts_with("BadOpening"), "{refused}");
        }
        // Not twice.
        assert!(!world.send(&operator, "Settlement", "submit", &[text(worker.address()), lines]));
    }
    let settled = world
        .view("Settlement", "settledUpTo", &[text(payer.address()), text(worker.address()), text(MODEL)])
        .unwrap();
    assert_eq!(settled, text(Bytes32([16; 32])));
    let deposit = world.view("Deposits", "depositOf", &[text(payer.address())]).unwrap();
    assert_eq!(deposit["balance"], json!((1_000_000 - 11 * 130).to_string()));
}
