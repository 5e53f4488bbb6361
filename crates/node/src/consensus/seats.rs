//! One vote a seat. Simplex counts participants, each of which signs once. Here every seat is a participant, but its validator signs a
//! vote once, for all of its seats: certificates hold one signature a validator, and count its seats.
//!
//! A validator's first seat goes by its key, every other by a name made from it, which nobody signs with. What a first seat votes is
//! repeated for the validator's other seats inside each node ([`Repeater`], [`Repeated`]), so messages do not grow with seats.

use std::collections::BTreeMap;
use std::sync::Arc;

use assay_ledger::Committee;
use assay_ledger::types::keccak256;
use bytes::BufMut;
use commonware_actor::Feedback;
use commonware_codec::{
    Buf, DecodeExt, Encode, EncodeSize, Error as CodecError, FixedSize, Read, ReadExt, Write,
};
use commonware_consensus::Reporter;
use commonware_consensus::simplex::elector::{self, Elector, Scheduled, Terms};
use commonware_consensus::simplex::scheme::Namespace;
use commonware_consensus::simplex::types::{Activity, Subject, Vote};
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

/// A committee as simplex sees it.
#[derive(Debug)]
pub(crate) struct Seats {
    /// What seats go by.
    names: Set<PublicKey>,
    /// The member that has a seat, by the place of its name.
    owners: Vec<usize>,
    members: Vec<Member>,
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
        // A map's keys are distinct and in order.
        Some(Self { names: Set::try_from(names).ok()?, owners, members })
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

/// Leaders in turn, each as often as it has seats: seats are in the order of their names, which is any order.
#[derive(Clone, Debug)]
pub(crate) struct Turns(Vec<Participant>);

impl Turns {
    pub(crate) fn new(seats: &Seats) -> Self {
        let owners = seats.owners.iter().map(|owner| &seats.members[*owner]);
        Self(
            owners
                .filter(|owner| owner.key.is_some())
                .filter_map(|owner| owner.seats.first().copied())
                .collect(),
        )
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
        // There is a member with a key, or there are no seats to begin with.
        let turn = round.epoch().get().wrapping_add(round.view().get()) % self.0.len() as u64;
        self.0[turn as usize]
    }
}

/// Passes what simplex reports on, and repeats the votes of first seats for the other seats of their validators.
#[derive(Clone)]
pub(crate) struct Repeater<R> {
    pub(crate) inner: R,
    pub(crate) seats: Arc<Seats>,
    pub(crate) votes: UnboundedSender<Message<PublicKey>>,
}

impl<R> Repeater<R> {
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
