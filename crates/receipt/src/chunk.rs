use serde::{Deserialize, Serialize};

use crate::eip712::{Fields, Statement, Typed, keccak256, sealed};
use crate::output::{TOKEN_LOGPROB, TOP_LOGPROB, validate_logprobs};
use crate::request::{text, tokens};
use crate::{Address, Bytes32, Domain, Error, Key, Signature, TokenLogprob};

/// A piece of a streamed answer. Joined in order, the texts, tokens and log-probabilities of all chunks are those of the
/// output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunk {
    /// Counts from 0.
    pub index: u64,
    /// Text that becomes visible; may be empty while the worker holds text back.
    pub text: String,
    /// Tokens that were sampled since the chunk before; empty from a forwarder.
    pub tokens: Vec<u32>,
    /// One entry a token when the request asked for them, else empty.
    pub logprobs: Vec<TokenLogprob>,
}

impl Chunk {
    pub(crate) fn validate(&self) -> Result<(), Error> {
        text(&self.text, "chunk.text")?;
        tokens(&self.tokens, "chunk.tokens")?;
        validate_logprobs(&self.logprobs, "chunk.logprobs")
    }
}

impl sealed::Sealed for Chunk {}
impl Typed for Chunk {
    const TYPES: &'static [&'static str] = &[
        "Chunk(uint64 index,string text,uint32[] tokens,TokenLogprob[] logprobs)",
        TOKEN_LOGPROB,
        TOP_LOGPROB,
    ];
    fn fields<V: Fields>(&self, v: &mut V) {
        v.uint("index", 64, self.index.into());
        v.string("text", &self.text);
        v.uints("tokens", 32, self.tokens.iter().copied());
        v.many("logprobs", &self.logprobs);
    }
}

/// The hash chain over the chunks of one answer. Its start binds the request and the caller's nonce; each link binds
/// all chunks so far, their order and their split. A worker signs each link, so it cannot take back what it streamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    nonce: Bytes32,
    next: u64,
    link: Bytes32,
}

impl Chain {
    /// The chain before the first chunk: `keccak256("assay/chain" || request commitment || nonce)`.
    pub fn start(request_commitment: &Bytes32, nonce: &Bytes32) -> Chain {
        let link = keccak256([b"assay/chain".as_slice(), &request_commitment.0, &nonce.0].concat());
        Chain { nonce: *nonce, next: 0, link }
    }

    /// Adds a chunk and returns its link: `keccak256(link before || structHash(chunk))`.
    ///
    /// # Errors
    /// [`Error::ChunkIndex`] when the chunk is not the next one; the chain is then unchanged.
    pub fn push(&mut self, chunk: &Chunk) -> Result<Bytes32, Error> {
        if chunk.index != self.next {
            return Err(Error::ChunkIndex { expected: self.next, found: chunk.index });
        }
        self.link = keccak256([self.link.0, chunk.struct_hash().0].concat());
        self.next += 1;
        Ok(self.link)
    }

    /// Adds a chunk and signs its link.
    ///
    /// # Errors
    /// [`Error::ChunkIndex`] when the chunk is not the next one.
    pub fn sign(&mut self, key: &Key, domain: &Domain, chunk: Chunk) -> Result<SignedChunk, Error> {
        let link = self.push(&chunk)?;
        let statement = ChunkLink { nonce: self.nonce, index: chunk.index, link };
        Ok(SignedChunk { link, signature: key.sign(&domain.digest(&statement)), chunk })
    }

    /// Number of chunks so far, which is the index of the next one.
    pub fn len(&self) -> u64 {
        self.next
    }

    /// Whether no chunk was added yet.
    pub fn is_empty(&self) -> bool {
        self.next == 0
    }

    /// The last link, or the start.
    pub fn link(&self) -> Bytes32 {
        self.link
    }
}

/// What is signed with each chunk.
struct ChunkLink {
    nonce: Bytes32,
    index: u64,
    link: Bytes32,
}

impl sealed::Sealed for ChunkLink {}
impl Typed for ChunkLink {
    const TYPES: &'static [&'static str] = &["ChunkLink(bytes32 nonce,uint64 index,bytes32 link)"];
    fn fields<V: Fields>(&self, v: &mut V) {
        v.bytes32("nonce", &self.nonce);
        v.uint("index", 64, self.index.into());
        v.bytes32("link", &self.link);
    }
}
impl Statement for ChunkLink {
    fn author(&self) -> Option<Address> {
        None
    }
}

/// A chunk as the worker sends it: with its link and the signature of that link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedChunk {
    /// The piece of the answer.
    pub chunk: Chunk,
    /// Link of the chain after this chunk.
    pub link: Bytes32,
    /// Signature of `ChunkLink(nonce, index, link)`.
    pub signature: Signature,
}

impl SignedChunk {
    /// Digest that the worker signs with this chunk.
    pub fn hash(&self, domain: &Domain, nonce: &Bytes32) -> Bytes32 {
        domain.digest(&ChunkLink { nonce: *nonce, index: self.chunk.index, link: self.link })
    }

    /// Standard JSON form of the typed data that the worker signs with this chunk.
    pub fn typed_data(&self, domain: &Domain, nonce: &Bytes32) -> serde_json::Value {
        crate::typed_data(domain, &ChunkLink { nonce: *nonce, index: self.chunk.index, link: self.link })
    }

    /// Address whose key signed the link. It says nothing about the chunk until the link is recomputed with
    /// [`Chain::push`].
    ///
    /// # Errors
    /// [`Error::Signature`] when the signature is not canonical.
    pub fn signer(&self, domain: &Domain, nonce: &Bytes32) -> Result<Address, Error> {
        self.signature.recover(&self.hash(domain, nonce))
    }
}
