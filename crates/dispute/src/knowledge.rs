//! What a challenger knows of the worker's tree: its own, but where something else was revealed.

use std::collections::HashMap;

use assay_engine::trace::Trace;
use assay_model::merkle;
use assay_receipt::Bytes32;
use serde_json::Value;

use crate::case::tile;

/// Levels of the tree that a round descends: `STEP` of the contract.
pub(crate) const STEP: usize = 4;

/// Nodes and tiles that the worker revealed.
#[derive(Debug, Default)]
pub(crate) struct Knowledge {
    nodes: HashMap<(usize, usize), Bytes32>,
    tiles: HashMap<u64, Vec<u8>>,
}

impl Knowledge {
    /// What was revealed `down` levels below a node, and so all between.
    pub(crate) fn learn(&mut self, level: usize, index: usize, down: usize, nodes: &[Bytes32]) {
        let mut nodes = nodes.to_vec();
        let mut first = index << down;
        for height in level - down..=level {
            for (i, node) in nodes.iter().enumerate() {
                self.nodes.insert((height, first + i), *node);
            }
            nodes = merkle::parents(&nodes);
            first /= 2;
        }
    }

    /// A tile that was revealed.
    pub(crate) fn learn_tile(&mut self, index: u64, data: Vec<u8>) {
        self.tiles.insert(index, data);
    }

    /// The opening of a tile under the worker's root.
    pub(crate) fn tile(&self, trace: &Trace, index: u64) -> Value {
        let tree = trace.tree();
        let mut siblings = Vec::new();
        let mut place = index as usize;
        for height in 0..tree.height() {
            let known = self.nodes.get(&(height, place ^ 1)).or_else(|| tree.level(height).get(place ^ 1));
            siblings.extend(known.filter(|_| place ^ 1 < tree.level(height).len()));
            place /= 2;
        }
        let own = || trace.tile(index);
        tile(index, &self.tiles.get(&index).cloned().unwrap_or_else(own), &siblings)
    }
}
