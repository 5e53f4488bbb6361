//! One vote a seat. Simplex counts participants, each of which signs once. Here every seat is a participant, but its validator signs a
//! vote once, for all of its seats: certificates hold one signature a validator, and count its seats.
//!
//! A validator's first seat goes by its key, every other by a name made from it, which nobody signs with. What a first seat votes is
//! repeated for the validator's other seats inside each node ([`Repeater`], [`Repeated`]), so messages do not grow with seats.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use assay_ledger::types::{hex, keccak256};
use assay_ledger::{Committee, contradicts};
use bytes::BufMut;
use commonware_actor::Feedback;
use commonware_codec::{
    Buf, DecodeExt, Encode, EncodeSize, Error as CodecError, FixedSize, Read, ReadExt, Write,
};
use commonware_consensus::Reporter;
use commonware_consensus::simplex::elector::{self, Elector, Scheduled, Terms};
use commonware_consensus::simplex::scheme::Namespace;
use commonware_consensus::simplex::types::{Activity, Attributable, Subject, Vote};
use commonware_consensus::types::{Participant, Round};
use commonware_cryptography::certificate::{
    AssemblyError, Attestation, Membership, Namespace as _, Scheme as CertificateScheme, Subject as _,
    Verification, Verifier, verify_then_assemble,
};
use commonware_cryptography::ed25519::{PrivateKey, PublicKey, Signature};
use commonware_cryptography::sha256::Digest;
use commonware_cryptography::{BatchEntry, BatchVerifier, Signer, Verifier as _};
use commonware_p2p::{Message, Receiver};
use commonware_parallel::Strategy;
use commonware_runtime::IoBuf;
use commonware_utils::iter::NonEmpty;
use commonware_utils::ordered::{Quorum, Set};
use commonware_utils::{Faults, N3f1};
use rand_core::CryptoRng;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tracing::{error, warn};

use crate::chain::Chain;

/// A committee as simplex sees it.
#[derive(Debug)]
pub(crate) struct Seats {
    /// What seats go by.
    names: Set<PublicKey>,
    /// The member that has a seat, by the place of its name.
    owners: Vec<usize>,
    members: Vec<Member>,
    /// The first seats of those whose turn it is, see [`Committee::turns`].
    turns: Vec<Participant>,
}

#[derive(Debug)]
struct Member {
    /// `None` where the registered bytes are no key: nobody votes for its seats.
    key: Option<PublicKey>,
    /// The first goes by the key.
    seats: Vec<Participant>,
}

impl Seats {
    /// `None` where no member has a key.
    pub(crate) fn new(committee: &Committee) -> Option<Self> {
        let decode = |bytes: &[u8; 32]| PublicKey::decode(bytes::Bytes::copy_from_slice(bytes)).ok();
        let keys: Vec<_> = committee.members.iter().map(|member| decode(&member.key)).collect();
        let mut named = BTreeMap::new();
        for (owner, key) in keys.iter().enumerate() {
            if let Some(key) = key {
                named.insert(key.clone(), owner);
            }
        }
        if named.is_empty() {
            return None;
        }
        for (owner, member) in committee.members.iter().enumerate() {
            let mut missing = member.seats - u32::from(keys[owner].is_some());
            // Somebody may have registered what should be a name: the next one takes its place.
            for number in 0u64.. {
                if missing == 0 {
                    break;
                }
                let name = keccak256([b"assay seat".as_slice(), &member.key, &number.to_be_bytes()].concat());
                // Any 32 bytes are a secret key, and this one is no secret.
                let Ok(name) = PrivateKey::decode(bytes::Bytes::copy_from_slice(name.as_slice())) else {
                    continue;
                };
                named.entry(name.public_key()).or_insert_with(|| {
                    missing -= 1;
                    owner
                });
            }
        }
        let (names, owners): (Vec<_>, Vec<_>) = named.into_iter().unzip();
        let mut members: Vec<_> = keys.into_iter().map(|key| Member { key, seats: Vec::new() }).collect();
        for (place, owner) in owners.iter().enumerate() {
            let first = members[*owner].key.as_ref() == Some(&names[place]);
            let seats = &mut members[*owner].seats;
            seats.insert(if first { 0 } else { seats.len() }, Participant::from_usize(place));
        }
        let turns = committee.turns().into_iter();
        let turns = turns.filter_map(|member| members[member].seats.first().copied()).collect();
        // A map's keys are distinct and in order.
        Some(Self { names: Set::try_from(names).ok()?, owners, members, turns })
    }

    /// The keys of members, which is who peers are.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (usize, &PublicKey)> {
        self.members.iter().enumerate().filter_map(|(i, member)| Some((i, member.key.as_ref()?)))
    }

    fn owner(&self, seat: Participant) -> Option<usize> {
        self.owners.get(usize::from(seat)).copied()
    }

    fn quorum(&self) -> u32 {
        N3f1::quorum(self.owners.len())
    }

    fn weight(&self, members: impl IntoIterator<Item = usize>) -> Option<u32> {
        members.into_iter().map(|member| Some(self.members.get(member)?.seats.len() as u32)).sum()
    }
}

/// Signatures of members whose seats are a quorum, by their places in the committee, ascending. Encoded as a count (2 bytes) and for
/// each the place (2 bytes) and the signature (64 bytes); numbers are big-endian.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Certificate(Vec<(u16, Signature)>);

impl Write for Certificate {
    fn write(&self, buf: &mut impl BufMut) {
        (self.0.len() as u16).write(buf);
        for (member, signature) in &self.0 {
            member.write(buf);
            signature.write(buf);
        }
    }
}

impl EncodeSize for Certificate {
    fn encode_size(&self) -> usize {
        2 + self.0.len() * (2 + Signature::SIZE)
    }
}

impl Read for Certificate {
    /// The most signatures.
    type Cfg = usize;

    fn read_cfg(buf: &mut impl Buf, most: &usize) -> Result<Self, CodecError> {
        let count = usize::from(u16::read(buf)?);
        if count > *most {
            return Err(CodecError::InvalidLength(count));
        }
        (0..count).map(|_| Ok((u16::read(buf)?, Signature::read(buf)?))).collect::<Result<_, _>>().map(Self)
    }
}

/// Signs and checks votes and certificates of one epoch.
#[derive(Clone, Debug)]
pub(crate) struct Scheme {
    namespace: Namespace,
    seats: Arc<Seats>,
    signer: Option<(usize, PrivateKey)>,
}

impl Scheme {
    /// Signs where the key is a member's.
    pub(crate) fn new(namespace: &[u8], seats: Arc<Seats>, key: Option<&PrivateKey>) -> Self {
        let signer = key.and_then(|key| {
            let public = key.public_key();
            Some((seats.keys().find(|(_, member)| **member == public)?.0, key.clone()))
        });
        Self { namespace: Namespace::derive(namespace), seats, signer }
    }

    pub(crate) fn signs(&self) -> bool {
        self.signer.is_some()
    }

    pub(crate) fn seats(&self) -> &Arc<Seats> {
        &self.seats
    }

    fn key(&self, member: usize) -> Option<&PublicKey> {
        self.seats.members.get(member)?.key.as_ref()
    }
}

impl Verifier for Scheme {
    type Subject<'a, D: commonware_cryptography::Digest> = Subject<'a, D>;
    type Faults = N3f1;
    type PublicKey = PublicKey;
    type Certificate = Certificate;

    fn verify_certificate<R: CryptoRng, D: commonware_cryptography::Digest>(
        &self,
        rng: &mut R,
        subject: Subject<'_, D>,
        certificate: &Certificate,
        strategy: &impl Strategy,
    ) -> bool {
        let ascending = certificate.0.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let weight = self.seats.weight(certificate.0.iter().map(|(member, _)| usize::from(*member)));
        if !ascending || weight.is_none_or(|weight| weight < self.seats.quorum()) {
            return false;
        }
        let signed = certificate
            .0
            .iter()
            .map(|(member, signature)| Some((self.key(usize::from(*member))?, signature)));
        let Some(signed) = signed.collect::<Option<Vec<_>>>() else { return false };
        let (namespace, message) = (subject.namespace(&self.namespace), subject.message());
        PublicKey::verify_batch(
            rng,
            &signed,
            |_, (public_key, signature)| BatchEntry { namespace, message: &message, public_key, signature },
            strategy,
        )
    }

    fn is_batchable() -> bool {
        true
    }

    fn max_certificate_size(participants: u32) -> usize {
        2 + participants as usize * (2 + Signature::SIZE)
    }

    fn certificate_codec_config(&self) -> usize {
        self.seats.members.len()
    }

    fn certificate_codec_config_unbounded() -> usize {
        usize::from(u16::MAX)
    }
}

impl CertificateScheme for Scheme {
    type Signature = Signature;

    fn me(&self) -> Option<Membership> {
        let (member, _) = self.signer.as_ref()?;
        Some(Membership::Signer(*self.seats.members.get(*member)?.seats.first()?))
    }

    fn participants(&self) -> &Set<PublicKey> {
        &self.seats.names
    }

    fn sign<D: commonware_cryptography::Digest>(&self, subject: Subject<'_, D>) -> Option<Attestation<Self>> {
        let (_, key) = self.signer.as_ref()?;
        let signature = key.sign(subject.namespace(&self.namespace), &subject.message());
        Some(Attestation { signer: self.me()?.index(), signature: signature.into() })
    }

    fn verify_attestation<R: CryptoRng, D: commonware_cryptography::Digest>(
        &self,
        _: &mut R,
        subject: Subject<'_, D>,
        attestation: &Attestation<Self>,
        _: &impl Strategy,
    ) -> bool {
        let key = self.seats.owner(attestation.signer).and_then(|owner| self.key(owner));
        match (key, attestation.signature.get()) {
            (Some(key), Some(signature)) => {
                key.verify(subject.namespace(&self.namespace), &subject.message(), signature)
            }
            _ => false,
        }
    }

    fn verify_attestations<R, D, I>(
        &self,
        rng: &mut R,
        subject: Subject<'_, D>,
        attestations: I,
        strategy: &impl Strategy,
    ) -> Verification<Self>
    where
        R: CryptoRng,
        D: commonware_cryptography::Digest,
        I: IntoIterator<Item = Attestation<Self>>,
        I::IntoIter: Send,
    {
        // The votes of one member's seats are one signature.
        let mut known = BTreeMap::new();
        let (mut verified, mut invalid) = (Vec::new(), Vec::new());
        for attestation in attestations {
            let vote = (self.seats.owner(attestation.signer), attestation.signature.get().cloned());
            let valid = *known
                .entry(vote)
                .or_insert_with(|| self.verify_attestation(&mut *rng, subject, &attestation, strategy));
            if valid { verified.push(attestation) } else { invalid.push(attestation.signer) }
        }
        invalid.sort_unstable();
        Verification::new(verified, invalid)
    }

    fn optimistic_assemble<'a, R, D, I, J>(
        &self,
        rng: &mut R,
        subject: Subject<'_, D>,
        pending: I,
        verified: J,
        strategy: &impl Strategy,
    ) -> Result<Certificate, Verification<Self>>
    where
        R: CryptoRng,
        D: commonware_cryptography::Digest,
        I: IntoIterator<Item = Attestation<Self>>,
        I::IntoIter: ExactSizeIterator + Send,
        J: IntoIterator<Item = &'a Attestation<Self>>,
        J::IntoIter: Send,
    {
        verify_then_assemble::<Self, _, D, _, _>(self, rng, subject, pending, verified, strategy)
    }

    fn assemble<I>(&self, attestations: NonEmpty<I>, _: &impl Strategy) -> Result<Certificate, AssemblyError>
    where
        I: Iterator<Item = Attestation<Self>> + Send,
    {
        let mut signatures = BTreeMap::new();
        let mut signers = Vec::new();
        for Attestation { signer, signature } in attestations {
            let owner = self.seats.owner(signer).ok_or(AssemblyError::UnknownSigner(signer))?;
            let signature = signature.get().cloned().ok_or(AssemblyError::MalformedSignature(signer))?;
            signatures.entry(owner).or_insert(signature);
            signers.push(signer);
        }
        signers.sort_unstable();
        if let Some(pair) = signers.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(AssemblyError::DuplicateSigner(pair[0]));
        }
        let (found, wanted) = (signers.len() as u32, self.seats.quorum());
        if found < wanted {
            return Err(AssemblyError::InsufficientAttestations(wanted, found));
        }
        // A committee has at most 128 members.
        Ok(Certificate(signatures.into_iter().map(|(owner, signature)| (owner as u16, signature)).collect()))
    }

    fn is_attributable() -> bool {
        true
    }
}

/// Leaders in turn, as [`Committee::turns`] has them.
#[derive(Clone, Debug)]
pub(crate) struct Turns(Vec<Participant>);

impl Turns {
    pub(crate) fn new(seats: &Seats) -> Self {
        Self(seats.turns.clone())
    }
}

impl elector::Config<Scheme> for Turns {
    type Elector = Self;

    fn build(self, _: &Set<PublicKey>) -> Self {
        self
    }
}

impl Elector<Scheme> for Turns {
    type Mode = Scheduled;

    fn terms(&self) -> Terms {
        Terms::rotating()
    }

    fn elect(&self, round: Round, (): ()) -> Participant {
        // There is a member with a key, or there are no seats to begin with. Whose registered bytes are no key is absent like any other.
        let turn = round.epoch().get().wrapping_add(round.view().get()) % self.0.len() as u64;
        self.0[turn as usize]
    }
}

/// What a vote is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Notarize,
    Finalize,
    Nullify,
}

/// How many views' votes are compared, before and after the latest of which a certificate is known. A vote takes some 300 bytes.
const WITNESSED: u64 = 64;

/// What each member has signed in recent views, as this node has heard it from the member or in a certificate: whoever tells some one
/// thing and others another is found out when a certificate of theirs arrives.
#[derive(Default)]
pub(crate) struct Witness {
    latest: u64,
    /// By view, member and kind.
    votes: BTreeMap<(u64, usize, Kind), Heard>,
}

struct Heard {
    signed: Vec<u8>,
    /// With the seat and the signature.
    vote: Vec<u8>,
}

impl Witness {
    /// Takes a vote in, and returns what it contradicts, as [`assay_ledger::EVIDENCE`] takes it. No signature is checked.
    fn compare(&mut self, kind: Kind, view: u64, member: usize, heard: Heard) -> Option<Vec<u8>> {
        if view.abs_diff(self.latest) > WITNESSED {
            return None;
        }
        let known = |kind| self.votes.get(&(view, member, kind));
        let other = |kind| known(kind).filter(|other| other.signed != heard.signed);
        let found = match kind {
            Kind::Notarize => other(kind).map(|other| [&[0], other.vote.as_slice(), &heard.vote].concat()),
            Kind::Finalize => (other(kind).map(|other| [&[1], other.vote.as_slice(), &heard.vote].concat()))
                .or_else(|| {
                    known(Kind::Nullify).map(|other| [&[2], other.vote.as_slice(), &heard.vote].concat())
                }),
            Kind::Nullify => {
                known(Kind::Finalize).map(|other| [&[2], heard.vote.as_slice(), &other.vote].concat())
            }
        };
        self.votes.insert((view, member, kind), heard);
        found
    }

    /// A certificate of a view is known.
    fn reach(&mut self, view: u64) {
        self.latest = self.latest.max(view);
        self.votes = self.votes.split_off(&(self.latest.saturating_sub(WITNESSED), 0, Kind::Notarize));
    }
}

/// Passes what simplex reports on, repeats the votes of first seats for the other seats of their validators, and keeps evidence of
/// validators that contradict themselves.
#[derive(Clone)]
pub(crate) struct Repeater<R> {
    pub(crate) inner: R,
    pub(crate) chain: Arc<Chain>,
    pub(crate) seats: Arc<Seats>,
    pub(crate) votes: UnboundedSender<Message<PublicKey>>,
    pub(crate) witness: Arc<Mutex<Witness>>,
}

impl<R> Repeater<R> {
    /// Keeps two votes of one view that nobody correct signs both. What simplex reports may be unchecked.
    fn keep(&self, activity: &Activity<Scheme, Digest>) {
        let (kind, signer, votes) = match activity {
            Activity::ConflictingNotarize(votes) => (0, votes.signer(), votes.encode()),
            Activity::ConflictingFinalize(votes) => (1, votes.signer(), votes.encode()),
            Activity::NullifyFinalize(votes) => (2, votes.signer(), votes.encode()),
            _ => return,
        };
        if let Some(member) = self.seats.owner(signer) {
            self.accuse(member, &[&[kind], votes.as_ref()].concat());
        }
    }

    /// Compares votes, and those in certificates, with what was heard before.
    fn compare(&self, activity: &Activity<Scheme, Digest>) {
        let (kind, round, signed, votes) = match activity {
            Activity::Notarize(vote) => {
                (Kind::Notarize, vote.proposal.round, vote.proposal.encode(), Err(&vote.attestation))
            }
            Activity::Finalize(vote) => {
                (Kind::Finalize, vote.proposal.round, vote.proposal.encode(), Err(&vote.attestation))
            }
            Activity::Nullify(vote) => {
                (Kind::Nullify, vote.round, vote.round.encode(), Err(&vote.attestation))
            }
            Activity::Notarization(all) | Activity::Certification(all) => {
                (Kind::Notarize, all.proposal.round, all.proposal.encode(), Ok(&all.certificate))
            }
            Activity::Finalization(all) => {
                (Kind::Finalize, all.proposal.round, all.proposal.encode(), Ok(&all.certificate))
            }
            Activity::Nullification(all) => {
                (Kind::Nullify, all.round, all.round.encode(), Ok(&all.certificate))
            }
            _ => return,
        };
        let first = |member: usize| self.seats.members.get(member)?.seats.first().copied();
        let known = votes.is_ok();
        let votes: Vec<_> = match votes {
            Ok(certificate) => {
                let votes = certificate.0.iter().map(|(member, signature)| (usize::from(*member), signature));
                votes.filter_map(|(member, signature)| Some((member, first(member)?, signature))).collect()
            }
            // The other seats' votes are copies.
            Err(vote) => {
                let owner = self.seats.owner(vote.signer).filter(|owner| first(*owner) == Some(vote.signer));
                owner
                    .zip(vote.signature.get())
                    .map(|(owner, it)| (owner, vote.signer, it))
                    .into_iter()
                    .collect()
            }
        };
        let view = round.view().get();
        let mut witness = self.witness.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        for (member, seat, signature) in votes {
            let vote = [signed.as_ref(), seat.encode().as_ref(), signature.encode().as_ref()].concat();
            let two = witness.compare(kind, view, member, Heard { signed: signed.to_vec(), vote });
            found.extend(two.map(|two| (member, two)));
        }
        if known {
            witness.reach(view);
        }
        drop(witness);
        for (member, votes) in found {
            self.accuse(member, &votes);
        }
    }

    /// Keeps evidence against a member, as [`assay_ledger::EVIDENCE`] takes it, if it holds.
    fn accuse(&self, member: usize, votes: &[u8]) {
        let key = self.seats.members.get(member).and_then(|member| member.key.as_ref());
        let Some(Ok(key)) = key.map(|key| <[u8; 32]>::try_from(key.encode().as_ref())) else { return };
        // The first is enough, and who contradicts itself may do so in every view until its seats are gone.
        if self.chain.history().has_evidence(&key).unwrap_or(false)
            || !contradicts(&self.chain.genesis().hash(), &key, votes)
        {
            return;
        }
        warn!(key = %hex::encode(key), "a validator contradicted itself; this node's next block will have the evidence");
        if let Err(error) = self.chain.history().keep_evidence(&key, votes) {
            error!(%error, "evidence could not be kept");
        }
    }

    fn repeat(&self, signer: Participant, vote: impl Fn(Participant) -> Vote<Scheme, Digest>) {
        let Some(owner) = self.seats.owner(signer).and_then(|owner| self.seats.members.get(owner)) else {
            return;
        };
        if let Some((first, others)) = owner.seats.split_first()
            && *first == signer
        {
            for seat in others {
                if let Some(name) = self.seats.names.key(*seat) {
                    // It fails when simplex ends, and then needs no votes.
                    let _ = self.votes.send((name.clone(), IoBuf::from(vote(*seat).encode().to_vec())));
                }
            }
        }
    }
}

impl<R: Reporter<Activity = Activity<Scheme, Digest>>> Reporter for Repeater<R> {
    type Activity = Activity<Scheme, Digest>;

    fn report(&mut self, activity: Self::Activity) -> Feedback {
        self.keep(&activity);
        self.compare(&activity);
        match &activity {
            Activity::Notarize(vote) => self.repeat(vote.attestation.signer, |seat| {
                let mut vote = vote.clone();
                vote.attestation.signer = seat;
                Vote::Notarize(vote)
            }),
            Activity::Nullify(vote) => self.repeat(vote.attestation.signer, |seat| {
                let mut vote = vote.clone();
                vote.attestation.signer = seat;
                Vote::Nullify(vote)
            }),
            Activity::Finalize(vote) => self.repeat(vote.attestation.signer, |seat| {
                let mut vote = vote.clone();
                vote.attestation.signer = seat;
                Vote::Finalize(vote)
            }),
            _ => {}
        }
        self.inner.report(activity)
    }
}

/// Votes from the network and from a [`Repeater`].
#[derive(Debug)]
pub(crate) struct Repeated<R> {
    pub(crate) inner: R,
    pub(crate) votes: UnboundedReceiver<Message<PublicKey>>,
}

impl<R: Receiver<PublicKey = PublicKey>> Receiver for Repeated<R> {
    type Error = R::Error;
    type PublicKey = PublicKey;

    async fn recv(&mut self) -> Result<Message<PublicKey>, R::Error> {
        tokio::select! {
            biased;
            Some(vote) = self.votes.recv() => Ok(vote),
            message = self.inner.recv() => message,
        }
    }

    fn capacity(&self) -> std::num::NonZeroUsize {
        self.inner.capacity()
    }
}

#[cfg(test)]
mod tests {
    use assay_ledger::{Genesis, Member as Seated, PoolLimits};
    use commonware_consensus::simplex::types::{
        ConflictingFinalize, ConflictingNotarize, Finalize, Notarization, Notarize, Nullify, NullifyFinalize,
        Proposal,
    };
    use commonware_consensus::types::{Epoch, View};

    use super::*;
    use crate::history::History;

    #[derive(Clone)]
    struct Nobody;

    impl Reporter for Nobody {
        type Activity = Activity<Scheme, Digest>;

        fn report(&mut self, _: Self::Activity) -> Feedback {
            Feedback::Ok
        }
    }

    /// The ledger reads commonware's votes without commonware.
    #[test]
    fn evidence_is_kept_as_the_ledger_takes_it() {
        let text = r#"{"chainId": 7, "timestamp": 0, "gasLimit": 30000000, "alloc": {}}"#;
        let genesis = Genesis::from_json(text).expect("it is one");
        let chain = Chain::open(&genesis, PoolLimits::default(), History::in_memory).expect("in memory");
        let chain = Arc::new(chain);
        let keys: Vec<_> = (0..3).map(PrivateKey::from_seed).collect();
        let key =
            |key: &PrivateKey| <[u8; 32]>::try_from(key.public_key().encode().as_ref()).expect("32 bytes");
        let member = |one: &PrivateKey| Seated { key: key(one), seats: 3, endpoint: String::new() };
        let committee = Committee { epoch: 1, blocks: 8, members: keys.iter().map(member).collect() };
        let seats = Arc::new(Seats::new(&committee).expect("there are keys"));
        let scheme = |namespace: &[u8], key| Scheme::new(namespace, seats.clone(), Some(key));
        let namespace = super::super::namespace(&chain.genesis().hash());
        let round = |view| Round::new(Epoch::new(1), View::new(view));
        let proposal = |view, payload| Proposal::new(round(view), View::new(view - 1), Digest([payload; 32]));
        let votes = tokio::sync::mpsc::unbounded_channel().0;
        let mut reporter = Repeater {
            inner: Nobody,
            chain: chain.clone(),
            seats: seats.clone(),
            votes,
            witness: Arc::default(),
        };
        let evidence = |scheme: &Scheme, kind: u8| match kind {
            0 => Activity::ConflictingNotarize(ConflictingNotarize::new(
                Notarize::sign(scheme, proposal(300, 1)).expect("a signer"),
                Notarize::sign(scheme, proposal(300, 2)).expect("a signer"),
            )),
            1 => Activity::ConflictingFinalize(ConflictingFinalize::new(
                Finalize::sign(scheme, proposal(300, 1)).expect("a signer"),
                Finalize::sign(scheme, proposal(300, 2)).expect("a signer"),
            )),
            _ => Activity::NullifyFinalize(NullifyFinalize::new(
                Nullify::sign::<Digest>(scheme, round(300)).expect("a signer"),
                Finalize::sign(scheme, proposal(300, 2)).expect("a signer"),
            )),
        };
        // Signatures for another chain, and votes that are allowed.
        reporter.report(evidence(&scheme(b"another chain", &keys[0]), 0));
        reporter.report(Activity::Notarize(
            Notarize::sign(&scheme(&namespace, &keys[0]), proposal(300, 1)).expect("a signer"),
        ));
        assert!(chain.history().evidence().expect("it can be read").is_empty());
        for kind in 0..3 {
            for liar in &keys[..2] {
                reporter.report(evidence(&scheme(&namespace, liar), kind));
            }
            let kept = chain.history().evidence().expect("it can be read");
            // One piece for each is enough: the first.
            assert_eq!(kept.len(), 2);
            for (liar, votes) in kept {
                assert!(keys.iter().any(|one| key(one) == liar));
                assert!(votes[0] == 0 && contradicts(&chain.genesis().hash(), &liar, &votes));
            }
        }
        // Who tells some one thing and others another is found out by a certificate, or when a vote comes after it.
        let faces = scheme(&namespace, &keys[2]);
        let vote = |payload| Notarize::sign(&faces, proposal(30, payload)).expect("a signer");
        let certificate = |member, payload| {
            let Notarize { proposal, attestation } = vote(payload);
            let signature = attestation.signature.get().expect("it was signed").clone();
            Activity::Notarization(Notarization {
                proposal,
                certificate: Certificate(vec![(member, signature)]),
            })
        };
        reporter.report(Activity::Notarize(vote(1)));
        reporter.report(certificate(2, 1));
        // Somebody else's name on it is nobody's evidence.
        reporter.report(certificate(1, 2));
        assert_eq!(chain.history().evidence().expect("it can be read").len(), 2);
        reporter.report(certificate(2, 2));
        let kept = chain.history().evidence().expect("it can be read");
        let votes = kept.get(&key(&keys[2])).expect("it was found out");
        assert!(contradicts(&chain.genesis().hash(), &key(&keys[2]), votes));
        let mut witness = Witness::default();
        let mut heard = |kind, view, said: u8| {
            witness.compare(kind, view, 0, Heard { signed: vec![said], vote: vec![said, 9] })
        };
        assert_eq!(heard(Kind::Finalize, 3, 1), None);
        assert_eq!(heard(Kind::Finalize, 3, 1), None, "the same again");
        assert_eq!(heard(Kind::Notarize, 3, 2), None, "a correct validator may");
        assert_eq!(heard(Kind::Finalize, 4, 2), None, "another view");
        assert_eq!(heard(Kind::Finalize, 3, 2), Some(vec![1, 1, 9, 2, 9]));
        assert_eq!(heard(Kind::Nullify, 4, 5), Some(vec![2, 5, 9, 2, 9]));
        assert_eq!(heard(Kind::Nullify, 5, 5), None);
        assert_eq!(heard(Kind::Finalize, 5, 1), Some(vec![2, 5, 9, 1, 9]));
        // What is long past, or far ahead, is not kept.
        assert_eq!(heard(Kind::Notarize, WITNESSED + 1, 1), None);
        assert_eq!(witness.votes.len(), 6);
        witness.reach(WITNESSED + 5);
        assert_eq!(witness.votes.len(), 2);
        // All kinds are what the ledger takes.
        for kind in 1..3u8 {
            let encoded = match evidence(&scheme(&namespace, &keys[0]), kind) {
                Activity::ConflictingFinalize(votes) => votes.encode(),
                Activity::NullifyFinalize(votes) => votes.encode(),
                _ => unreachable!("the kinds are these"),
            };
            let votes = [&[kind], encoded.as_ref()].concat();
            assert!(contradicts(&chain.genesis().hash(), &key(&keys[0]), &votes));
            assert!(!contradicts(&chain.genesis().hash(), &key(&keys[1]), &votes));
        }
    }
}
