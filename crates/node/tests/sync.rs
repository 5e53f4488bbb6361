//! Nodes that join late: the state comes from others in pieces, nobody who sends it is believed, and what is old leaves the disk.
#![allow(clippy::unwrap_used)]

#[path = "../../ledger/tests/common/mod.rs"]
mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use assay_ledger::types::{Address, B256, U256, hex, keccak256};
use assay_ledger::{Attributes, Committee, Genesis, Header, Part, Piece, PoolLimits, Transaction};
use assay_node::chain::{Chain, Origin};
use assay_node::consensus::check_finalization;
use assay_node::follow::{Proven, Source, accept};
use assay_node::history::{History, HistoryError, Retention};
use assay_node::rpc::methods;
use assay_node::sync::{EpochEnd, Offer, catch_up, epochs, offer, piece};
use common::{Wallet, with_election};
use commonware_codec::Encode;
use commonware_cryptography::Signer;
use commonware_cryptography::ed25519::PrivateKey;
use commonware_runtime::{Runner, deterministic};
use serde_json::{Value, json};

const EPOCH: u64 = 8;
/// The state has several pieces.
const ACCOUNTS: u64 = 1_800;
/// What the node keeps that joins late; as much behind is far behind.
const KEPT: Retention = Retention { blocks: Some(16) };

fn validator() -> PrivateKey {
    PrivateKey::from_seed(1)
}

fn genesis(accounts: u64) -> Genesis {
    let key = hex::encode(validator().public_key().encode());
    let mut genesis = with_election(&[key], EPOCH, 96, &[]);
    for number in 0..accounts {
        let address = Address::from_slice(&keccak256(number.to_be_bytes())[..20]);
        let account = serde_json::from_value(json!({"balance": number.to_string()})).unwrap();
        genesis.alloc.insert(address.to_string(), account);
    }
    genesis
}

/// A quorum's signature, where the quorum is one.
fn certify(key: &PrivateKey, genesis: &B256, header: &Header) -> Vec<u8> {
    let varint = |mut number: u64| {
        let mut out = Vec::new();
        while number > 0x7f {
            out.push(number as u8 | 0x80);
            number >>= 7;
        }
        out.push(number as u8);
        out
    };
    let hash = header.hash_slow();
    let (epoch, view) = (header.number / EPOCH, header.number % EPOCH + 1);
    let proposal = [varint(epoch), varint(view), varint(view - 1), hash.to_vec()].concat();
    let namespace = [b"assay consensus ".as_slice(), genesis.as_slice(), b"_FINALIZE"].concat();
    let signature = key.sign(&namespace, &proposal);
    [proposal.as_slice(), &[0, 1, 0, 0], signature.encode().as_ref()].concat()
}

/// Blocks with a transfer each; every other one has a certificate, and ends of epochs do.
fn extend(chain: &Chain, blocks: u64) {
    for _ in 0..blocks {
        let head = chain.head();
        let number = head.block.header.number;
        let wallet = Wallet::new(1);
        let transfer = wallet.dynamic(|t| t.nonce = head.state.nonce(&wallet.address()));
        chain.add(Transaction::decode(&transfer).unwrap(), Origin::Local).unwrap();
        let attributes = Attributes {
            timestamp: number + 1,
            beneficiary: Address::repeat_byte(9),
            view: (number + 1) % EPOCH + 1,
        };
        let block = chain.propose(&head.block.hash(), attributes).unwrap();
        chain.finalize(&block).unwrap();
        if number.is_multiple_of(2) || !block.header.extra_data.is_empty() {
            let certificate = certify(&validator(), &chain.genesis().hash(), &block.header);
            chain.history().keep_finalization(number + 1, &certificate).unwrap();
        }
    }
}

/// The whole of a chain's first blocks, and then a state that is after them.
#[tokio::test]
async fn what_is_before_a_taken_state_goes_and_nothing_is_above_the_head() {
    let genesis = genesis(10);
    let server = long_chain(&genesis, 61);
    let late = in_memory(&genesis, KEPT);
    for number in 1..=12 {
        let block = server.history().block(number).unwrap().unwrap().block;
        late.finalize(&block).unwrap();
    }
    let before = late.history().header(9).unwrap().unwrap().hash_slow();
    assert_eq!(late.history().number(&before).unwrap(), Some(9));
    // The ends of epochs that prove the state arrive first: they are no blocks of this chain yet.
    let takes = async |until: usize, cut_off: bool| {
        let (taking, peer) = (late.clone(), Peer { until, ..Peer::honest(&server) });
        let take = move || {
            run(|mut context| async move {
                assert_eq!(catch_up(&taking, &[peer], &mut context).await.unwrap(), cut_off);
            });
        };
        tokio::task::spawn_blocking(take).await.unwrap();
    };
    takes(0, true).await;
    assert_eq!(number(&late), 12);
    let above = late.history().header(23).unwrap().unwrap().hash_slow();
    for ahead in [13, 15, 23, 61, 62, u64::MAX] {
        assert!(late.history().block(ahead).unwrap().is_none(), "block {ahead}");
    }
    for (method, asked) in [
        ("eth_getBlockByNumber", json!("0x17")),
        ("eth_getBlockByHash", json!(above.to_string())),
        ("eth_getBlockReceipts", json!(above.to_string())),
    ] {
        let answer = ask(&late, method, json!([asked, false])).await;
        assert_eq!(answer.get("result"), Some(&Value::Null), "{method}: {answer}");
    }

    takes(usize::MAX, false).await;
    assert_eq!(number(&late), 61);
    let history = late.history();
    let kept = |number: &u64| history.header(*number).unwrap().is_some();
    assert_eq!((0..=62).filter(kept).collect::<Vec<_>>(), [0, 7, 15, 23, 31, 39, 47, 55, 61]);
    assert_eq!(history.number(&before).unwrap(), None, "its hash is gone as well");
    assert_eq!(history.number(&above).unwrap(), Some(23));
    assert_eq!(history.finalization(9).unwrap(), None);
    assert!(history.finalization(23).unwrap().is_some());
}

#[test]
fn evidence_is_found_by_its_key() {
    let chain = in_memory(&genesis(0), KEPT);
    let (one, other) = ([1; 32], [2; 32]);
    assert!(!chain.history().has_evidence(&one).unwrap());
    chain.history().keep_evidence(&one, &[7]).unwrap();
    assert!(chain.history().has_evidence(&one).unwrap() && !chain.history().has_evidence(&other).unwrap());
}

/// Opens a chain as a new process would.
fn open(genesis: &Genesis, file: &Path, retention: Retention) -> Arc<Chain> {
    let open = |first: &_| History::open(file, retention, first);
    Arc::new(Chain::open(genesis, PoolLimits::default(), open).unwrap())
}

fn in_memory(genesis: &Genesis, retention: Retention) -> Arc<Chain> {
    let open = |first: &_| Ok(History::in_memory(first)?.keeping(retention));
    Arc::new(Chain::open(genesis, PoolLimits::default(), open).unwrap())
}

/// A chain of so many blocks, which offers the state of the last one, since it began with that.
fn long_chain(genesis: &Genesis, blocks: u64) -> Arc<Chain> {
    let chain = in_memory(genesis, Retention { blocks: None });
    extend(&chain, blocks);
    let history = chain.history().clone();
    Arc::new(Chain::open(genesis, PoolLimits::default(), |_| Ok(history)).unwrap())
}

type Lie<T> = Option<fn(&mut T)>;

/// A node as its JSON-RPC shows it, and what it changes about the truth.
#[derive(Clone)]
struct Peer {
    chain: Arc<Chain>,
    /// How many pieces it gave.
    given: Arc<AtomicUsize>,
    /// After so many pieces it is gone.
    until: usize,
    offer: Lie<Offer>,
    epochs: Lie<Vec<EpochEnd>>,
    piece: Lie<Piece>,
}

impl Peer {
    fn honest(chain: &Arc<Chain>) -> Self {
        let given = Arc::default();
        Self { chain: chain.clone(), given, until: usize::MAX, offer: None, epochs: None, piece: None }
    }

    fn given(&self) -> usize {
        self.given.load(Ordering::Relaxed)
    }
}

impl Source for Peer {
    async fn after(&self, number: u64) -> Result<Option<Proven>, String> {
        let history = self.chain.history();
        let mut blocks = Vec::new();
        for number in number + 1.. {
            let Some(stored) = history.block(number).map_err(|error| error.to_string())? else {
                return Ok(None);
            };
            blocks.push(stored.block);
            if let Some(finalization) = history.finalization(number).unwrap() {
                return Ok(Some(Proven { blocks, finalization }));
            }
        }
        Ok(None)
    }

    async fn offer(&self) -> Result<Option<Offer>, String> {
        let mut found = offer(&self.chain).unwrap();
        found.as_mut().zip(self.offer).into_iter().for_each(|(found, lie)| lie(found));
        Ok(found)
    }

    async fn epochs(&self, first: u64) -> Result<Vec<EpochEnd>, String> {
        let mut found = epochs(&self.chain, first).unwrap();
        // Several answers are needed for all.
        found.truncate(3);
        self.epochs.into_iter().for_each(|lie| lie(&mut found));
        Ok(found)
    }

    async fn piece(&self, block: u64, part: &Part) -> Result<Piece, String> {
        if self.given.fetch_add(1, Ordering::Relaxed) >= self.until {
            return Err("the connection was cut off".to_owned());
        }
        let found = piece(&self.chain, block, part.account().as_ref(), part.path());
        let mut found = found.ok_or("the state is not offered any more")?;
        self.piece.into_iter().for_each(|lie| lie(&mut found));
        Ok(found)
    }

    async fn send(&self, _: &Transaction) -> Result<(), String> {
        Ok(())
    }
}

fn run<F: Future<Output = ()>>(test: impl FnOnce(deterministic::Context) -> F) {
    deterministic::Runner::default().start(test);
}

fn number(chain: &Chain) -> u64 {
    chain.head().block.header.number
}

#[test]
fn a_late_node_takes_the_state_follows_and_offers_it_itself() {
    run(|mut context| async move {
        let genesis = genesis(ACCOUNTS);
        let server = long_chain(&genesis, 41);
        let peer = Peer::honest(&server);
        let late = in_memory(&genesis, KEPT);
        assert!(!catch_up(&late, std::slice::from_ref(&peer), &mut context).await.unwrap());
        assert_eq!((number(&late), late.head().block.hash()), (41, server.head().block.hash()));
        assert_eq!(late.head().state.root(), server.head().state.root());
        assert_eq!(late.history().state().unwrap().root(), server.head().state.root());
        assert_eq!(late.committee(), server.committee());
        assert!(peer.given() > 10, "{} pieces", peer.given());
        assert!(late.history().arriving().unwrap().is_none());

        // Of what is before it only the ends of epochs are there, and nothing that comes after it yet.
        let kept = |number: &u64| late.history().header(*number).unwrap().is_some();
        assert_eq!((0..=47).filter(kept).collect::<Vec<_>>(), [0, 7, 15, 23, 31, 39, 41]);

        // It follows by executing.
        extend(&server, 6);
        let more = peer.after(41).await.unwrap().unwrap();
        accept(&late, &more, &mut context).unwrap();
        assert_eq!(late.head().block.hash(), more.blocks.last().unwrap().hash());
        assert_eq!(late.history().block(number(&late)).unwrap().unwrap().block, late.head().block);
        assert!(matches!(late.history().block(41), Err(HistoryError::Pruned)));
        assert!(matches!(late.history().block(3), Err(HistoryError::Pruned)));

        // A restart finds all of it, and then it offers what it has, with every epoch's end.
        let history = late.history().clone();
        let again = Arc::new(Chain::open(&genesis, PoolLimits::default(), |_| Ok(history)).unwrap());
        assert_eq!(again.head().state.root(), late.head().state.root());
        let third = in_memory(&genesis, KEPT);
        let second = Peer::honest(&again);
        assert!(!catch_up(&third, &[second], &mut context).await.unwrap());
        assert_eq!(third.head().block.hash(), again.head().block.hash());
    });
}

#[test]
fn who_is_near_and_who_keeps_everything_executes_the_blocks() {
    run(|mut context| async move {
        let genesis = genesis(10);
        let server = long_chain(&genesis, 17);
        let peer = Peer::honest(&server);
        for (retention, taken) in [
            (Retention { blocks: Some(17) }, 0),
            (Retention { blocks: None }, 0),
            (Retention::default(), 0),
            (KEPT, 17),
        ] {
            let late = in_memory(&genesis, retention);
            assert!(!catch_up(&late, std::slice::from_ref(&peer), &mut context).await.unwrap());
            assert_eq!(number(&late), taken, "{retention:?}");
        }
    });
}

#[test]
fn a_killed_node_goes_on_where_it_was() {
    run(|mut context| async move {
        let genesis = genesis(ACCOUNTS);
        let server = long_chain(&genesis, 41);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("chain.redb");
        let whole = Peer::honest(&server);
        catch_up(&in_memory(&genesis, KEPT), std::slice::from_ref(&whole), &mut context).await.unwrap();
        let mut given = 0;
        for until in [1, 2, 5] {
            let late = open(&genesis, &file, KEPT);
            let peer = Peer { until, ..Peer::honest(&server) };
            assert!(catch_up(&late, &[peer], &mut context).await.unwrap(), "it is cut off");
            given += until;
            // Nobody sees anything of it.
            assert_eq!((number(&late), late.head().state.root()), (0, late.genesis().header.state_root));
            assert_eq!(late.history().state().unwrap().root(), late.genesis().header.state_root);
        }
        // The server goes on, and still offers that state.
        extend(&server, 20);
        let late = open(&genesis, &file, KEPT);
        let peer = Peer::honest(&server);
        assert!(!catch_up(&late, std::slice::from_ref(&peer), &mut context).await.unwrap());
        assert_eq!(number(&late), 41);
        assert_eq!(given + peer.given(), whole.given(), "no piece comes twice");
        assert_eq!(late.head().state.root(), server.history().header(41).unwrap().unwrap().state_root);
        drop(late);
        assert_eq!(number(&open(&genesis, &file, KEPT)), 41);

        // Where it is not offered any more, a newer one takes its place.
        let file = folder.path().join("other.redb");
        let late = open(&genesis, &file, KEPT);
        let short = Peer { until: 4, ..Peer::honest(&server) };
        assert!(catch_up(&late, &[short], &mut context).await.unwrap());
        let history = server.history().clone();
        let later = Arc::new(Chain::open(&genesis, PoolLimits::default(), |_| Ok(history)).unwrap());
        assert_eq!(number(&later), 61);
        let all = Peer::honest(&later);
        catch_up(&in_memory(&genesis, KEPT), std::slice::from_ref(&all), &mut context).await.unwrap();
        let rest = Peer { until: 9, ..Peer::honest(&later) };
        assert!(catch_up(&late, std::slice::from_ref(&rest), &mut context).await.unwrap());
        drop(late);
        let late = open(&genesis, &file, KEPT);
        let last = Peer::honest(&later);
        assert!(!catch_up(&late, std::slice::from_ref(&last), &mut context).await.unwrap());
        assert_eq!(number(&late), 61);
        // Pieces that are the same in both states came once: the first part alone, which is the root, is another one for certain.
        let again = 9 + last.given();
        assert!(again < all.given() && again + 4 > all.given(), "{again} of {}", all.given());
        assert_eq!(late.head().state.root(), late.head().block.header.state_root);
    });
}

fn forge(headers: &mut [Header]) -> Vec<u8> {
    let header = headers.last_mut().unwrap();
    header.state_root = B256::repeat_byte(1);
    certify(&PrivateKey::from_seed(2), &B256::ZERO, header)
}

#[test]
fn whoever_lies_is_refused_and_leaves_nothing() {
    run(|mut context| async move {
        let genesis = genesis(ACCOUNTS);
        let server = long_chain(&genesis, 42);
        let truth = Peer::honest(&server);
        let offers: [fn(&mut Offer); 8] = [
            |offer| offer.headers[0].state_root = B256::repeat_byte(1),
            |offer| offer.finalization = forge(&mut offer.headers),
            |offer| *offer.finalization.last_mut().unwrap() ^= 1,
            |offer| offer.finalization.clear(),
            |offer| drop(offer.headers.pop()),
            |offer| offer.headers[0].number = u64::MAX,
            |offer| offer.headers[0].number += 1,
            |offer| offer.headers.insert(1, offer.headers[0].clone()),
        ];
        // The last block has no certificate of its own, so there are two headers.
        extend(&server, 1);
        assert_eq!(offer(&server).unwrap().unwrap().headers.len(), 2);
        let ends: [fn(&mut Vec<EpochEnd>); 8] = [
            |ends| ends.clear(),
            |ends| ends[0].next.members[0].key = [7; 32],
            |ends| ends[0].next.epoch += 1,
            |ends| ends[0].next.blocks += 1,
            |ends| {
                ends[0].header.extra_data =
                    Committee { epoch: 9, ..ends[0].next.clone() }.hash().to_vec().into()
            },
            |ends| ends[0].finalization = forge(&mut [ends[0].header.clone()]),
            |ends| ends[0].finalization.truncate(90),
            |ends| ends.rotate_left(1),
        ];
        let pieces: [fn(&mut Piece); 5] = [
            |piece| {
                if let Piece::Accounts(entries) = piece {
                    entries[0].account.balance += U256::from(1);
                }
            },
            |piece| {
                if let Piece::Accounts(entries) = piece {
                    entries.pop();
                }
            },
            |piece| {
                if let Piece::Accounts(entries) = piece {
                    entries.insert(0, entries[0].clone());
                }
            },
            |piece| *piece = Piece::Accounts(Vec::new()),
            |piece| *piece = Piece::Slots(Vec::new()),
        ];
        let liars = offers.map(|lie| Peer { offer: Some(lie), ..Peer::honest(&server) }).into_iter();
        let liars = liars.chain(ends.map(|lie| Peer { epochs: Some(lie), ..Peer::honest(&server) }));
        let liars = liars.chain(pieces.map(|lie| Peer { piece: Some(lie), ..Peer::honest(&server) }));
        // One that repeats itself for ever.
        let endless: fn(&mut Vec<EpochEnd>) = |ends| ends.extend(ends.clone());
        let liars = liars.chain([Peer { epochs: Some(endless), ..Peer::honest(&server) }]);
        for (index, liar) in liars.enumerate() {
            let late = in_memory(&genesis, KEPT);
            catch_up(&late, std::slice::from_ref(&liar), &mut context).await.unwrap();
            assert_eq!(number(&late), 0, "lie {index}");
            assert_eq!(
                late.history().state().unwrap().root(),
                late.genesis().header.state_root,
                "lie {index}"
            );
            // What it had of the committees is true.
            for epoch in 0..=6 {
                let kept = late.history().committee(epoch).unwrap();
                assert!(kept.is_none() || kept == server.history().committee(epoch).unwrap(), "lie {index}");
            }
            // Beside somebody honest it changes nothing.
            assert!(!catch_up(&late, &[liar, truth.clone()], &mut context).await.unwrap(), "lie {index}");
            assert_eq!(number(&late), 42, "lie {index}");
            assert_eq!(late.head().state.root(), late.head().block.header.state_root);
        }
    });
}

async fn ask(chain: &Arc<Chain>, method: &str, params: Value) -> Value {
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
    let (answer, _) = methods(chain.clone()).raw_json_request(&request, 16).await.unwrap();
    serde_json::from_str(answer.get()).unwrap()
}

fn epochs_are_proven(chain: &Chain, mut random: deterministic::Context) {
    let ends = epochs(chain, 0).unwrap();
    assert_eq!(ends.len(), 5);
    for (epoch, end) in (0..).zip(ends) {
        let committee = chain.history().committee(epoch).unwrap().unwrap();
        let proven = check_finalization(&chain.genesis().hash(), &committee, &end.finalization, &mut random);
        assert_eq!(proven, Some(end.header.hash_slow()), "{epoch}");
        assert_eq!(*end.header.extra_data, end.next.hash().as_slice());
    }
}

#[tokio::test]
async fn old_blocks_leave_the_disk_and_the_ends_of_epochs_stay() {
    let genesis = genesis(0);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("chain.redb");
    let chain = open(&genesis, &file, KEPT);
    extend(&chain, 1);
    let first = chain.history().block(1).unwrap().unwrap().block.transactions[0].hash().to_string();
    assert_ne!(ask(&chain, "eth_getTransactionByHash", json!([first])).await["result"], Value::Null);
    extend(&chain, 29);
    drop(chain);
    let chain = open(&genesis, &file, KEPT);
    extend(&chain, 10);
    assert_eq!(chain.history().first().unwrap(), 25);
    let pruned = |answer: &Value| {
        assert_eq!(
            answer["error"],
            json!({"code": 4444, "message": "pruned history unavailable"}),
            "{answer}"
        );
    };
    let hash = chain.history().header(23).unwrap().unwrap().hash_slow().to_string();
    pruned(&ask(&chain, "eth_getBlockByNumber", json!(["0x18", false])).await);
    pruned(&ask(&chain, "eth_getBlockByHash", json!([hash, true])).await);
    pruned(&ask(&chain, "eth_getBlockReceipts", json!(["0x1"])).await);
    pruned(&ask(&chain, "debug_getRawHeader", json!(["0x1"])).await);
    pruned(&ask(&chain, "eth_getLogs", json!([{"fromBlock": "0x1", "toBlock": "latest"}])).await);
    pruned(&ask(&chain, "eth_getLogs", json!([{"fromBlock": "0x0", "toBlock": "latest"}])).await);
    pruned(&ask(&chain, "eth_getLogs", json!([{"blockHash": hash}])).await);
    pruned(&ask(&chain, "eth_feeHistory", json!(["0x20", "latest", [50]])).await);
    pruned(&ask(&chain, "assay_getBlocks", json!(["0x5"])).await);
    assert_eq!(ask(&chain, "eth_getTransactionByHash", json!([first])).await["result"], Value::Null);
    assert_eq!(ask(&chain, "eth_getTransactionReceipt", json!([first])).await["result"], Value::Null);
    // Block 0, the first that is there, and the head are.
    for (tag, number) in [("0x0", "0x0"), ("earliest", "0x19"), ("0x19", "0x19"), ("latest", "0x28")] {
        assert_eq!(ask(&chain, "eth_getBlockByNumber", json!([tag, true])).await["result"]["number"], number);
    }
    let logs = ask(&chain, "eth_getLogs", json!([{"fromBlock": "earliest", "toBlock": "latest"}])).await;
    assert_eq!(logs["result"], json!([]));
    // Light clients and nodes that join still find the way.
    let proven = chain.clone();
    tokio::task::spawn_blocking(move || run(|context| async move { epochs_are_proven(&proven, context) }))
        .await
        .unwrap();
    let history = chain.history();
    let kept = |number: &u64| history.header(*number).unwrap().is_some();
    assert_eq!((0..=40).filter(kept).collect::<Vec<_>>(), [vec![0, 7, 15, 23], (25..=40).collect()].concat());
    let kept = |number: &u64| history.finalization(*number).unwrap().is_some();
    assert_eq!((0..=26).filter(kept).collect::<Vec<_>>(), [7, 15, 23, 25]);
    let proof = |number: u64| ask(&chain, "assay_getFinalization", json!([number]));
    assert_eq!(proof(23).await["result"]["headers"].as_array().map(Vec::len), Some(1));
    assert_eq!(proof(26).await["result"]["headers"].as_array().map(Vec::len), Some(2));
    pruned(&proof(22).await);
    // Who wants more than before gets it from now on; who wants less drops the rest, a few with each block.
    drop(chain);
    let chain = open(&genesis, &file, Retention { blocks: Some(4) });
    extend(&chain, 1);
    assert_eq!(chain.history().first().unwrap(), 38);
    drop(chain);
    let chain = open(&genesis, &file, Retention { blocks: None });
    extend(&chain, 20);
    assert_eq!(chain.history().first().unwrap(), 38);
}
