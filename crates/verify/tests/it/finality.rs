//! A light client against chains that are made here, with signatures by a signer of our own. Real ones are in `assay-node`'s simulation and in
//! `docs/vectors/finality.json`.

use assay_receipt::keccak256;
use assay_verify::finality::{FinalityError, HEADERS_MAX, LightClient};
use curve25519_dalek::edwards::EdwardsPoint;
use curve25519_dalek::scalar::{Scalar, clamp_integer};
use proptest::prelude::*;
use sha2::{Digest, Sha512};

const EPOCH: u64 = 4;

struct Key {
    secret: Scalar,
    prefix: [u8; 32],
    public: [u8; 32],
}

impl Key {
    /// RFC 8032.
    fn new(seed: u8) -> Self {
        let hash = Sha512::digest([seed; 32]);
        let secret = Scalar::from_bytes_mod_order(clamp_integer(hash[..32].try_into().unwrap()));
        let public = EdwardsPoint::mul_base(&secret).compress().to_bytes();
        Self { secret, prefix: hash[32..].try_into().unwrap(), public }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let scalar = |hash: Sha512| Scalar::from_bytes_mod_order_wide(&hash.finalize().into());
        let nonce = scalar(Sha512::new().chain_update(self.prefix).chain_update(message));
        let commitment = EdwardsPoint::mul_base(&nonce).compress().to_bytes();
        let challenge =
            scalar(Sha512::new().chain_update(commitment).chain_update(self.public).chain_update(message));
        [commitment, (nonce + challenge * self.secret).to_bytes()].concat()
    }
}

fn string(bytes: &[u8]) -> Vec<u8> {
    match bytes {
        [single @ 0..=0x7f] => vec![*single],
        _ if bytes.len() <= 55 => [&[0x80 + bytes.len() as u8], bytes].concat(),
        _ => [&[0xb9, (bytes.len() >> 8) as u8, bytes.len() as u8], bytes].concat(),
    }
}

fn header(number: u64, parent: &[u8; 32], extra: &[u8]) -> Vec<u8> {
    let number = number.to_be_bytes();
    let number = &number[number.iter().take_while(|byte| **byte == 0).count()..];
    let hash = [7; 32];
    let fields: [&[u8]; 13] =
        [parent, &hash, &[9; 20], &[3; 32], &hash, &hash, &[0; 256], &[], number, &[1, 2], &[], &[5], extra];
    let payload: Vec<u8> = fields.iter().flat_map(|field| string(field)).collect();
    [&[0xf9, (payload.len() >> 8) as u8, payload.len() as u8], payload.as_slice()].concat()
}

fn committee(epoch: u64, members: &[(&Key, u32)]) -> Vec<u8> {
    let mut out =
        [&[0u8], epoch.to_be_bytes().as_slice(), &EPOCH.to_be_bytes(), &(members.len() as u16).to_be_bytes()]
            .concat();
    for (key, seats) in members {
        out.extend(key.public);
        out.extend(seats.to_be_bytes());
        out.extend([3, b'a', b'b', b'c']);
    }
    out
}

/// A chain of two epochs: four with a seat each, then two of them with three seats and one.
struct Chain {
    keys: Vec<Key>,
    committees: [Vec<u8>; 2],
    headers: Vec<Vec<u8>>,
}

impl Chain {
    fn new() -> Self {
        let keys: Vec<_> = (1..=4).map(Key::new).collect();
        let all: Vec<_> = keys.iter().map(|key| (key, 1)).collect();
        let committees = [committee(0, &all), committee(1, &[(&keys[0], 3), (&keys[1], 1)])];
        let mut headers: Vec<Vec<u8>> = Vec::new();
        for number in 0..7 {
            let parent = headers.last().map_or([0; 32], |header| keccak256(header).0);
            let extra = match number {
                0 => keccak256(&committees[0]).0.to_vec(),
                3 => keccak256(&committees[1]).0.to_vec(),
                _ => Vec::new(),
            };
            headers.push(header(number, &parent, &extra));
        }
        Self { keys, committees, headers }
    }

    fn genesis(&self) -> [u8; 32] {
        keccak256(&self.headers[0]).0
    }

    /// A certificate for a block by keys at places in the committee.
    fn certificate(&self, epoch: u8, block: usize, signers: &[(u16, usize)]) -> Vec<u8> {
        let proposal = [&[epoch, 9, 8], keccak256(&self.headers[block]).0.as_slice()].concat();
        let namespace = [b"assay consensus ".as_slice(), &self.genesis(), b"_FINALIZE"].concat();
        let message = [&[namespace.len() as u8], namespace.as_slice(), &proposal].concat();
        let mut out = [proposal.as_slice(), &(signers.len() as u16).to_be_bytes()].concat();
        for (place, key) in signers {
            out.extend(place.to_be_bytes());
            out.extend(self.keys[*key].sign(&message));
        }
        out
    }

    fn client(&self) -> LightClient {
        LightClient::new(self.genesis(), &self.headers[0], &self.committees[0]).unwrap()
    }

    fn advanced(&self) -> LightClient {
        let mut client = self.client();
        let certificate = self.certificate(0, 3, &[(0, 0), (2, 2), (3, 3)]);
        let block = client.advance(&self.headers[3..4], &certificate, &self.committees[1]).unwrap();
        assert_eq!((block.number, client.epoch(), client.last_block()), (3, 1, 7));
        client
    }
}

#[test]
fn a_quorum_of_seats_makes_a_block_and_those_before_it_final() {
    let chain = Chain::new();
    let good = chain.certificate(0, 2, &[(0, 0), (1, 1), (2, 2)]);
    let block = chain.client().verify(&chain.headers[1..3], &good).unwrap();
    assert_eq!((block.number, block.hash, block.state_root), (1, keccak256(&chain.headers[1]).0, [3; 32]));
    assert_eq!(chain.client().verify(&chain.headers[2..3], &good).unwrap().number, 2);
    // In the second epoch three of four seats are one validator's.
    let client = chain.advanced();
    assert_eq!(client.verify(&chain.headers[5..6], &chain.certificate(1, 5, &[(0, 0)])).unwrap().number, 5);
    let few = client.verify(&chain.headers[5..6], &chain.certificate(1, 5, &[(1, 1)]));
    assert_eq!(few, Err(FinalityError::Quorum { found: 1, wanted: 3 }));
}

#[test]
fn what_is_no_quorum_proves_nothing() {
    let chain = Chain::new();
    let client = chain.client();
    let verify = |epoch, signers: &[(u16, usize)]| {
        client.verify(&chain.headers[2..3], &chain.certificate(epoch, 2, signers)).unwrap_err()
    };
    assert_eq!(verify(0, &[(0, 0), (1, 1)]), FinalityError::Quorum { found: 2, wanted: 3 });
    assert_eq!(verify(0, &[]), FinalityError::Quorum { found: 0, wanted: 3 });
    // A key twice, in its place or in another's, and out of order.
    assert_eq!(verify(0, &[(0, 0), (0, 0), (1, 1)]), FinalityError::Member);
    assert_eq!(verify(0, &[(0, 0), (1, 1), (2, 1)]), FinalityError::Signature(2));
    assert_eq!(verify(0, &[(2, 2), (1, 1), (0, 0)]), FinalityError::Member);
    assert_eq!(verify(0, &[(0, 0), (1, 1), (4, 2)]), FinalityError::Member);
    // Another epoch's number, in which nobody voted on this block.
    assert_eq!(verify(1, &[(0, 0), (1, 1), (2, 2)]), FinalityError::OtherBlock);
    // Another block's certificate.
    let other = chain.certificate(0, 1, &[(0, 0), (1, 1), (2, 2)]);
    assert_eq!(client.verify(&chain.headers[2..3], &other), Err(FinalityError::OtherBlock));
}

#[test]
fn signatures_of_another_chain_prove_nothing() {
    let chain = Chain::new();
    let good = chain.certificate(0, 2, &[(0, 0), (1, 1), (2, 2)]);
    // The same committee and the same block, on a chain that began otherwise.
    let began = header(0, &[1; 32], &keccak256(&chain.committees[0]).0);
    let client = LightClient::new(keccak256(&began).0, &began, &chain.committees[0]).unwrap();
    assert_eq!(client.verify(&chain.headers[2..3], &good), Err(FinalityError::Signature(0)));
    let error = LightClient::new(chain.genesis(), &began, &chain.committees[0]).unwrap_err();
    assert_eq!(error, FinalityError::OtherChain);
    let error = LightClient::new(keccak256(&chain.headers[3]).0, &chain.headers[3], &chain.committees[1])
        .unwrap_err();
    assert_eq!(error, FinalityError::OtherChain, "a chain begins with block 0");
    let error = LightClient::new(chain.genesis(), &chain.headers[0], &chain.committees[1]).unwrap_err();
    assert_eq!(error, FinalityError::Committee);
}

#[test]
fn only_the_end_of_an_epoch_names_the_next_committee() {
    let chain = Chain::new();
    let three = [(0, 0), (1, 1), (2, 2)];
    let advance = |block: usize, certificate: &[u8], committee: &[u8]| {
        let mut client = chain.client();
        let error = client.advance(&chain.headers[block..=block], certificate, committee).unwrap_err();
        assert_eq!(client.epoch(), 0);
        error
    };
    let good = chain.certificate(0, 3, &three);
    assert_eq!(advance(3, &good, &chain.committees[0]), FinalityError::Committee);
    assert_eq!(advance(3, &good, &chain.committees[1][1..]), FinalityError::Committee);
    assert_eq!(
        advance(2, &chain.certificate(0, 2, &three), &chain.committees[1]),
        FinalityError::NoBoundary(2)
    );
    assert_eq!(
        advance(3, &chain.certificate(0, 3, &three[..2]), &chain.committees[1]),
        FinalityError::Quorum { found: 2, wanted: 3 }
    );
    // The old committee decides nothing in the new epoch, nor the new one in the old.
    let later = chain.certificate(0, 5, &three);
    let error = FinalityError::OtherEpoch { block: 5, epoch: 0 };
    assert_eq!(chain.client().verify(&chain.headers[5..6], &later), Err(error));
    assert_eq!(chain.client().verify(&chain.headers[2..6], &later), Err(error));
    let error = FinalityError::OtherEpoch { block: 2, epoch: 1 };
    assert_eq!(
        chain.advanced().verify(&chain.headers[2..3], &chain.certificate(1, 2, &[(0, 0)])),
        Err(error)
    );
}

#[test]
fn headers_that_do_not_follow_prove_nothing() {
    let chain = Chain::new();
    let good = chain.certificate(0, 2, &[(0, 0), (1, 1), (2, 2)]);
    let verify = |headers: &[Vec<u8>]| chain.client().verify(headers, &good).unwrap_err();
    assert_eq!(verify(&[chain.headers[0].clone(), chain.headers[2].clone()]), FinalityError::Chain(1));
    assert_eq!(verify(&[]), FinalityError::Header(0));
    assert_eq!(verify(&[b"nothing".to_vec()]), FinalityError::Header(0));
    assert_eq!(verify(&[[chain.headers[2].as_slice(), &[0]].concat()]), FinalityError::Header(0));
    assert_eq!(verify(&vec![chain.headers[2].clone(); HEADERS_MAX + 1]), FinalityError::Chain(1));
}

proptest! {
    #[test]
    fn no_changed_byte_goes_through(at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let chain = Chain::new();
        // As few as can be, so that every signature counts.
        let mut certificate = chain.certificate(0, 2, &[(0, 0), (1, 1), (2, 2)]);
        let place = at.index(certificate.len());
        certificate[place] ^= 1 << bit;
        prop_assert!(chain.client().verify(&chain.headers[2..3], &certificate).is_err());
        let mut header = chain.headers[2].clone();
        let place = at.index(header.len());
        header[place] ^= 1 << bit;
        let good = chain.certificate(0, 2, &[(0, 0), (1, 1), (2, 2)]);
        prop_assert!(chain.client().verify(&[header], &good).is_err());
    }

    #[test]
    fn hostile_bytes_never_panic(header in prop::collection::vec(any::<u8>(), 0..700), rest in prop::collection::vec(any::<u8>(), 0..300)) {
        let chain = Chain::new();
        prop_assert!(chain.client().verify(&[&header], &rest).is_err());
        prop_assert!(chain.client().verify(&chain.headers[2..3], &rest).is_err());
        prop_assert!(LightClient::new(keccak256(&header).0, &header, &rest).is_err());
    }
}
