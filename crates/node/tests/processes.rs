//! Real processes on this machine: four validators and a node that follows them, killed without warning, stopped by a full disk and
//! started again, and given much to do; and one that joins late. One history, whatever happens, and progress whenever three of four run.
#![allow(clippy::unwrap_used)]

#[path = "../../ledger/tests/common/mod.rs"]
mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use assay_ledger::types::{Address, U256, hex};
use assay_ledger::{Block, Committee, Genesis, Part, Piece, Transaction};
use assay_node::consensus::Pace;
use assay_node::follow::{Proven, Source};
use assay_node::history::Retention;
use assay_node::node::{NodeConfig, new_key, run};
use assay_node::sync::{EpochEnd, Offer, header};
use common::{Wallet, with_election};
use serde_json::{Value, json};

/// Sent as fast as one client can.
const TRANSFERS: u64 = 400;
/// What tells this test's own program to be a node: the folder with its settings.
const ROLE: &str = "ASSAY_TEST_NODE";

fn request(address: SocketAddr, method: &str, params: Value) -> Result<Value, String> {
    let failed = |error: std::io::Error| error.to_string();
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).map_err(failed)?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(failed)?;
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(failed)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    let answer: Value = serde_json::from_str(body).map_err(|error| error.to_string())?;
    answer.get("result").cloned().ok_or_else(|| answer["error"].to_string())
}

struct Upstream(SocketAddr);

impl Upstream {
    async fn ask(&self, method: &'static str, params: Value) -> Result<Value, String> {
        let address = self.0;
        tokio::task::spawn_blocking(move || request(address, method, params)).await.unwrap()
    }
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

impl Source for Upstream {
    async fn after(&self, number: u64) -> Result<Option<Proven>, String> {
        let answer = self.ask("assay_getBlocks", json!([format!("{number:#x}")])).await?;
        let Some(blocks) = answer["blocks"].as_array() else { return Ok(None) };
        let blocks = blocks.iter().map(|block| Block::decode(&bytes(block)).unwrap()).collect();
        Ok(Some(Proven { blocks, finalization: bytes(&answer["finalization"]) }))
    }

    async fn offer(&self) -> Result<Option<Offer>, String> {
        let answer = self.ask("assay_getOffer", json!([])).await?;
        let Some(headers) = answer["headers"].as_array() else { return Ok(None) };
        let headers = headers.iter().map(|bytes| header(&self::bytes(bytes)).unwrap()).collect();
        Ok(Some(Offer { headers, finalization: bytes(&answer["finalization"]) }))
    }

    async fn epochs(&self, first: u64) -> Result<Vec<EpochEnd>, String> {
        let answer = self.ask("assay_getEpochs", json!([format!("{first:#x}")])).await?;
        let ends = answer.as_array().unwrap().iter().map(|end| EpochEnd {
            header: header(&bytes(&end["header"])).unwrap(),
            finalization: bytes(&end["finalization"]),
            next: Committee::decode(&bytes(&end["committee"])).unwrap(),
        });
        Ok(ends.collect())
    }

    async fn piece(&self, block: u64, part: &Part) -> Result<Piece, String> {
        let account = part.account().map(|account| account.to_string());
        let params = json!([format!("{block:#x}"), hex::encode_prefixed(part.path()), account]);
        let answer = self.ask("assay_getState", params).await?;
        Piece::decode(&bytes(&answer)).map_err(|error| error.to_string())
    }

    async fn send(&self, transaction: &Transaction) -> Result<(), String> {
        let raw = format!("0x{}", hex::encode(transaction.bytes()));
        self.ask("eth_sendRawTransaction", json!([raw])).await.map(drop)
    }
}

/// Not a test but what its processes run.
#[test]
fn node_process() {
    let Some(folder) = std::env::var_os(ROLE).map(PathBuf::from) else { return };
    let settings: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("settings.json")).unwrap()).unwrap();
    let genesis = std::fs::read_to_string(folder.parent().unwrap().join("genesis.json")).unwrap();
    let config = NodeConfig {
        genesis: Genesis::from_json(&genesis).unwrap(),
        data: folder.join("data"),
        keys: settings["key"].as_str().map(str::to_owned).into_iter().collect(),
        beneficiary: settings["beneficiary"].as_str().map(|text| text.parse().unwrap()),
        listen: settings["listen"].as_str().unwrap().parse().unwrap(),
        rpc: settings["rpc"].as_str().unwrap().parse().unwrap(),
        pace: Pace { interval: Duration::from_millis(50), idle: Duration::from_millis(300) },
        retention: Retention { blocks: settings["keep"].as_u64() },
        progress: Box::new(|progress| eprintln!("progress: {progress:?}")),
    };
    let sources = settings["follow"].as_array().unwrap().iter();
    let sources = sources.map(|address| Upstream(address.as_str().unwrap().parse().unwrap())).collect();
    if let Err(error) = run(config, sources, |_| (), std::future::pending()) {
        eprintln!("the node ended: {error}");
        std::process::exit(3);
    }
}

struct Node {
    folder: PathBuf,
    rpc: SocketAddr,
    environment: Vec<(&'static str, PathBuf)>,
    process: Option<Child>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Node {
    fn new(
        root: &Path,
        name: &str,
        key: Option<&str>,
        listen: SocketAddr,
        rpc: SocketAddr,
        follow: &[SocketAddr],
        keep: Option<u64>,
    ) -> Self {
        let folder = root.join(name);
        std::fs::create_dir(&folder).unwrap();
        // Tips go to the node's port, so that blocks say whose they are.
        let beneficiary = Address::from_word(U256::from(rpc.port()).into());
        let settings = json!({
            "key": key, "listen": listen, "rpc": rpc, "follow": follow, "keep": keep, "beneficiary": beneficiary.to_string(),
        });
        std::fs::write(folder.join("settings.json"), settings.to_string()).unwrap();
        Self { folder, rpc, environment: Vec::new(), process: None }
    }

    /// With a limit no file grows beyond so many KiB: what would be written there fails, as on a full disk.
    fn start(&mut self, limit: Option<u64>) {
        let log = File::options().create(true).append(true).open(self.folder.join("log")).unwrap();
        let program = std::env::current_exe().unwrap();
        let script = match limit {
            Some(limit) => format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" \"$@\""),
            None => "exec \"$0\" \"$@\"".to_owned(),
        };
        let child = Command::new("bash")
            .args(["-c", &script])
            .arg(program)
            .args(["node_process", "--exact", "--nocapture"])
            .env(ROLE, &self.folder)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.process = Some(child.unwrap());
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // SIGKILL: no handler, no destructor, nothing flushed. It may have ended by itself.
            let _ = process.kill();
            process.wait().unwrap();
        }
    }

    fn ask(&self, method: &str, params: Value) -> Result<Value, String> {
        request(self.rpc, method, params)
    }

    fn height(&self) -> u64 {
        let answer = self.ask("eth_blockNumber", json!([])).unwrap_or_default();
        answer.as_str().map_or(0, |text| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap())
    }

    fn block(&self, number: u64) -> Value {
        self.ask("eth_getBlockByNumber", json!([format!("{number:#x}"), false])).unwrap()
    }

    fn hash(&self, number: u64) -> String {
        self.block(number)["hash"].as_str().unwrap().to_owned()
    }

    /// Sets the clock of a process that began with a library which has one for it.
    fn set_clock(&self, offset: i64) {
        // In one step, so that nobody reads half of it.
        std::fs::write(self.folder.join("clock.new"), format!("{offset:+}")).unwrap();
        std::fs::rename(self.folder.join("clock.new"), self.folder.join("clock")).unwrap();
    }

    /// The most memory that it has had, in MiB.
    fn memory(&self) -> u64 {
        let status = format!("/proc/{}/status", self.process.as_ref().unwrap().id());
        let status = std::fs::read_to_string(status).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap()
    }
}

/// Waits until these have so many blocks.
fn reach(nodes: &[Node], who: &[usize], height: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while who.iter().any(|index| nodes[*index].height() < height) {
        if Instant::now() > deadline {
            for node in nodes {
                eprintln!("{}: {} blocks\n{}", node.folder.display(), node.height(), node.log());
            }
            panic!("{who:?} did not reach {height}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn highest(nodes: &[Node], who: &[usize]) -> u64 {
    who.iter().map(|index| nodes[*index].height()).max().unwrap()
}

fn one_history(nodes: &[Node], who: &[usize]) {
    let common = who.iter().map(|index| nodes[*index].height()).min().unwrap();
    for number in (0..=common).rev().step_by(3) {
        let hash = nodes[who[0]].hash(number);
        assert!(who.iter().all(|index| nodes[*index].hash(number) == hash), "two blocks {number}");
    }
}

/// Addresses that nobody has.
fn addresses<const N: usize>() -> [SocketAddr; N] {
    // All at once, so that no two get the same.
    let taken = std::array::from_fn::<_, N, _>(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    taken.map(|port| port.local_addr().unwrap())
}

/// Four validators, not yet started, with two addresses each, and their genesis.
fn validators(root: &Path, ports: &[SocketAddr]) -> (Genesis, Vec<Node>) {
    let keys: Vec<_> = (1..=4).map(|seed| new_key([seed; 32]).unwrap()).collect();
    let public: Vec<_> = keys.iter().map(|(_, public)| public.clone()).collect();
    // Epochs end all the time, and each seat stays where it is.
    let mut genesis = with_election(&public, 16, 96, &[]);
    for (i, validator) in genesis.validators.iter_mut().enumerate() {
        validator.endpoint = ports[2 * i].to_string();
    }
    std::fs::write(root.join("genesis.json"), genesis.to_json()).unwrap();
    let nodes = keys.iter().enumerate().map(|(i, (secret, _))| {
        let name = format!("validator-{i}");
        Node::new(root, &name, Some(secret), ports[2 * i], ports[2 * i + 1], &[], None)
    });
    (genesis, nodes.collect())
}

#[test]
fn killed_stopped_and_out_of_disk() {
    let root = tempfile::tempdir().unwrap();
    let ports = addresses::<12>();
    let (mut genesis, mut nodes) = validators(root.path(), &ports);
    nodes.push(Node::new(root.path(), "follower", None, ports[8], ports[9], &[ports[1], ports[3]], None));
    for node in &mut nodes {
        node.start(None);
    }
    reach(&nodes, &[0, 1, 2, 3, 4], 3);

    // A transaction given to the node without a seat becomes final.
    let wallet = Wallet::new(1);
    let raw = format!("0x{}", hex::encode(wallet.dynamic(|_| ())));
    let hash = nodes[4].ask("eth_sendRawTransaction", json!([raw])).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while nodes[4].ask("eth_getTransactionReceipt", json!([hash])).unwrap_or_default().is_null() {
        assert!(Instant::now() < deadline, "the transaction was not forwarded");
        std::thread::sleep(Duration::from_millis(50));
    }

    // Many transactions at once: the node that gets them answers all the while, and every one becomes final.
    let began = Instant::now();
    let wallets: Vec<_> = (2..6).map(Wallet::new).collect();
    for nonce in 0..TRANSFERS / 4 {
        for wallet in &wallets {
            let raw = format!("0x{}", hex::encode(wallet.dynamic(|t| t.nonce = nonce)));
            nodes[0].ask("eth_sendRawTransaction", json!([raw])).unwrap();
        }
    }
    let done = |node: &Node, wallet: &Wallet| {
        let count = node.ask("eth_getTransactionCount", json!([wallet.address().to_string(), "latest"]));
        count.unwrap() == format!("{:#x}", TRANSFERS / 4)
    };
    while !wallets.iter().all(|wallet| done(&nodes[0], wallet) && done(&nodes[4], wallet)) {
        assert!(began.elapsed() < Duration::from_secs(60), "transactions were lost");
        std::thread::sleep(Duration::from_millis(50));
    }
    for node in &nodes {
        assert!(node.memory() < 512, "{} MiB", node.memory());
    }

    // One is killed: three go on.
    nodes[3].kill();
    let goal = highest(&nodes, &[0, 1, 2]) + 4;
    reach(&nodes, &[0, 1, 2], goal);
    // Two: nothing becomes final any more, but what is final can be read.
    nodes[2].kill();
    std::thread::sleep(Duration::from_millis(1_000));
    let stuck = highest(&nodes, &[0, 1]);
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(highest(&nodes, &[0, 1, 4]), stuck, "finality with two of four");
    assert_eq!(nodes[0].hash(stuck), nodes[1].hash(stuck));
    // They come back, one with a disk that is full after another MiB.
    nodes[2].start(None);
    reach(&nodes, &[0, 1, 2, 4], stuck + 2);
    let size = std::fs::metadata(nodes[3].folder.join("data/chain.redb")).unwrap().len() >> 10;
    nodes[3].start(Some(size + 1024));
    reach(&nodes, &[3], stuck + 2);
    one_history(&nodes, &[0, 1, 2, 3, 4]);

    let mut sent = 1;
    let deadline = Instant::now() + Duration::from_secs(30);
    let status = loop {
        if let Some(status) = nodes[3].process.as_mut().unwrap().try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "a node goes on without a disk to write to:\n{}", nodes[3].log());
        let raw = wallet.dynamic(|t| {
            t.nonce = sent;
            t.input = vec![0; 100_000].into();
            t.gas_limit = 2_000_000;
        });
        if nodes[0].ask("eth_sendRawTransaction", json!([format!("0x{}", hex::encode(raw))])).is_ok() {
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(status.code(), Some(3));
    let log = nodes[3].log();
    let sentence = log.lines().find(|line| line.starts_with("the node ended: ")).unwrap();
    assert!(sentence.contains("could not be written") && sentence.contains("File too large"), "{log}");
    // The others went on. With room again it continues where it was.
    let goal = highest(&nodes, &[0, 1, 2]) + 2;
    reach(&nodes, &[0, 1, 2], goal);
    nodes[3].start(None);
    reach(&nodes, &[0, 1, 2, 3, 4], goal);
    one_history(&nodes, &[0, 1, 2, 3, 4]);

    // One that joins late takes the state, from one that began again and has offered its own since; killed at once, it starts anew.
    let mut late =
        Node::new(root.path(), "late", None, ports[10], ports[11], &[ports[3], ports[7]], Some(16));
    for wait in [200, 400, 0] {
        late.kill();
        late.start(None);
        std::thread::sleep(Duration::from_millis(wait));
    }
    nodes.push(late);
    reach(&nodes, &[5], goal);
    let refused = nodes[5].ask("eth_getBlockByNumber", json!(["0x1", false])).unwrap_err();
    assert!(refused.contains("pruned history unavailable"), "{refused}");
    // Nobody speaks of progress who executes blocks.
    assert!(nodes[5].log().contains("progress: "), "{}", nodes[5].log());
    let (height, nonce) = (nodes[5].height(), |node: &Node| {
        node.ask("eth_getTransactionCount", json!([wallet.address().to_string(), "latest"])).unwrap()
    });
    assert_eq!(nodes[5].hash(height), nodes[0].hash(height));
    assert_eq!(nonce(&nodes[5]), nonce(&nodes[0]));

    // A folder of another chain is refused, not overwritten.
    nodes[4].kill();
    genesis.timestamp += 1;
    std::fs::write(root.path().join("genesis.json"), genesis.to_json()).unwrap();
    nodes[4].start(None);
    assert_eq!(nodes[4].process.as_mut().unwrap().wait().unwrap().code(), Some(3));
    assert!(nodes[4].log().contains("belongs to the chain with genesis"), "{}", nodes[4].log());
}

/// Where Debian's package `faketime` has the library that gives a process another clock.
fn clock_library() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.filter_map(Result::ok);
    let mut found = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    found.find(|path| path.exists())
}

#[test]
fn a_clock_that_jumps() {
    let Some(library) = clock_library() else {
        eprintln!("not tested: the package faketime is not installed");
        return;
    };
    let root = tempfile::tempdir().unwrap();
    let ports = addresses::<8>();
    let (_, mut nodes) = validators(root.path(), &ports);
    // The wall clock alone, as when somebody sets it: timers of the system go on.
    nodes[3].environment = vec![
        ("LD_PRELOAD", library),
        ("FAKETIME_TIMESTAMP_FILE", nodes[3].folder.join("clock")),
        ("FAKETIME_NO_CACHE", "1".into()),
        ("DONT_FAKE_MONOTONIC", "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ("NO_FAKE_STAT", "1".into()),
    ];
    nodes[3].set_clock(0);
    for node in &mut nodes {
        node.start(None);
    }
    let all = [0, 1, 2, 3];
    let number = |block: &Value, field: &str| {
        u64::from_str_radix(block[field].as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
    };
    let mine = Address::from_word(U256::from(ports[7].port()).into()).to_string().to_lowercase();
    // Blocks of the fourth after some block, once there are any.
    let proposes = |nodes: &[Node], after: u64| {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut next = after + 1;
        loop {
            while next <= nodes[0].height() {
                if nodes[0].block(next)["miner"] == mine.as_str() {
                    return;
                }
                next += 1;
            }
            assert!(Instant::now() < deadline, "no block of the fourth after {after}\n{}", nodes[3].log());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    reach(&nodes, &all, 3);
    proposes(&nodes, 0);
    // Forward: everybody goes on, the one with the wrong clock as well. Back again: no timer of it waits for an hour, and it proposes. Behind: its
    // connections would be older than they say, so the others go on alone. Right again: it has its turns.
    for (offset, who) in [(3_700, &all[..]), (0, &all), (-3_700, &all[..3]), (0, &all)] {
        let before = highest(&nodes, who);
        nodes[3].set_clock(offset);
        reach(&nodes, who, before + 5);
        if offset == 0 {
            proposes(&nodes, before + 5);
        }
    }
    one_history(&nodes, &all);
    let times: Vec<_> = (1..=nodes[0].height()).map(|n| number(&nodes[0].block(n), "timestamp")).collect();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    // Wide enough for a machine with much to do, and less than the clock was wrong by.
    assert!(
        times.is_sorted() && times.iter().all(|time| (now - 1_800..=now + 60).contains(time)),
        "{times:?}"
    );
}
