//! A mutation fuzzer over the bytes of proofs: whatever is changed, the file is refused, without a panic and without more
//! memory than it has itself.
#![allow(clippy::unwrap_used)]

mod common;

use assay_proof::{Proof, prove, verify};
use common::{attention, inputs, numbers, perceptron};
use proptest::prelude::*;

fn honest() -> (assay_graph::Graph, Vec<u8>) {
    let graph = perceptron();
    // Enough examples for a commitment with an inner round.
    let bytes = prove(&graph, &inputs(&graph, 40, 5)).unwrap().to_bytes().unwrap();
    (graph, bytes)
}

fn accepted(graph: &assay_graph::Graph, bytes: &[u8]) -> bool {
    Proof::from_bytes(bytes).is_ok_and(|proof| verify(graph, &proof).is_ok())
}

/// One bit of every byte of the statement and of the sum-checks, and of one in seven of the opening, which is long and repeats itself.
#[test]
fn every_byte_counts() {
    let (graph, bytes) = honest();
    assert!(accepted(&graph, &bytes));
    let mut next = numbers(11);
    for at in (0..6_000).chain((6_000..bytes.len()).step_by(7)).filter(|at| *at < bytes.len()) {
        let mut other = bytes.clone();
        other[at] ^= 1 << next(0, 7);
        assert!(!accepted(&graph, &other), "byte {at} of {}", bytes.len());
    }
}

/// As above for products: every byte of their messages, which lie behind those of the look-ups.
#[test]
fn every_byte_of_products_counts() {
    let graph = attention();
    let proof = prove(&graph, &inputs(&graph, 2, 5)).unwrap();
    let bytes = proof.to_bytes().unwrap();
    assert!(accepted(&graph, &bytes));
    for at in (0..bytes.len().min(9_000)).step_by(3) {
        let mut other = bytes.clone();
        other[at] ^= 1 << (at % 8);
        assert!(!accepted(&graph, &other), "byte {at} of {}", bytes.len());
    }
}

#[test]
fn a_file_that_is_cut_or_longer_is_refused() {
    let (graph, bytes) = honest();
    for cut in (0..bytes.len()).step_by(13).chain(bytes.len() - 40..bytes.len()) {
        assert!(!accepted(&graph, &bytes[..cut]), "cut at {cut}");
    }
    for more in [&[0][..], &[255; 20], &bytes] {
        assert!(!accepted(&graph, &[&bytes, more].concat()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn mutations_are_refused(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..6)) {
        thread_local!(static HONEST: (assay_graph::Graph, Vec<u8>) = honest());
        HONEST.with(|(graph, bytes)| {
            let mut other = bytes.clone();
            for (at, byte, kind) in edits {
                let at = at.index(other.len());
                match kind {
                    0 => other[at] = byte,
                    1 => other.insert(at, byte),
                    2 => { other.remove(at); }
                    _ => {
                        // A block moved: lists of other lengths, numbers at other places.
                        let end = (at + usize::from(byte)).min(other.len());
                        other[at..end].rotate_left(usize::from(byte) / 2 % (end - at).max(1));
                    }
                }
            }
            prop_assert!(&other == bytes || !accepted(graph, &other));
            Ok(())
        })?;
    }

    #[test]
    fn noise_is_refused(noise in prop::collection::vec(any::<u8>(), 0..2000)) {
        let (magic, graph) = (b"ASSAYPF5", perceptron());
        prop_assert!(!accepted(&graph, &noise));
        prop_assert!(!accepted(&graph, &[&magic[..], &graph.id(), &noise].concat()));
    }
}
