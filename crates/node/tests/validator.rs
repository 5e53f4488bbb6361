//! A validator's life on the real contracts, through JSON-RPC: it joins, its key is replaced while it runs, evidence comes by a transaction
//! and by itself.
#![allow(clippy::unwrap_used)]

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use assay_ledger::types::{Address, B256, U256, hex};
use assay_ledger::{EVIDENCE, Genesis, Transaction, contradicts};
use assay_node::consensus::Pace;
use assay_node::follow::{Proven, Source};
use assay_node::history::{History, Retention};
use assay_node::node::{NodeConfig, NodeError, new_key, run};
use assay_receipt::Key;
use assay_wallet::abi::text;
use assay_wallet::chain::Chain;
use assay_wallet::client::{Call, address_of};
use assay_wallet::system::Description;
use commonware_codec::{DecodeExt, Encode};
use commonware_cryptography::Signer;
use commonware_cryptography::ed25519::PrivateKey;
use serde_json::{Value, json};

/// 10^18.
const OPG: u128 = 1_000_000_000_000_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// Nobody to follow.
struct Nobody;

impl Source for Nobody {
    async fn after(&self, _: u64) -> Result<Option<Proven>, String> {
        Ok(None)
    }

    async fn send(&self, _: &Transaction) -> Result<(), String> {
        Err("nobody".to_owned())
    }
}

struct Node {
    stop: tokio::sync::oneshot::Sender<()>,
    thread: JoinHandle<Result<(), NodeError>>,
    chain: Chain,
}

impl Node {
    /// One that listens where nobody else does.
    fn start(genesis: &Genesis, data: &Path, keys: &[&str]) -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = NodeConfig {
            genesis: genesis.clone(),
            data: data.to_owned(),
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            beneficiary: None,
            listen: free(),
            rpc: SocketAddr::from(([127, 0, 0, 1], 0)),
            pace: Pace { interval: Duration::from_millis(20), idle: Duration::from_millis(60) },
            retention: Retention::default(),
            progress: Box::new(|_| ()),
        };
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (ready, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let stopped = async {
                let _ = stopped.await;
            };
            run(config, Vec::<Nobody>::new(), move |address| ready.send(address).unwrap(), stopped)
        });
        let address: SocketAddr = address.recv_timeout(PATIENCE).unwrap();
        Self { stop, thread, chain: Chain::at(&format!("http://{address}")).unwrap() }
    }

    fn stop(self) {
        self.stop.send(()).unwrap();
        self.thread.join().unwrap().unwrap();
    }

    /// Waits until a question has this answer.
    async fn until(&self, what: &str, ask: impl AsyncFn(&Chain) -> bool) {
        let began = Instant::now();
        while !ask(&self.chain).await {
            assert!(!self.thread.is_finished(), "the node ended while waiting for {what}");
            assert!(began.elapsed() < PATIENCE, "{what} did not come");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until a key has seats, and so many blocks longer.
    async fn seated(&self, key: &str) {
        let has = async |chain: &Chain| {
            let committee = chain.client.request("assay_getCommittee", json!([])).await.unwrap();
            committee["members"].as_array().unwrap().iter().any(|member| {
                member["key"].as_str().is_some_and(|found| found.ends_with(key)) && member["seats"] != 1
            })
        };
        self.until("a seat", has).await;
        self.goes_on().await;
    }

    async fn goes_on(&self) {
        let head = self.chain.head().await.unwrap();
        self.until("a block", async |chain: &Chain| chain.head().await.unwrap() > head + 10).await;
    }

    async fn send(&self, key: &Key, name: &str, function: &str, arguments: &[Value]) {
        self.chain.transact(key, name, function, arguments).await.unwrap();
    }

    async fn join(&self, owner: &Key, consensus: &str, amount: u128) {
        let (staking, amount) =
            (text(self.chain.system.address("Staking").unwrap()), json!(amount.to_string()));
        self.send(owner, "Opg", "approve", &[staking, amount.clone()]).await;
        self.send(owner, "Staking", "join", &[json!(format!("0x{consensus}")), json!(500), amount]).await;
    }

    async fn tombstoned(&self, owner: &Key) -> bool {
        let known = self.chain.view("Staking", "validatorOf", &[text(address_of(owner))]).await.unwrap();
        known["tombstoned"] == json!(true)
    }
}

/// Two notarizations in view 5 of epoch 1, as the ledger takes them.
fn two_faces(genesis: &B256, secret: &str, payloads: [u8; 2]) -> Vec<u8> {
    let key = PrivateKey::decode(bytes::Bytes::from(hex::decode(secret).unwrap())).unwrap();
    let namespace = [b"assay consensus ".as_slice(), genesis.as_slice(), b"_NOTARIZE"].concat();
    let vote = |payload: u8| {
        let signed = [&[1, 5, 4][..], &[payload; 32]].concat();
        let signature = key.sign(&namespace, &signed).encode();
        [&signed, &[3][..], &signature].concat()
    };
    [vec![0], vote(payloads[0]), vote(payloads[1])].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validator_joins_replaces_its_key_and_pays_for_two_faces() {
    let folder = tempfile::tempdir().unwrap();
    let keys = [1, 2, 3].map(|seed| new_key([seed; 32]).unwrap());
    let [(first, first_public), (second, second_public), (other, other_public)] = &keys;
    let [ada, bob, anybody] = [11, 12, 13].map(|seed| Key::from_bytes([seed; 32]).unwrap());
    let example = include_str!("../../../contracts/genesis.example.json");
    let mut description: Value = serde_json::from_str(example).unwrap();
    let coins =
        [&ada, &bob, &anybody].map(|key| (address_of(key).to_string(), json!("1000000000000000000000")));
    description["chainId"] = json!(7);
    description["timestamp"] = json!(0);
    description["alloc"] = Value::Object(coins.into_iter().collect());
    for (share, holder) in [&ada, &bob].iter().enumerate() {
        description["supply"][share + 1]["holder"] = text(address_of(holder));
    }
    description["validators"] =
        json!([{"key": first_public, "endpoint": "127.0.0.1:1", "beneficiary": Address::ZERO.to_string()}]);
    description["epochs"] = json!({"blocks": 16, "leastStake": (1_000 * OPG).to_string()});
    let genesis = Description::from_json(&description.to_string()).unwrap().genesis(0).unwrap();
    let (rules, block_0) = genesis.execute().unwrap();

    let data = folder.path().join("node");
    let node = Node::start(&genesis, &data, &[first, second]);
    // Bob's node never runs: one seat of a hundred, whose turns pass.
    node.join(&bob, other_public, 1_000 * OPG).await;
    node.join(&ada, first_public, 99_000 * OPG).await;
    node.seated(first_public).await;

    // The same process goes on with the other key.
    node.send(&ada, "Staking", "setKey", &[json!(format!("0x{second_public}"))]).await;
    node.seated(second_public).await;

    // What `assay slash` does: a transaction from anybody. One that says nothing true costs its sender the gas, and nobody else anything.
    let accuse = async |public: &str, votes: &[u8]| {
        let data = [hex::decode(public).unwrap().as_slice(), votes].concat();
        let call = Call { to: Some(EVIDENCE), value: U256::ZERO, data };
        node.chain.client.transact(&anybody, &call).await
    };
    assert_eq!(node.chain.client.request("assay_getEvidence", json!([])).await.unwrap(), json!([]));
    let innocent = two_faces(&rules.genesis, other, [1, 1]);
    assert!(accuse(other_public, &innocent).await.is_err());
    assert!(!node.tombstoned(&bob).await);
    let guilty = two_faces(&rules.genesis, other, [1, 2]);
    assert_eq!(accuse(other_public, &guilty).await.unwrap().logs.len(), 3);
    assert!(node.tombstoned(&bob).await && !node.tombstoned(&ada).await);
    node.stop();

    // What a node has seen, here of the key that was replaced, it brings by itself.
    let key: [u8; 32] = hex::decode(first_public).unwrap().try_into().unwrap();
    let votes = two_faces(&rules.genesis, first, [1, 2]);
    assert!(contradicts(&rules.genesis, &key, &votes));
    History::open(&data.join("chain.redb"), Retention::default(), &block_0)
        .unwrap()
        .keep_evidence(&key, &votes)
        .unwrap();
    let node = Node::start(&genesis, &data, &[second]);
    node.until("the slash", async |_| node.tombstoned(&ada).await).await;
    let seen = node.chain.client.request("assay_getEvidence", json!([])).await.unwrap();
    assert_eq!(seen[0]["key"], json!(format!("0x{first_public}")));
    // Nobody is bonded any more, so the committee stays.
    node.goes_on().await;
    node.stop();
}
