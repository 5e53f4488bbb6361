//! Agreement: simplex with marshal, of commonware. The only file that knows commonware's interface, which changes monthly.
//!
//! A block that the validators of the genesis agreed on is final; there is no other kind on this chain. Every validator executes a block
//! before it votes for it. A block is executed on its parent's state whether or not the parent is final yet, so proposing does not wait
//! for finality. Votes and blocks are on disk before they count (commonware's journals), so a validator that was killed neither forgets
//! nor contradicts what it voted.

use std::future::pending;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use assay_ledger::types::{Address, B256};
use assay_ledger::{Block, MAX_BLOCK_BYTES, MAX_TRANSACTION_BYTES, Transaction};
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
use commonware_consensus::simplex::elector::RoundRobin;
use commonware_consensus::simplex::scheme::ed25519::Scheme;
use commonware_consensus::simplex::types::{Context, Finalization};
use commonware_consensus::simplex::{self, Engine};
use commonware_consensus::types::{Epoch, FixedEpocher, Height, ViewDelta};
use commonware_consensus::{Application, BoundedBlock, Heightable, Reporter};
use commonware_cryptography::certificate::{ConstantProvider, Verifier as _};
use commonware_cryptography::ed25519::{PrivateKey, PublicKey};
use commonware_cryptography::sha256::Digest;
use commonware_cryptography::{Digested, Digestible, Sha256, Signer};
use commonware_p2p::{Blocker, Provider, Receiver, Recipients, Sender};
use commonware_parallel::Sequential;
use commonware_runtime::buffer::paged::CacheRef;
use commonware_runtime::{Clock, Handle, IoBuf, Metrics, Quota, Spawner, Storage};
use commonware_storage::archive::immutable;
use commonware_utils::ordered::Set;
use commonware_utils::{Acknowledgement, NZDuration, NZU16, NZU32, NZU64, NZUsize};
use futures_util::StreamExt;
use rand_core::CryptoRng;
use tokio::sync::broadcast::error::RecvError;
use tracing::{debug, error};

use crate::chain::{Chain, ChainError, Origin};

/// The validators do not change yet, so there is one epoch, longer than any chain.
const EPOCH: Epoch = Epoch::zero();
const EPOCH_LENGTH: NonZeroU64 = NonZeroU64::MAX;

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

/// The p2p channels: numbers, and how many messages a second a peer may send.
pub const CHANNELS: [(u64, u32); 6] = [(0, 1024), (1, 1024), (2, 256), (3, 256), (4, 256), (5, 16_384)];

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

impl Read for Payload {
    type Cfg = ();

    fn read_cfg(buf: &mut impl Buf, _: &()) -> Result<Self, CodecError> {
        let length = u32::read_cfg(buf, &())? as usize;
        if length > MAX_BLOCK_BYTES {
            return Err(CodecError::InvalidLength(length));
        }
        if buf.remaining() < length {
            return Err(CodecError::EndOfBuffer);
        }
        let mut bytes = vec![0; length];
        buf.copy_to_slice(&mut bytes);
        Block::decode(&bytes).map(Self).map_err(|error| CodecError::Wrapped("block", error.into()))
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
    fn max_encode_size(_: &()) -> usize {
        4 + MAX_BLOCK_BYTES
    }
}

/// What consensus asks of the chain.
#[derive(Clone)]
struct App {
    chain: Arc<Chain>,
    pace: Pace,
    beneficiary: Address,
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
        (context, _): (E, Self::Context),
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
        match self.chain.propose(&parent, seconds(context.current()), self.beneficiary) {
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

    async fn verify(&mut self, (context, _): (E, Self::Context), ancestry: impl Ancestry<Payload>) -> bool {
        if let Some(block) = ancestry.peek() {
            // Whether a time has come is for later to say, and never the same for two clocks: wait, do not refuse.
            let time = Duration::from_secs(block.inner().0.header.timestamp);
            match SystemTime::UNIX_EPOCH.checked_add(time) {
                Some(time)
                    if time
                        .duration_since(context.current())
                        .is_ok_and(|wait| wait > Duration::from_secs(3600)) =>
                {
                    return pending().await;
                }
                Some(time) => context.sleep_until(time).await,
                None => return false,
            }
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
    /// This validator's key; it must be among `validators`.
    pub key: PrivateKey,
    /// All validators.
    pub validators: Set<PublicKey>,
    /// Who gets the tips of this validator's blocks.
    pub beneficiary: Address,
    /// How fast blocks come.
    pub pace: Pace,
    /// What the names of its files begin with.
    pub partition: String,
}

/// Finalizations by height: the certificates that prove finality.
pub type Certificates = MarshalMailbox<Scheme, Standard<Payload>>;

/// Signatures of one chain mean nothing on another.
fn namespace(chain: &Chain) -> Vec<u8> {
    [b"assay consensus ".as_slice(), chain.genesis().hash().as_slice()].concat()
}

/// The largest message that any channel carries, in bytes.
pub fn largest_message(validators: usize) -> u32 {
    let count = u32::try_from(validators).unwrap_or(u32::MAX);
    let simplex = simplex::max_payload_size::<Scheme, Digest>(count);
    let marshal = marshal::max_payload_size::<Standard<Payload>, Scheme>(count, &());
    commonware_p2p::max_message_size(&[simplex, marshal, MAX_TRANSACTION_BYTES])
}

const REPLAY_BUFFER: NonZeroUsize = NZUsize!(1 << 20);
const WRITE_BUFFER: NonZeroUsize = NZUsize!(1 << 18);

fn archive<C>(prefix: &str, name: &str, cache: &CacheRef, codec_config: C) -> immutable::Config<C> {
    let partition = |part: &str| format!("{prefix}-{name}-{part}");
    immutable::Config {
        metadata_partition: partition("metadata"),
        freezer_table_partition: partition("table"),
        freezer_table_initial_size: 1 << 10,
        freezer_table_resize_frequency: 4,
        freezer_table_resize_chunk_size: 1 << 12,
        freezer_key_partition: partition("keys"),
        freezer_key_page_cache: cache.clone(),
        freezer_key_write_buffer: WRITE_BUFFER,
        freezer_value_partition: partition("values"),
        freezer_value_target_size: 1 << 28,
        freezer_value_compression: None,
        freezer_value_write_buffer: WRITE_BUFFER,
        ordinal_partition: partition("ordinal"),
        ordinal_write_buffer: WRITE_BUFFER,
        items_per_section: NZU64!(1 << 14),
        codec_config,
        replay_buffer: REPLAY_BUFFER,
    }
}

/// Starts consensus over the channels of a network. The handle ends when something failed; everything stops with it.
pub async fn start<E, P, B, S, R>(
    context: E,
    who: Participation,
    peers: P,
    blocker: B,
    channels: Channels<S, R>,
) -> Result<(Handle<()>, Certificates), String>
where
    E: CryptoRng + Spawner + Metrics + Clock + Storage,
    P: Provider<PublicKey = PublicKey>,
    B: Blocker<PublicKey = PublicKey>,
    S: Sender<PublicKey = PublicKey>,
    R: Receiver<PublicKey = PublicKey>,
{
    let Participation { chain, key, validators, beneficiary, pace, partition } = who;
    let me = key.public_key();
    let scheme = Scheme::signer(&namespace(&chain), validators, key)
        .ok_or("the validator's key is not among the validators of the genesis")?;
    let [votes, certificates, resolving, blocks, backfill, transactions] = channels;
    let cache = CacheRef::new(NZU16!(4096), NZUsize!(2048));
    let mailbox_size = NZUsize!(1024);

    let finalizations = immutable::Archive::<_, _, Finalization<Scheme, Digest>>::init(
        context.child("finalizations"),
        archive(&partition, "finalizations", &cache, Scheme::certificate_codec_config_unbounded()),
    )
    .await
    .map_err(|error| format!("the archive of finalizations could not be opened: {error}"))?;
    let finalized = immutable::Archive::<_, _, Arc<Payload>>::init(
        context.child("blocks"),
        archive(&partition, "blocks", &cache, ()),
    )
    .await
    .map_err(|error| format!("the archive of blocks could not be opened: {error}"))?;

    let genesis = Payload(chain.genesis().clone());
    let floor = Floor::Genesis(genesis.digest());
    let epocher = FixedEpocher::new(EPOCH_LENGTH);
    let (marshal, mailbox, _) = Marshal::<_, Standard<Payload>, _, _, _, _, _>::init(
        context.child("marshal"),
        finalizations,
        finalized,
        marshal::Config {
            provider: ConstantProvider::new(scheme.clone()),
            epocher: epocher.clone(),
            start: Start::Genesis(Digested::precomputed(genesis.clone(), genesis.digest())),
            partition_prefix: partition.clone(),
            mailbox_size,
            view_retention: ViewDelta::new(512),
            prunable_items_per_section: NZU64!(1 << 10),
            page_cache: cache.clone(),
            replay_buffer: REPLAY_BUFFER,
            key_write_buffer: WRITE_BUFFER,
            value_write_buffer: WRITE_BUFFER,
            block_codec_config: (),
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
            mailbox_size,
            deque_size: 16,
            priority: true,
            codec_config: (),
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
            mailbox_size,
            fetch_timeout: NZDuration!(Duration::from_secs(2)),
            fetch_retry_delay: Duration::from_millis(100),
            priority_requests: false,
            priority_responses: false,
        },
        backfill,
    );

    let app = App { chain: chain.clone(), pace, beneficiary };
    let inline = Inline::new(context.child("application"), app.clone(), mailbox.clone(), epocher);
    let engine = Engine::new(
        context.child("simplex"),
        Config {
            scheme,
            elector: RoundRobin::<Sha256>::default(),
            blocker,
            automaton: inline.clone(),
            relay: inline.clone(),
            reporter: inline,
            track_historical_votes: false,
            strategy: Sequential,
            partition: format!("{partition}-simplex"),
            mailbox_size,
            epoch: EPOCH,
            floor,
            replay_buffer: REPLAY_BUFFER,
            write_buffer: WRITE_BUFFER,
            page_cache: cache,
            leader_timeout: pace.idle + Duration::from_secs(1),
            certification_timeout: pace.idle + Duration::from_secs(2),
            timeout_retry: Duration::from_secs(4),
            view_retention: ViewDelta::new(256),
            skip: SkipPolicy::Enabled { timeout: Duration::from_secs(10), budget: SkipBudget::Participants },
            fetch_timeout: NZDuration!(Duration::from_secs(2)),
            fetch_retry_delay: Duration::from_millis(100),
            forward: ForwardPolicy::SilentVoters,
        },
    );

    let handles = [
        buffer.start(blocks),
        marshal.start(app, buffered, resolver),
        engine.start(votes, certificates, resolving),
        gossip(context.child("gossip"), chain, transactions),
    ];
    let all = context.child("consensus").spawn(move |_| async move {
        // Whichever ends first takes the others with it: dropping a handle's owner aborts what it spawned.
        let (first, _, rest) = futures_util::future::select_all(handles).await;
        debug!(?first, "a part of consensus ended");
        rest.iter().for_each(Handle::abort);
    });
    Ok((all, mailbox))
}

/// Tells peers of transactions that arrived here, and takes theirs.
fn gossip<E, S, R>(context: E, chain: Arc<Chain>, (mut sender, mut receiver): (S, R)) -> Handle<()>
where
    E: Spawner,
    S: Sender<PublicKey = PublicKey>,
    R: Receiver<PublicKey = PublicKey>,
{
    context.spawn(move |_| async move {
        let mut local = chain.subscribe_transactions();
        loop {
            tokio::select! {
                // In this order always: a simulation follows from its seed.
                biased;
                sent = local.recv() => match sent {
                    Ok((transaction, Origin::Local)) => {
                        sender.send(Recipients::All, IoBuf::from(transaction.bytes().to_vec()), false);
                    }
                    Ok((_, Origin::Peer)) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
                received = receiver.recv() => match received {
                    Ok((_, message)) => {
                        if let Ok(transaction) = Transaction::decode(message.as_ref()) {
                            // A peer's pool may be ahead or behind; what does not fit here is not its fault.
                            let _ = chain.add(transaction, Origin::Peer);
                        }
                    }
                    Err(_) => return,
                },
            }
        }
    })
}

/// A channel's quota.
pub fn quota(per_second: u32) -> Quota {
    Quota::per_second(std::num::NonZeroU32::new(per_second).unwrap_or(NZU32!(1)))
}

/// Checks a finalization's certificate against the validators of a chain, and says which block it makes final: all that a light
/// client needs.
pub fn check_finalization<G: CryptoRng>(
    genesis: B256,
    validators: Set<PublicKey>,
    encoded: &[u8],
    random: &mut G,
) -> Option<B256> {
    let namespace = [b"assay consensus ".as_slice(), genesis.as_slice()].concat();
    let scheme = Scheme::verifier(&namespace, validators);
    let config = scheme.certificate_codec_config();
    let finalization =
        Finalization::<Scheme, Digest>::decode_cfg(bytes::Bytes::copy_from_slice(encoded), &config).ok()?;
    finalization.verify(random, &scheme, &Sequential).then(|| B256::from(finalization.proposal.payload.0))
}

/// The bytes of the certificate for a height, if this node has one: certificates are for the blocks that were voted on, and make
/// their ancestors final too.
pub async fn finalization(certificates: &Certificates, number: u64) -> Option<Vec<u8>> {
    Some(certificates.get_finalization(Height::new(number)).await?.encode().to_vec())
}
