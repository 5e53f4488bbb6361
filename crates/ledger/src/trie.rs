//! A Merkle-Patricia trie (Ethereum Yellow Paper, appendix D) over hashed keys, kept in memory and never changed in place.
//!
//! A new version shares all nodes that did not change with the old, so every block has its own version for the price of its
//! changes, and a fork is nothing special. All keys have 32 bytes; a leaf therefore keeps its whole key, a branch has no
//! value, and moving a leaf up or down changes nothing in it.

use std::sync::{Arc, OnceLock};

use alloy_primitives::{B256, keccak256};
use alloy_rlp::{EMPTY_STRING_CODE, Encodable, Header};

/// `keccak256(rlp(""))`, the root of the empty trie.
pub(crate) const EMPTY_ROOT: B256 = alloy_consensus::EMPTY_ROOT_HASH;

#[derive(Clone, Debug)]
pub(crate) struct Trie<V>(Option<Arc<Cell<V>>>);

impl<V> Default for Trie<V> {
    fn default() -> Self {
        Self(None)
    }
}

#[derive(Debug)]
struct Cell<V> {
    node: Node<V>,
    /// How the parent refers to this node: its encoding where that is shorter than 32 bytes, else its hash.
    reference: OnceLock<Vec<u8>>,
}

#[derive(Debug)]
enum Node<V> {
    Leaf { key: B256, value: V },
    Extension { path: Box<[u8]>, child: Arc<Cell<V>> },
    Branch(Box<[Option<Arc<Cell<V>>>; 16]>),
}

fn nibble(key: &B256, at: usize) -> u8 {
    let byte = key[at / 2];
    if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 }
}

fn nibbles(key: &B256, from: usize, to: usize) -> Vec<u8> {
    (from..to).map(|at| nibble(key, at)).collect()
}

/// The hex-prefix encoding of a path (Yellow Paper, appendix C).
fn hex_prefix(path: impl ExactSizeIterator<Item = u8>, leaf: bool) -> Vec<u8> {
    let odd = path.len() % 2 == 1;
    let mut out = Vec::with_capacity(path.len() / 2 + 1);
    let flag = if leaf { 2u8 } else { 0 };
    let mut half = if odd { Some((flag + 1) << 4) } else { None };
    if !odd {
        out.push(flag << 4);
    }
    for value in path {
        match half.take() {
            Some(high) => out.push(high | value),
            None => half = Some(value << 4),
        }
    }
    out
}

fn cell<V>(node: Node<V>) -> Arc<Cell<V>> {
    Arc::new(Cell { node, reference: OnceLock::new() })
}

impl<V: Encodable + Clone + PartialEq> Trie<V> {
    pub(crate) fn get(&self, key: &B256) -> Option<&V> {
        let mut node = &self.0.as_ref()?.node;
        let mut depth = 0;
        loop {
            match node {
                Node::Leaf { key: found, value } => return (found == key).then_some(value),
                Node::Extension { path, child } => {
                    if path.iter().enumerate().any(|(i, step)| nibble(key, depth + i) != *step) {
                        return None;
                    }
                    depth += path.len();
                    node = &child.node;
                }
                Node::Branch(children) => {
                    node = &children[usize::from(nibble(key, depth))].as_ref()?.node;
                    depth += 1;
                }
            }
        }
    }

    pub(crate) fn insert(&mut self, key: B256, value: V) {
        self.0 = Some(insert(self.0.as_ref(), key, 0, value));
    }

    pub(crate) fn remove(&mut self, key: &B256) {
        if let Some(root) = &self.0
            && let Some(rest) = remove(root, key, 0)
        {
            self.0 = rest;
        }
    }

    pub(crate) fn root(&self) -> B256 {
        match &self.0 {
            None => EMPTY_ROOT,
            Some(root) => match root.reference() {
                [0xa0, hash @ ..] if hash.len() == 32 => B256::from_slice(hash),
                short => keccak256(short),
            },
        }
    }

    /// The encoded nodes from the root to the key, or to where its absence shows (EIP-1186). A node shorter than 32 bytes is
    /// part of its parent and not listed.
    pub(crate) fn prove(&self, key: &B256) -> Vec<Vec<u8>> {
        let mut proof = Vec::new();
        let mut next = self.0.as_ref();
        let mut depth = 0;
        while let Some(cell) = next {
            let encoded = cell.encode(depth);
            if encoded.len() >= 32 || depth == 0 {
                proof.push(encoded);
            }
            next = match &cell.node {
                Node::Leaf { .. } => None,
                Node::Extension { path, child } => {
                    let same = path.iter().enumerate().all(|(i, step)| nibble(key, depth + i) == *step);
                    depth += path.len();
                    same.then_some(child)
                }
                Node::Branch(children) => {
                    depth += 1;
                    children[usize::from(nibble(key, depth - 1))].as_ref()
                }
            };
        }
        proof
    }

    /// What is below a path of nibbles: all entries in the order of their keys, where these weigh no more than `budget` together or
    /// there is only one, else the encoded node. `None` where no node is exactly there.
    pub(crate) fn part(
        &self,
        path: &[u8],
        budget: usize,
        weight: impl Fn(&V) -> usize,
    ) -> Option<Below<'_, V>> {
        let mut next = self.0.as_ref()?;
        let mut rest = path;
        while !rest.is_empty() {
            match &next.node {
                Node::Leaf { .. } => return None,
                Node::Extension { path, child } => {
                    rest = rest.strip_prefix(path.as_ref())?;
                    next = child;
                }
                Node::Branch(children) => {
                    let (step, below) = rest.split_first()?;
                    rest = below;
                    next = children.get(usize::from(*step))?.as_ref()?;
                }
            }
        }
        let (mut found, mut room) = (Vec::new(), budget);
        let all = next.visit(&mut |key, value| {
            found.push((key, value));
            let weight = weight(value);
            let fits = weight <= room || found.len() == 1;
            room = room.saturating_sub(weight);
            fits
        });
        Some(if all { Below::Entries(found) } else { Below::Node(next.encode(path.len())) })
    }

    /// How many entries there are, `most` at most.
    pub(crate) fn count(&self, most: usize) -> usize {
        let mut count = 0;
        if let Some(root) = &self.0 {
            root.visit(&mut |_, _| {
                count += 1;
                count < most
            });
        }
        count
    }

    /// Calls `visit` for every entry, in the order of the keys.
    pub(crate) fn for_each(&self, visit: &mut impl FnMut(&B256, &V)) {
        if let Some(root) = &self.0 {
            root.visit(&mut |key, value| {
                visit(key, value);
                true
            });
        }
    }
}

impl<V> Cell<V> {
    /// Calls `visit` for the entries in the order of their keys while it says so; whether it got to the end.
    fn visit<'a>(&'a self, visit: &mut impl FnMut(&'a B256, &'a V) -> bool) -> bool {
        match &self.node {
            Node::Leaf { key, value } => visit(key, value),
            Node::Extension { child, .. } => child.visit(visit),
            Node::Branch(children) => children.iter().flatten().all(|child| child.visit(visit)),
        }
    }
}

/// What is below a path.
pub(crate) enum Below<'a, V> {
    Entries(Vec<(&'a B256, &'a V)>),
    Node(Vec<u8>),
}

/// How the node above refers to an encoded node; a root is referred to by its hash whatever its length.
pub(crate) fn refer(encoded: &[u8], root: bool) -> Vec<u8> {
    if encoded.len() < 32 && !root {
        return encoded.to_vec();
    }
    [&[0xa0], keccak256(encoded).as_slice()].concat()
}

/// How the node above refers to what is below a path, made of its entries; `None` unless there are some, ascending, all below the path.
pub(crate) fn hash_part<V: Encodable + Clone>(
    path: &[u8],
    entries: impl Iterator<Item = (B256, V)>,
) -> Option<Vec<u8>> {
    let (mut root, mut last) = (None, None);
    for (key, value) in entries {
        let below = path.len() < 64 && path.iter().enumerate().all(|(i, step)| nibble(&key, i) == *step);
        if !below || last >= Some(key) {
            return None;
        }
        last = Some(key);
        root = Some(insert(root.as_ref(), key, path.len(), value));
    }
    Some(refer(&root?.encode(path.len()), path.is_empty()))
}

/// The steps to the children of an encoded inner node, and how it refers to them. `None` for other bytes.
pub(crate) fn children(mut node: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut payload = Header::decode_bytes(&mut node, true).ok()?;
    let mut items = Vec::new();
    while !payload.is_empty() {
        let mut rest = payload;
        let header = Header::decode(&mut rest).ok()?;
        // `decode` has checked that so many are there.
        let length = payload.len() - rest.len() + header.payload_length;
        let (item, after) = payload.split_at_checked(length)?;
        items.push(item);
        payload = after;
    }
    if !node.is_empty() {
        return None;
    }
    match items.as_slice() {
        [path, child] => {
            let path = Header::decode_bytes(&mut &**path, false).ok()?;
            let (first, rest) = path.split_first()?;
            let mut steps = Vec::new();
            match first >> 4 {
                0 if first & 15 == 0 => {}
                1 => steps.push(first & 15),
                _ => return None,
            }
            steps.extend(rest.iter().flat_map(|byte| [byte >> 4, byte & 15]));
            (!steps.is_empty()).then(|| vec![(steps, child.to_vec())])
        }
        [branches @ .., [EMPTY_STRING_CODE]] if branches.len() == 16 => {
            let there = branches.iter().enumerate().filter(|(_, child)| **child != [EMPTY_STRING_CODE]);
            Some(there.map(|(step, child)| (vec![step as u8], child.to_vec())).collect())
        }
        _ => None,
    }
}

impl<V: Encodable> Cell<V> {
    /// `depth` is needed because a leaf's encoding contains the rest of its key. A node never moves without being made anew,
    /// except a leaf, whose `reference` is then cleared.
    fn encode(&self, depth: usize) -> Vec<u8> {
        let mut payload = Vec::new();
        match &self.node {
            Node::Leaf { key, value } => {
                hex_prefix(nibbles(key, depth, 64).into_iter(), true).as_slice().encode(&mut payload);
                let mut inner = Vec::with_capacity(value.length());
                value.encode(&mut inner);
                inner.as_slice().encode(&mut payload);
            }
            Node::Extension { path, child } => {
                hex_prefix(path.iter().copied(), false).as_slice().encode(&mut payload);
                payload.extend_from_slice(child.reference_at(depth + path.len()));
            }
            Node::Branch(children) => {
                for child in children.iter() {
                    match child {
                        Some(child) => payload.extend_from_slice(child.reference_at(depth + 1)),
                        None => payload.push(EMPTY_STRING_CODE),
                    }
                }
                payload.push(EMPTY_STRING_CODE);
            }
        }
        let mut out = Vec::with_capacity(payload.len() + 4);
        Header { list: true, payload_length: payload.len() }.encode(&mut out);
        out.extend_from_slice(&payload);
        out
    }

    fn reference_at(&self, depth: usize) -> &[u8] {
        self.reference.get_or_init(|| refer(&self.encode(depth), false))
    }

    fn reference(&self) -> &[u8] {
        self.reference_at(0)
    }
}

/// A leaf's encoding depends on its depth, so a leaf that moves is a new one.
fn moved<V: Clone>(cell_: &Arc<Cell<V>>) -> Arc<Cell<V>> {
    match &cell_.node {
        Node::Leaf { key, value } => cell(Node::Leaf { key: *key, value: value.clone() }),
        _ => cell_.clone(),
    }
}

fn no_children<V>() -> Box<[Option<Arc<Cell<V>>>; 16]> {
    Box::new(std::array::from_fn(|_| None))
}

fn extended<V>(path: Vec<u8>, child: Arc<Cell<V>>) -> Arc<Cell<V>> {
    if path.is_empty() { child } else { cell(Node::Extension { path: path.into(), child }) }
}

fn insert<V: Clone>(at: Option<&Arc<Cell<V>>>, key: B256, depth: usize, value: V) -> Arc<Cell<V>> {
    let Some(at) = at else {
        return cell(Node::Leaf { key, value });
    };
    match &at.node {
        Node::Leaf { key: other, .. } if *other == key => cell(Node::Leaf { key, value }),
        Node::Leaf { key: other, .. } => {
            let mut fork = depth;
            while nibble(other, fork) == nibble(&key, fork) {
                fork += 1;
            }
            let mut children = no_children();
            children[usize::from(nibble(other, fork))] = Some(moved(at));
            children[usize::from(nibble(&key, fork))] = Some(cell(Node::Leaf { key, value }));
            extended(nibbles(&key, depth, fork), cell(Node::Branch(children)))
        }
        Node::Extension { path, child } => {
            let common =
                path.iter().enumerate().take_while(|(i, step)| nibble(&key, depth + i) == **step).count();
            if common == path.len() {
                let child = insert(Some(child), key, depth + common, value);
                return cell(Node::Extension { path: path.clone(), child });
            }
            let mut children = no_children();
            children[usize::from(path[common])] = Some(extended(path[common + 1..].to_vec(), child.clone()));
            children[usize::from(nibble(&key, depth + common))] = Some(cell(Node::Leaf { key, value }));
            extended(path[..common].to_vec(), cell(Node::Branch(children)))
        }
        Node::Branch(children) => {
            let mut children = children.clone();
            let slot = &mut children[usize::from(nibble(&key, depth))];
            *slot = Some(insert(slot.as_ref(), key, depth + 1, value));
            cell(Node::Branch(children))
        }
    }
}

/// `None`: the key is not there. `Some(None)`: nothing is left.
#[allow(clippy::option_option)]
fn remove<V: Clone>(at: &Arc<Cell<V>>, key: &B256, depth: usize) -> Option<Option<Arc<Cell<V>>>> {
    match &at.node {
        Node::Leaf { key: found, .. } => (found == key).then_some(None),
        Node::Extension { path, child } => {
            if path.iter().enumerate().any(|(i, step)| nibble(key, depth + i) != *step) {
                return None;
            }
            let rest = remove(child, key, depth + path.len())?;
            Some(rest.map(|rest| joined(path.to_vec(), &rest)))
        }
        Node::Branch(children) => {
            let at = usize::from(nibble(key, depth));
            let rest = remove(children[at].as_ref()?, key, depth + 1)?;
            let mut children = children.clone();
            children[at] = rest;
            let mut left = children.iter().enumerate().filter_map(|(i, child)| Some((i, child.as_ref()?)));
            let first = left.next();
            if let (Some((i, only)), None) = (first, left.next()) {
                return Some(Some(joined(vec![i as u8], only)));
            }
            Some(Some(cell(Node::Branch(children))))
        }
    }
}

/// The child at the end of a path that no longer branches.
fn joined<V: Clone>(mut path: Vec<u8>, child: &Arc<Cell<V>>) -> Arc<Cell<V>> {
    match &child.node {
        Node::Leaf { .. } => moved(child),
        Node::Extension { path: rest, child } => {
            path.extend_from_slice(rest);
            extended(path, child.clone())
        }
        Node::Branch(_) => extended(path, child.clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use alloy_primitives::U256;
    use alloy_trie::{HashBuilder, Nibbles, proof::verify_proof};
    use proptest::prelude::*;

    use super::*;

    fn reference(entries: &BTreeMap<B256, U256>) -> B256 {
        let mut builder = HashBuilder::default();
        for (key, value) in entries {
            builder.add_leaf(Nibbles::unpack(key), &alloy_rlp::encode(value));
        }
        builder.root()
    }

    /// Keys that share long beginnings, so that extensions are split and joined.
    fn key() -> impl Strategy<Value = B256> {
        (0u8..4, 0u8..4, prop::sample::select(vec![0usize, 1, 15, 31]), any::<u8>()).prop_map(
            |(a, b, at, c)| {
                let mut key = B256::ZERO;
                key[0] = a << 4 | b;
                key[at] ^= c;
                key
            },
        )
    }

    proptest! {
        #[test]
        fn the_root_is_ethereums_after_any_changes(changes in prop::collection::vec((key(), 0u64..4), 0..120)) {
            let mut trie = Trie::default();
            let mut entries = BTreeMap::new();
            let mut versions = Vec::new();
            for (key, value) in changes {
                if value == 0 {
                    trie.remove(&key);
                    entries.remove(&key);
                } else {
                    // Large and small values: nodes inside their parents and nodes of their own.
                    let value = if value == 1 { U256::from(1) } else { U256::MAX - U256::from(value) };
                    trie.insert(key, value);
                    entries.insert(key, value);
                }
                versions.push((trie.clone(), reference(&entries)));
                prop_assert_eq!(trie.get(&key), entries.get(&key));
            }
            for (old, root) in versions {
                prop_assert_eq!(old.root(), root, "an old version has changed");
            }
            let mut listed = BTreeMap::new();
            trie.for_each(&mut |key, value| { listed.insert(*key, *value); });
            prop_assert_eq!(listed, entries);
        }

        #[test]
        fn proofs_convince_another_implementation(
            entries in prop::collection::btree_map(key(), 1u64.., 1..60), asked in key(),
        ) {
            let mut trie = Trie::default();
            for (key, value) in &entries {
                trie.insert(*key, U256::from(*value));
            }
            for key in entries.keys().chain([&asked]) {
                let proof: Vec<_> = trie.prove(key).into_iter().map(Into::into).collect();
                let value = entries.get(key).map(|value| alloy_rlp::encode(U256::from(*value)));
                let checked = verify_proof(trie.root(), Nibbles::unpack(key), value, &proof);
                prop_assert!(checked.is_ok(), "{checked:?}");
                let wrong = Some(alloy_rlp::encode(U256::MAX));
                prop_assert!(verify_proof(trie.root(), Nibbles::unpack(key), wrong, &proof).is_err());
            }
        }
    }
}
