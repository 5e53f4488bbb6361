//! The Merkle tree over an artifact's data.
//!
//! The data is cut into tiles of [`TILE`] bytes; the last one may be shorter. A leaf is
//! `keccak256(0x00 || index as 8 bytes big-endian || length as 4 bytes big-endian || tile)` and a node is
//! `keccak256(0x01 || left || right)`. A level with an odd number of nodes passes its last node up unchanged. The
//! number of tiles follows from the data's length, which stands in the manifest next to the root, so every opening
//! has one shape; the prefixes and the index keep a node from passing for a leaf and a tile from passing for another.

use assay_receipt::Bytes32;
use rayon::prelude::*;
use sha3::{Digest, Keccak256};

/// Bytes in a tile.
pub const TILE: usize = 4096;

/// How many tiles are hashed between two calls of a progress function.
const TILES_PER_REPORT: usize = 4096;

/// keccak256 of `bytes`.
pub(crate) fn keccak(bytes: &[u8]) -> Bytes32 {
    Bytes32(Keccak256::digest(bytes).into())
}

/// The hash of tile number `index`.
pub fn leaf(index: u64, tile: &[u8]) -> Bytes32 {
    let mut hash = Keccak256::new();
    hash.update([0]);
    hash.update(index.to_be_bytes());
    // A tile has at most 4,096 bytes, so the length fits; a longer slice is no tile and gets a leaf of its own.
    hash.update(u32::try_from(tile.len()).unwrap_or(u32::MAX).to_be_bytes());
    hash.update(tile);
    Bytes32(hash.finalize().into())
}

fn node(left: &Bytes32, right: &Bytes32) -> Bytes32 {
    let mut hash = Keccak256::new();
    hash.update([1]);
    hash.update(left.0);
    hash.update(right.0);
    Bytes32(hash.finalize().into())
}

/// The number of tiles in `data_bytes` bytes.
pub fn tiles(data_bytes: u64) -> u64 {
    data_bytes.div_ceil(TILE as u64)
}

/// Hashes every tile of `data`, in parallel, and calls `progress` with the bytes hashed so far.
pub fn leaves(data: &[u8], progress: &mut dyn FnMut(u64)) -> Vec<Bytes32> {
    let mut out = Vec::with_capacity(data.len().div_ceil(TILE));
    let mut done = 0;
    for (group, part) in data.chunks(TILE * TILES_PER_REPORT).enumerate() {
        let first = (group * TILES_PER_REPORT) as u64;
        out.par_extend(part.par_chunks(TILE).enumerate().map(|(i, tile)| leaf(first + i as u64, tile)));
        done += part.len() as u64;
        progress(done);
    }
    out
}

/// The level above `level`.
pub fn parents(level: &[Bytes32]) -> Vec<Bytes32> {
    level.chunks(2).map(|pair| if let [l, r] = pair { node(l, r) } else { pair[0] }).collect()
}

/// The root over `leaves`; all zeros when there are none.
pub fn root(leaves: &[Bytes32]) -> Bytes32 {
    let mut level = leaves.to_vec();
    while level.len() > 1 {
        level = parents(&level);
    }
    level.first().copied().unwrap_or(Bytes32([0; 32]))
}

/// A tree with all of its nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// From the leaves up; one level at least.
    levels: Vec<Vec<Bytes32>>,
}

impl Tree {
    /// The tree over these leaves.
    pub fn new(leaves: Vec<Bytes32>) -> Tree {
        let mut levels = vec![leaves];
        while let Some(level) = levels.last().filter(|level| level.len() > 1) {
            let above = parents(level);
            levels.push(above);
        }
        Tree { levels }
    }

    /// The root; all zeros when there are no leaves.
    pub fn root(&self) -> Bytes32 {
        self.levels.last().and_then(|level| level.first()).copied().unwrap_or(Bytes32([0; 32]))
    }

    /// The height of the root; leaves are at 0.
    pub fn height(&self) -> usize {
        self.levels.len() - 1
    }

    /// The nodes at a height from left to right; none above the root.
    pub fn level(&self, height: usize) -> &[Bytes32] {
        self.levels.get(height).map_or(&[], Vec::as_slice)
    }

    /// The siblings on the way from leaf `index` to the root, lowest first; `None` when there is no such leaf.
    pub fn proof(&self, index: u64) -> Option<Vec<Bytes32>> {
        let index = usize::try_from(index).ok().filter(|index| *index < self.levels[0].len())?;
        let sibling = |(height, level): (usize, &Vec<Bytes32>)| level.get((index >> height) ^ 1).copied();
        Some(self.levels.iter().enumerate().filter_map(sibling).collect())
    }
}

/// Whether `tile` is tile number `index` of the data with `data_bytes` bytes and the Merkle root `root`.
///
/// False for an index beyond the data, a tile of the wrong length, and a proof with too few or too many siblings.
pub fn verify_tile(root: &Bytes32, data_bytes: u64, index: u64, tile: &[u8], siblings: &[Bytes32]) -> bool {
    let mut width = tiles(data_bytes);
    if index >= width || tile.len() as u64 != (data_bytes - index * TILE as u64).min(TILE as u64) {
        return false;
    }
    let mut hash = leaf(index, tile);
    let mut position = index;
    let mut siblings = siblings.iter();
    while width > 1 {
        if position ^ 1 < width {
            let Some(sibling) = siblings.next() else { return false };
            hash = if position & 1 == 0 { node(&hash, sibling) } else { node(sibling, &hash) };
        }
        position /= 2;
        width = width.div_ceil(2);
    }
    siblings.next().is_none() && hash == *root
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_opens_and_no_other_does() {
        for bytes in [1, 4095, 4096, 4097, 5 * TILE, 7 * TILE + 1, 8 * TILE] {
            let data: Vec<u8> = (0..bytes).map(|i| (i * 7 % 251) as u8).collect();
            let leaves = leaves(&data, &mut |_| {});
            let tree = Tree::new(leaves.clone());
            let root = root(&leaves);
            assert_eq!(tree.root(), root);
            assert_eq!(tree.level(tree.height()), [root]);
            for (i, tile) in data.chunks(TILE).enumerate() {
                let proof = tree.proof(i as u64).unwrap();
                assert!(verify_tile(&root, bytes as u64, i as u64, tile, &proof));
                let mut changed = tile.to_vec();
                changed[0] ^= 1;
                assert!(!verify_tile(&root, bytes as u64, i as u64, &changed, &proof));
                assert!(!verify_tile(&root, bytes as u64, i as u64 + 1, tile, &proof));
                assert!(!verify_tile(&root, bytes as u64, i as u64, &tile[1..], &proof));
                let mut long = proof.clone();
                long.push(root);
                assert!(!verify_tile(&root, bytes as u64, i as u64, tile, &long));
                if let Some((_, short)) = proof.split_last() {
                    assert!(!verify_tile(&root, bytes as u64, i as u64, tile, short));
                }
            }
            assert!(tree.proof(leaves.len() as u64).is_none());
        }
    }

    #[test]
    fn a_node_is_no_leaf() {
        let data = vec![3; 2 * TILE];
        let leaves = leaves(&data, &mut |_| {});
        let joined: Vec<u8> = leaves.iter().flat_map(|l| l.0).collect();
        assert!(!verify_tile(&root(&leaves), 64, 0, &joined, &[]));
    }
}
