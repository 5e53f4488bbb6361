//! Agreement: simplex with marshal, of commonware, whose interface changes monthly: besides this module only the node's start and the
//! simulation know it.
//!
//! A block that the committee of its epoch agreed on is final; there is no other kind on this chain. The last block of an epoch names
//! the next committee ([`assay_ledger::Committee`]), so whoever executes it knows who decides what follows: when it is final, simplex ends
//! and begins anew with those. Messages of a later epoch tell a validator that fell behind to ask for the end of its own.
//!
//! Every validator executes a block before it votes for it. A block is executed on its parent's state whether or not the parent is final yet, so proposing does not wait
//! for finality. Votes and blocks are on disk before they count (commonware's journals), so a validator that was killed neither forgets
//! nor contradicts what it voted.

mod seats;

use std::collections::BTreeMap;
use std::future::pending;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use alloy_rlp::Decodable;
use assay_ledger::types::{Address, B256, Bytes, keccak256};
use assay_ledger::{
    Attributes, Block, Committee, MAX_BLOCK_BYTES, MAX_MEMBERS, MAX_SEATS, MAX_TRANSACTION_BYTES,
    Transaction, view,
};
use bytes::BufMut;
use commonware_actor::Feedback;
use commonware_broadcast::buffered;
use commonware_codec::{Buf, Decode, Encode, EncodeSize, Error as CodecError, Read, Write};
use commonware_consensus::marshal::ancestry::Ancestry;
use commonware_consensus::marshal::core::{Actor as Marshal, Mailbox as MarshalMailbox};
use commonware_consensus::marshal::resolver::p2p as resolver;
use commonware_consensus::marshal::standard::{Inline, Standard};
use commonware_consensus::marshal::{self, Start, Update};
use commonware_consensus::simplex::config::{Config, Floor, ForwardPolicy, SkipBudget, SkipPolicy};
use commonware_consensus::simplex::types::{Context, Finalization};
use commonware_consensus::simplex::{self, Engine};
use commonware_consensus::types::{Epoch, FixedEpocher, Height, ViewDelta};
use commonware_consensus::{Application, BoundedBlock, Heightable, Reporter};
use commonware_cryptography::certificate::{self, Scoped, Verifier as _};
use commonware_cryptography::ed25519::{PrivateKey, PublicKey};
use commonware_cryptography::sha256::Digest;
use commonware_cryptography::{Digested, Digestible, Signer};
use commonware_p2p::utils::mux::{self, Builder as _, MuxHandle, Muxer};
use commonware_p2p::{Blocker, Message, Provider, Receiver, Recipients, Sender};
use commonware_parallel::Sequential;
use commonware_runtime::buffer::paged::CacheRef;
use commonware_runtime::{Clock, Handle, IoBuf, Metrics, Quota, Spawner, Storage};
use commonware_storage::archive::prunable;
use commonware_storage::translator::EightCap;
use commonware_utils::vec::NonEmptyVec;
use commonware_utils::{Acknowledgement, NZDuration, NZU16, NZU32, NZU64, NZUsize};
use futures_util::StreamExt;
use futures_util::future::Either;
use rand_core::CryptoRng;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tracing::{debug, error};

use self::seats::{Repeated, Repeater, Scheme, Seats, Turns};
use crate::chain::{Chain, ChainError, Origin};

/// How fast blocks come.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The least time between the proposer's turn and its block: it lets transactions gather.
    pub interval: Duration,
    /// How long a proposer without transactions waits for one before its block is empty.
    pub idle: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { interval: Duration::from_millis(100), idle: Duration::from_millis(800) }
    }
}

/// The p2p channels: numbers, and how many messages a second a peer may send. A validator votes three times a view, and there are at most
/// ten views a second.
///
/// commonware sets memory aside for one second's messages of every peer that a network may have, for what comes in and again for what
/// goes out, and touches it at once: 16,384 transactions a second for each of 129 peers of four epochs were five gigabytes.
pub const CHANNELS: [(u64, u32); 6] = [(0, 128), (1, 128), (2, 64), (3, 32), (4, 128), (5, 32)];

/// The most messages for which a network may set memory aside, in either direction; a message takes some 300 bytes.
const MAILBOX_MESSAGES: usize = 1 << 18;

/// For how many epochs' committees a network keeps connections: this one's and that before.
pub const TRACKED_EPOCHS: usize = 2;

const _: () = {
    let (mut each, mut channel) = (0, 0);
    while channel < CHANNELS.len() {
        each += CHANNELS[channel].1 as usize;
        channel += 1;
    }
    assert!(each * (MAX_MEMBERS + 1) * TRACKED_EPOCHS <= MAILBOX_MESSAGES);
};

/// The most bytes of transactions in one message, and how long the next one waits, so that a second's fit the channel.
const GOSSIP_BYTES: usize = 2 * MAX_TRANSACTION_BYTES;
const GOSSIP_INTERVAL: Duration = Duration::from_millis(40);

/// A sender and a receiver for each of [`CHANNELS`]: votes, certificates, their resolver, blocks, backfill, transactions.
pub type Channels<S, R> = [(S, R); 6];

/// A block as consensus sees it. Its digest is its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload(pub Block);

impl Write for Payload {
    fn write(&self, buf: &mut impl BufMut) {
        let bytes = self.0.encode();
        (bytes.len() as u32).write(buf);
        buf.put_slice(&bytes);
    }
}

impl EncodeSize for Payload {
    fn encode_size(&self) -> usize {
        4 + self.0.encoded_len()
    }
}

/// What helps to read blocks: the chain, where there is one.
#[derive(Clone, Default)]
pub struct Known(Option<Arc<Chain>>);

impl Read for Payload {
    type Cfg = Known;

    fn read_cfg(buf: &mut impl Buf, known: &Known) -> Result<Self, CodecError> {
        let length = u32::read_cfg(buf, &())? as usize;
        if length > MAX_BLOCK_BYTES {
            return Err(CodecError::InvalidLength(length));
        }
        if buf.remaining() < length {
            return Err(CodecError::EndOfBuffer);
        }
        let mut bytes = vec![0; length];
        buf.copy_to_slice(&mut bytes);
        let block = match &known.0 {
            Some(chain) => chain.decode(&bytes),
            None => Block::decode(&bytes),
        };
        block.map(Self).map_err(|error| CodecError::Wrapped("block", error.into()))
    }
}

impl Digestible for Payload {
    type Digest = Digest;

    fn digest(&self) -> Digest {
        Digest(self.0.hash().0)
    }
}

impl Heightable for Payload {
    fn height(&self) -> Height {
        Height::new(self.0.header.number)
    }
}

impl commonware_consensus::Block for Payload {
    fn parent(&self) -> Digest {
        Digest(self.0.header.parent_hash.0)
    }
}

impl BoundedBlock for Payload {
    fn max_encode_size(_: &Known) -> usize {
        4 + MAX_BLOCK_BYTES
    }
}

/// See [`Participation::clock`].
pub type Timepiece = Arc<dyn Fn(SystemTime) -> SystemTime + Send + Sync>;

/// How far in the future a block's time may be for a validator to wait for it. A proposer whose clock is further ahead has no vote.
const FUTURE: Duration = Duration::from_secs(3_600);

/// What consensus asks of the chain.
#[derive(Clone)]
struct App {
    chain: Arc<Chain>,
    pace: Pace,
    beneficiary: Address,
    clock: Timepiece,
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl App {
    /// Executes what is not yet executed, down from the first block of the stream. `None` where ancestors do not arrive.
    async fn execute(&self, mut ancestry: impl Ancestry<Payload>) -> Option<Result<B256, ChainError>> {
        let mut missing = Vec::new();
        let mut newest = None;
        loop {
            let block = ancestry.next().await?.inner().0.clone();
            let hash = block.hash();
            newest.get_or_insert(hash);
            if self.chain.knows(&hash) {
                break;
            }
            // Below the head there are only ancestors of the head, or blocks that lost.
            if block.header.number <= self.chain.head().block.header.number {
                return Some(Err(ChainError::Parent(hash)));
            }
            missing.push(block);
        }
        for block in missing.iter().rev() {
            if let Err(error) = self.chain.import(block) {
                return Some(Err(error));
            }
        }
        newest.map(Ok)
    }
}

impl<E: Clock + Spawner + Metrics> Application<E> for App {
    type SigningScheme = Scheme;
    type Context = Context<Digest, PublicKey>;
    type Block = Payload;
    type Input = ();

    async fn propose(
        &mut self,
        (context, turn): (E, Self::Context),
        ancestry: impl Ancestry<Payload>,
        (): (),
    ) -> Option<Digested<Payload>> {
        let began = context.current();
        let parent = match self.execute(ancestry).await? {
            Ok(parent) => parent,
            Err(error) => {
                error!(%error, "the parent could not be executed");
                return None;
            }
        };
        context.sleep_until(began + self.pace.interval).await;
        let idle = context.sleep_until(began + self.pace.idle);
        tokio::pin!(idle);
        while !self.chain.has_work(&parent) {
            tokio::select! {
                biased;
                () = self.chain.work() => {}
                () = &mut idle => break,
            }
        }
        let attributes = Attributes {
            timestamp: seconds((self.clock)(context.current())),
            beneficiary: self.beneficiary,
            view: turn.round.view().get(),
        };
        match self.chain.propose(&parent, attributes) {
            Ok(block) => {
                let payload = Payload(block);
                let digest = payload.digest();
                Some(Digested::precomputed(payload, digest))
            }
            Err(error) => {
                error!(%error, "no block could be proposed");
                None
            }
        }
    }

    async fn verify(
        &mut self,
        (context, turn): (E, Self::Context),
        ancestry: impl Ancestry<Payload>,
    ) -> bool {
        if let Some(block) = ancestry.peek() {
            // Everybody else counts missed turns by what the header says.
            if view(&block.inner().0.header) != turn.round.view().get() {
                error!("a proposed block names another view than its own");
                return false;
            }
            // Whether a time has come is for later to say, and never the same for two clocks: wait, do not refuse.
            let time = Duration::from_secs(block.inner().0.header.timestamp);
            let Some(time) = SystemTime::UNIX_EPOCH.checked_add(time) else { return false };
            let wait = time.duration_since((self.clock)(context.current())).unwrap_or_default();
            if wait > FUTURE {
                return pending().await;
            }
            context.sleep(wait).await;
        }
        match self.execute(ancestry).await {
            Some(Ok(_)) => true,
            Some(Err(ChainError::Block(error))) => {
                error!(%error, "a proposed block is invalid");
                false
            }
            // No verdict: the ancestors may still come, and a failing disk says nothing about the block.
            other => {
                debug!(?other, "a proposed block could not be judged");
                pending().await
            }
        }
    }
}

impl Reporter for App {
    type Activity = Update<Payload>;

    fn report(&mut self, activity: Self::Activity) -> Feedback {
        if let Update::Block(block, acknowledgement) = activity {
            match self.chain.finalize(&block.inner().0) {
                Ok(()) => acknowledgement.acknowledge(),
                // Without the acknowledgement marshal stops, and with it the node: nothing is lost, and going on could lose something.
                Err(error) => {
                    error!(%error, "a finalized block could not be kept; the node stops");
                    self.chain.fail(error.to_string());
                    return Feedback::Closed;
                }
            }
        }
        Feedback::Ok
    }
}

/// Who takes part, and what for.
pub struct Participation {
    /// The chain that follows.
    pub chain: Arc<Chain>,
    /// This validator's key.
    pub key: PrivateKey,
    /// Who gets the tips of this validator's blocks.
    pub beneficiary: Address,
    /// How fast blocks come.
    pub pace: Pace,
    /// What this machine's clock says when the runtime's says this: the same, except where a test has it wrong.
    pub clock: Timepiece,
    /// What the names of its files begin with.
    pub partition: String,
    /// Makes the network connect to a committee; called with each new one.
    pub track: Box<dyn FnMut(&Committee) + Send>,
}

/// Why consensus ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Something failed, and the log says what.
    Failed,
    /// The validator has no seat in the epoch that begins.
    Unseated,
}

/// Signatures of one chain mean nothing on another.
fn namespace(genesis: &B256) -> Vec<u8> {
    [b"assay consensus ".as_slice(), genesis.as_slice()].concat()
}

/// The keys of a committee's members that are keys, with their endpoints.
pub fn peers(committee: &Committee) -> Vec<(PublicKey, String)> {
    let seats = Seats::new(committee);
    let keys = seats.iter().flat_map(Seats::keys);
    keys.map(|(i, key)| (key.clone(), committee.members[i].endpoint.clone())).collect()
}

/// The schemes of epochs, as far as the chain knows their committees.
#[derive(Clone)]
struct Schemes {
    chain: Arc<Chain>,
    key: PrivateKey,
    recent: Arc<Mutex<BTreeMap<u64, Arc<Scheme>>>>,
}

/// How many epochs' schemes are kept at hand.
const RECENT_SCHEMES: usize = 8;

impl Schemes {
    fn of(&self, epoch: Epoch) -> Option<Arc<Scheme>> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scheme) = recent.get(&epoch.get()) {
            return Some(scheme.clone());
        }
        let committee = self.chain.history().committee(epoch.get()).ok()??;
        let seats = Arc::new(Seats::new(&committee)?);
        let scheme = Arc::new(Scheme::new(&namespace(&self.chain.genesis().hash()), seats, Some(&self.key)));
        recent.insert(epoch.get(), scheme.clone());
        if recent.len() > RECENT_SCHEMES {
            recent.pop_first();
        }
        Some(scheme)
    }
}

impl certificate::Provider for Schemes {
    type Scope = Epoch;
    type Scheme = Scheme;

    fn scoped(&self, epoch: Epoch) -> Option<Scoped<Scheme>> {
        self.of(epoch).map(Scoped::scheme)
    }
}

/// The largest message that any channel carries, in bytes.
pub fn largest_message() -> u32 {
    let simplex = mux::prefixed(simplex::max_payload_size::<Scheme, Digest>(MAX_SEATS));
    let marshal = marshal::max_payload_size::<Standard<Payload>, Scheme>(MAX_SEATS, &Known::default());
    commonware_p2p::max_message_size(&[simplex, marshal, 2 * GOSSIP_BYTES])
}

const REPLAY_BUFFER: NonZeroUsize = NZUsize!(1 << 20);
const WRITE_BUFFER: NonZeroUsize = NZUsize!(1 << 18);
const MAILBOX: NonZeroUsize = NZUsize!(1024);

/// For so many blocks, or two epochs where those are more, blocks and certificates stay in consensus's own archives too, where
/// validators that were away get them from each other. Who was away longer follows JSON-RPC.
const ARCHIVED_BLOCKS: u64 = 1 << 16;
/// Archives lose so many blocks at a time.
const SECTION: NonZeroU64 = NZU64!(1 << 12);

fn archive<C>(prefix: &str, name: &str, cache: &CacheRef, codec_config: C) -> prunable::Config<EightCap, C> {
    let partition = |part: &str| format!("{prefix}-{name}-{part}");
    prunable::Config {
        translator: EightCap,
        metadata_partition: partition("sections"),
        key_partition: partition("index"),
        key_page_cache: cache.clone(),
        value_partition: partition("items"),
        compression: None,
        codec_config,
        items_per_section: SECTION,
        key_write_buffer: WRITE_BUFFER,
        value_write_buffer: WRITE_BUFFER,
        replay_buffer: REPLAY_BUFFER,
    }
}

/// Starts consensus over the channels of a network. It ends when something failed, or the validator has no seat.
pub async fn start<E, P, B, S, R>(
    context: E,
    who: Participation,
    peers: P,
    blocker: B,
    channels: Channels<S, R>,
) -> Result<Handle<End>, String>
where
    E: CryptoRng + Spawner + Metrics + Clock + Storage,
    P: Provider<PublicKey = PublicKey>,
    B: Blocker<PublicKey = PublicKey>,
    S: Sender<PublicKey = PublicKey>,
    R: Receiver<PublicKey = PublicKey>,
{
    let Participation { chain, key, beneficiary, pace, clock, partition, track } = who;
    let me = key.public_key();
    let schemes = Schemes { chain: chain.clone(), key, recent: Arc::default() };
    let [votes, certificates, resolving, blocks, backfill, transactions] = channels;
    let cache = CacheRef::new(NZU16!(4096), NZUsize!(2048));
    let known = Known(Some(chain.clone()));
    let first = chain.committee().ok_or("the chain has no validators: its genesis names none")?;
    let length = NonZeroU64::new(first.blocks).ok_or("an epoch has no blocks")?;
    let epocher = FixedEpocher::new(length);

    let finalizations = prunable::Archive::<EightCap, _, _, Finalization<Scheme, Digest>>::init(
        context.child("finalizations"),
        archive(&partition, "finalizations", &cache, Scheme::certificate_codec_config_unbounded()),
    )
    .await
    .map_err(|error| format!("the archive of finalizations could not be opened: {error}"))?;
    let finalized = prunable::Archive::<EightCap, _, _, Arc<Payload>>::init(
        context.child("blocks"),
        archive(&partition, "blocks", &cache, known.clone()),
    )
    .await
    .map_err(|error| format!("the archive of blocks could not be opened: {error}"))?;

    // Whoever followed the chain without a seat has its blocks elsewhere: consensus begins with the end of the epoch before.
    let before = (first.epoch * first.blocks).checked_sub(1);
    let floor = before.and_then(|number| chain.history().finalization(number).ok()?).and_then(|bytes| {
        let config = Scheme::certificate_codec_config_unbounded();
        Finalization::<Scheme, Digest>::decode_cfg(bytes::Bytes::from(bytes), &config).ok()
    });
    let genesis = Payload(chain.genesis().clone());
    let begin = floor.map_or_else(
        || Start::Genesis(Digested::precomputed(genesis.clone(), genesis.digest())),
        Start::Floor,
    );
    let (marshal, mailbox, _) = Marshal::<_, Standard<Payload>, _, _, _, _, _>::init(
        context.child("marshal"),
        finalizations,
        finalized,
        marshal::Config {
            provider: schemes.clone(),
            epocher: epocher.clone(),
            start: begin,
            partition_prefix: partition.clone(),
            mailbox_size: MAILBOX,
            view_retention: ViewDelta::new(512),
            prunable_items_per_section: NZU64!(1 << 10),
            page_cache: cache.clone(),
            replay_buffer: REPLAY_BUFFER,
            key_write_buffer: WRITE_BUFFER,
            value_write_buffer: WRITE_BUFFER,
            block_codec_config: known.clone(),
            max_repair: NZUsize!(32),
            max_pending_acks: NZUsize!(16),
            strategy: Sequential,
        },
    )
    .await;

    let (buffer, buffered) = buffered::Engine::new(
        context.child("buffer"),
        buffered::Config {
            public_key: me.clone(),
            mailbox_size: MAILBOX,
            deque_size: 16,
            priority: true,
            codec_config: known,
            peer_provider: peers.clone(),
            strategy: Sequential,
        },
    );
    let resolver = resolver::init(
        context.child("resolver"),
        resolver::Config {
            public_key: me,
            peer_provider: peers,
            blocker: blocker.clone(),
            mailbox_size: MAILBOX,
            fetch_timeout: NZDuration!(Duration::from_secs(2)),
            fetch_retry_delay: Duration::from_millis(100),
            priority_requests: false,
            priority_responses: false,
        },
        backfill,
    );

    let app = App { chain: chain.clone(), pace, beneficiary, clock };
    let (votes_mux, votes, later) =
        Muxer::builder(context.child("votes"), votes.0, votes.1).with_backup().build();
    let (certificates_mux, certificates) =
        Muxer::new(context.child("certificates"), certificates.0, certificates.1);
    let (resolving_mux, resolving) = Muxer::new(context.child("resolving"), resolving.0, resolving.1);
    votes_mux.start();
    certificates_mux.start();
    resolving_mux.start();
    let (sender, receiver) = transactions;
    let handles = [
        buffer.start(blocks),
        marshal.start(app.clone(), buffered, resolver),
        tell(context.child("tell"), chain.clone(), sender),
        listen(context.child("listen"), chain.clone(), receiver),
        keep_certificates(context.child("proofs"), chain, mailbox.clone()),
    ];
    let epochs = Epochs {
        app,
        schemes,
        mailbox,
        epocher,
        blocker,
        cache,
        partition,
        votes,
        certificates,
        resolving,
        later,
        track,
    };
    let epochs = context.child("epochs").spawn(move |context| Box::pin(epochs.run(context)));
    let all = context.child("consensus").spawn(move |_| async move {
        // Whichever ends first takes the others with it: dropping a handle's owner aborts what it spawned.
        let parts = futures_util::future::select_all(handles);
        let end = match futures_util::future::select(epochs, parts).await {
            Either::Left((end, parts)) => {
                parts.into_inner().iter().for_each(Handle::abort);
                end.unwrap_or(End::Failed)
            }
            Either::Right(((first, _, rest), epochs)) => {
                debug!(?first, "a part of consensus ended");
                rest.iter().for_each(Handle::abort);
                epochs.abort();
                End::Failed
            }
        };
        debug!(?end, "consensus ended");
        end
    });
    Ok(all)
}

/// What simplex needs in every epoch.
struct Epochs<B, S: Sender<PublicKey = PublicKey>> {
    app: App,
    schemes: Schemes,
    mailbox: MarshalMailbox<Scheme, Standard<Payload>>,
    epocher: FixedEpocher,
    blocker: B,
    cache: CacheRef,
    partition: String,
    votes: MuxHandle<S>,
    certificates: MuxHandle<S>,
    resolving: MuxHandle<S>,
    /// Votes of epochs that are not this one.
    later: tokio::sync::mpsc::Receiver<(u64, Message<PublicKey>)>,
    track: Box<dyn FnMut(&Committee) + Send>,
}

impl<B, S> Epochs<B, S>
where
    B: Blocker<PublicKey = PublicKey>,
    S: Sender<PublicKey = PublicKey>,
{
    async fn run<E>(mut self, context: E) -> End
    where
        E: CryptoRng + Spawner + Metrics + Clock + Storage,
    {
        let chain = self.app.chain.clone();
        let mut heads = chain.subscribe_heads();
        let mut tracked = None;
        loop {
            // There is one from the genesis on, or `start` has failed.
            let Some(committee) = chain.committee() else { return End::Failed };
            if tracked.is_none()
                && let Some(epoch) = committee.epoch.checked_sub(1)
                && let Ok(Some(before)) = chain.history().committee(epoch)
            {
                // Those who are not yet here.
                (self.track)(&before);
            }
            tracked = Some(committee.epoch);
            (self.track)(&committee);
            let scheme = self.schemes.of(Epoch::new(committee.epoch)).filter(|scheme| scheme.signs());
            let Some(scheme) = scheme else { return End::Unseated };
            let mut engine = match self.engine(&context, &committee, &scheme).await {
                Ok(engine) => engine,
                Err(error) => {
                    error!(error, "consensus could not begin an epoch");
                    return End::Failed;
                }
            };
            debug!(epoch = committee.epoch, "an epoch begins");
            let last = committee.last_block();
            while chain.head().block.header.number < last {
                tokio::select! {
                    // In this order always: a simulation follows from its seed.
                    biased;
                    head = heads.recv() => {
                        if matches!(head, Err(RecvError::Closed)) {
                            return End::Failed;
                        }
                    }
                    _ = &mut engine => return End::Failed,
                    Some((epoch, (peer, _))) = self.later.recv() => {
                        if epoch > committee.epoch {
                            self.mailbox.hint_finalized(Height::new(last), NonEmptyVec::new(peer));
                        }
                    }
                }
            }
            engine.abort();
            // It was aborted, which is no news.
            let _ = engine.await;
            // What is left of the epoch's votes is of no use, and not worth stopping for.
            let _ = context.remove(&self.journal(committee.epoch), None).await;
        }
    }

    fn journal(&self, epoch: u64) -> String {
        format!("{}-simplex-{epoch}", self.partition)
    }

    async fn engine<E>(
        &mut self,
        context: &E,
        committee: &Committee,
        scheme: &Scheme,
    ) -> Result<Handle<()>, String>
    where
        E: CryptoRng + Spawner + Metrics + Clock + Storage,
    {
        let chain = &self.app.chain;
        let parent = match (committee.epoch * committee.blocks).checked_sub(1) {
            None => chain.genesis().hash(),
            Some(number) => chain
                .history()
                .header(number)
                .map_err(|error| error.to_string())?
                .ok_or("the last block of the epoch before is missing")?
                .hash_slow(),
        };
        let epoch = committee.epoch;
        let failed = |error: mux::Error| error.to_string();
        let (sender, receiver) = self.votes.register(epoch).await.map_err(failed)?;
        let certificates = self.certificates.register(epoch).await.map_err(failed)?;
        let resolving = self.resolving.register(epoch).await.map_err(failed)?;
        let (repeats, repeated) = tokio::sync::mpsc::unbounded_channel();
        let context = context.child("epoch").with_attribute("epoch", epoch);
        let inline = Inline::new(
            context.child("application"),
            self.app.clone(),
            self.mailbox.clone(),
            self.epocher.clone(),
        );
        let pace = self.app.pace;
        let engine = Engine::new(
            context.child("simplex"),
            Config {
                scheme: scheme.clone(),
                elector: Turns::new(scheme.seats()),
                blocker: self.blocker.clone(),
                automaton: inline.clone(),
                relay: inline.clone(),
                reporter: Repeater {
                    inner: inline,
                    chain: self.app.chain.clone(),
                    seats: scheme.seats().clone(),
                    votes: repeats,
                    witness: Arc::default(),
                },
                // A second vote may come late, when the first has long been counted. It is evidence all the same.
                track_historical_votes: true,
                strategy: Sequential,
                partition: self.journal(epoch),
                mailbox_size: MAILBOX,
                epoch: Epoch::new(epoch),
                floor: Floor::Genesis(Digest(parent.0)),
                replay_buffer: REPLAY_BUFFER,
                write_buffer: WRITE_BUFFER,
                page_cache: self.cache.clone(),
                leader_timeout: pace.idle + Duration::from_secs(1),
                certification_timeout: pace.idle + Duration::from_secs(2),
                // Whoever comes back hears of the view that the others are in with their next attempt to leave it.
                timeout_retry: Duration::from_secs(1),
                view_retention: ViewDelta::new(256),
                skip: SkipPolicy::Enabled {
                    timeout: Duration::from_secs(10),
                    budget: SkipBudget::Participants,
                },
                fetch_timeout: NZDuration!(Duration::from_secs(2)),
                fetch_retry_delay: Duration::from_millis(100),
                forward: ForwardPolicy::SilentVoters,
            },
        );
        Ok(engine.start((sender, Repeated { inner: receiver, votes: repeated }), certificates, resolving))
    }
}

/// Puts the certificates of finalized blocks beside the blocks, and lets the archives forget.
fn keep_certificates<E: Spawner>(
    context: E,
    chain: Arc<Chain>,
    mailbox: MarshalMailbox<Scheme, Standard<Payload>>,
) -> Handle<()> {
    context.spawn(move |_| async move {
        let mut heads = chain.subscribe_heads();
        // A crash may have lost the last ones: they are not synced by themselves.
        let head = chain.head().block.header.number;
        let mut next = head.saturating_sub(32).max(1);
        loop {
            let head = chain.head().block.header.number;
            for number in next..=head {
                if let Some(finalization) = mailbox.get_finalization(Height::new(number)).await
                    && let Err(error) = chain.history().keep_finalization(number, &finalization.encode())
                {
                    error!(%error, "a certificate could not be kept");
                }
            }
            next = head + 1;
            if let Some(committee) = chain.committee() {
                let kept = ARCHIVED_BLOCKS.max(2 * committee.blocks);
                mailbox.prune(Height::new(head.saturating_sub(kept)));
            }
            if let Err(RecvError::Closed) = heads.recv().await {
                return;
            }
        }
    })
}

/// Tells peers of transactions that arrived here: the first at once, and those that come soon after it together.
fn tell<E, S>(context: E, chain: Arc<Chain>, mut sender: S) -> Handle<()>
where
    E: Spawner + Clock,
    S: Sender<PublicKey = PublicKey>,
{
    context.spawn(move |context| async move {
        let mut local = chain.subscribe_transactions();
        let mut next = None;
        loop {
            let mut message = Vec::new();
            if let Some(first) = next.take() {
                message.push(first);
            } else {
                match local.recv().await {
                    Ok((transaction, Origin::Local)) => message.push(transaction.bytes().clone()),
                    Ok((_, Origin::Peer)) | Err(RecvError::Lagged(_)) => continue,
                    Err(RecvError::Closed) => return,
                }
            }
            let mut bytes = message[0].len();
            loop {
                match local.try_recv() {
                    Ok((transaction, Origin::Local)) => {
                        let transaction = transaction.bytes().clone();
                        bytes += transaction.len();
                        if bytes > GOSSIP_BYTES {
                            next = Some(transaction);
                            break;
                        }
                        message.push(transaction);
                    }
                    Ok((_, Origin::Peer)) | Err(TryRecvError::Lagged(_)) => {}
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                }
            }
            sender.send(Recipients::All, IoBuf::from(alloy_rlp::encode(&message)), false);
            context.sleep(GOSSIP_INTERVAL).await;
        }
    })
}

/// Takes the transactions that peers tell of. Recovering their senders takes a thread for a while.
fn listen<E, R>(context: E, chain: Arc<Chain>, mut receiver: R) -> Handle<()>
where
    E: Spawner,
    R: Receiver<PublicKey = PublicKey>,
{
    context.shared(true).spawn(move |_| async move {
        while let Ok((_, message)) = receiver.recv().await {
            let Ok(transactions) = Vec::<Bytes>::decode(&mut message.as_ref()) else { continue };
            for bytes in transactions {
                if chain.pool(|pool| pool.get(&keccak256(&bytes)).is_some()) {
                    continue;
                }
                if let Ok(transaction) = Transaction::decode(&bytes) {
                    // A peer's pool may be ahead or behind; what does not fit here is not its fault.
                    let _ = chain.add(transaction, Origin::Peer);
                }
            }
        }
    })
}

/// A channel's quota.
pub fn quota(per_second: u32) -> Quota {
    Quota::per_second(std::num::NonZeroU32::new(per_second).unwrap_or(NZU32!(1)))
}

/// Checks a finalization's certificate against the committee of its epoch, and says which block it makes final, by its hash.
pub fn check_finalization<G: CryptoRng>(
    genesis: &B256,
    committee: &Committee,
    encoded: &[u8],
    random: &mut G,
) -> Option<B256> {
    let scheme = Scheme::new(&namespace(genesis), Arc::new(Seats::new(committee)?), None);
    let config = scheme.certificate_codec_config();
    let finalization =
        Finalization::<Scheme, Digest>::decode_cfg(bytes::Bytes::copy_from_slice(encoded), &config).ok()?;
    let proven = finalization.proposal.round.epoch().get() == committee.epoch
        && finalization.verify(random, &scheme, &Sequential);
    proven.then(|| B256::from(finalization.proposal.payload.0))
}

#[cfg(test)]
mod tests {
    use assay_ledger::types::hex;
    use assay_ledger::{Genesis, PoolLimits};
    use commonware_consensus::marshal::ancestry;
    use commonware_consensus::types::{Round, View};
    use commonware_runtime::{Runner, Supervisor, deterministic};

    use super::*;
    use crate::history::History;

    #[test]
    fn a_vote_needs_the_right_view_and_a_time_that_comes() {
        deterministic::Runner::default().start(|context| async move {
            let key = PrivateKey::from_seed(1).public_key();
            let text = format!(
                r#"{{"chainId": 7, "timestamp": 0, "gasLimit": 30000000, "alloc": {{}},
                     "validators": [{{"key": "{}", "endpoint": "", "beneficiary": "{}"}}]}}"#,
                hex::encode(key.encode()),
                Address::ZERO
            );
            let genesis = Genesis::from_json(&text).expect("it is one");
            let chain = Chain::open(&genesis, PoolLimits::default(), History::in_memory).expect("in memory");
            let clock: Timepiece = Arc::new(|now| now);
            let app =
                App { chain: Arc::new(chain), pace: Pace::default(), beneficiary: Address::ZERO, clock };
            let first = Payload(app.chain.genesis().clone());
            // What a validator says within two hours of a block with this time and view, in view 3.
            let verdict = async |timestamp: u64, view: u64| {
                let attributes = Attributes { timestamp, beneficiary: Address::ZERO, view };
                let block = app.chain.propose(&app.chain.genesis().hash(), attributes).expect("a block");
                let blocks = [Payload(block), first.clone()];
                let blocks = blocks.map(|block| Digested::precomputed(block.clone(), block.digest()));
                let turn = Context {
                    round: Round::new(Epoch::zero(), View::new(3)),
                    leader: key.clone(),
                    parent: (View::zero(), first.digest()),
                };
                let mut app = app.clone();
                let judged = app.verify((context.child("judge"), turn), ancestry::from_iter(blocks));
                tokio::select! {
                    biased;
                    valid = judged => Some(valid),
                    () = context.sleep(2 * FUTURE) => None,
                }
            };
            let now = || seconds(context.current());
            assert_eq!(verdict(now(), 3).await, Some(true));
            for wrong in [0, 2, 4, u64::MAX] {
                assert_eq!(verdict(now(), wrong).await, Some(false), "view {wrong}");
            }
            // A time that is soon is waited for. A clock that is hours ahead gets no vote, and no verdict, since it may be one's own.
            let soon = now() + 30;
            assert_eq!(verdict(soon, 3).await, Some(true));
            assert!((soon..soon + 2).contains(&now()));
            assert_eq!(verdict(now() + FUTURE.as_secs() + 2, 3).await, None);
            assert_eq!(verdict(u64::MAX, 3).await, Some(false), "no time at all");
        });
    }
}
