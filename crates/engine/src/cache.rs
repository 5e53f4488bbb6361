//! The keys and values of a sequence.

use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use assay_arithmetic::{KeyValues, Scale};

/// Quantised keys and values of one key-value head in one layer, for all positions so far.
#[derive(Debug, Default)]
pub(crate) struct HeadCache {
    keys: Vec<i16>,
    key_scales: Vec<Scale>,
    values: Vec<i16>,
    value_scales: Vec<Scale>,
}

impl HeadCache {
    /// Some positions.
    pub(crate) fn range(&self, positions: Range<usize>, head_dim: usize) -> KeyValues<'_> {
        let words = positions.start * head_dim..positions.end * head_dim;
        KeyValues {
            keys: &self.keys[words.clone()],
            key_scales: &self.key_scales[positions.clone()],
            values: &self.values[words],
            value_scales: &self.value_scales[positions],
        }
    }
}

/// The cache of one sequence: all layers, all key-value heads. Each head has its own lock, because heads are written
/// by different threads in one phase of a step and read by all in the next.
#[derive(Debug)]
pub(crate) struct Cache {
    head_dim: usize,
    kv_heads: usize,
    heads: Vec<RwLock<HeadCache>>,
}

impl Cache {
    /// Room for `tokens` positions. The system hands out the memory when it is written to.
    pub(crate) fn new(layers: usize, kv_heads: usize, head_dim: usize, tokens: usize) -> Cache {
        let head = || {
            RwLock::new(HeadCache {
                keys: Vec::with_capacity(tokens * head_dim),
                key_scales: Vec::with_capacity(tokens),
                values: Vec::with_capacity(tokens * head_dim),
                value_scales: Vec::with_capacity(tokens),
            })
        };
        Cache { head_dim, kv_heads, heads: (0..layers * kv_heads).map(|_| head()).collect() }
    }

    /// One head, for reading.
    pub(crate) fn head(&self, layer: usize, head: usize) -> RwLockReadGuard<'_, HeadCache> {
        self.lock(layer, head).read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores a key. Positions may come in any order within one step.
    pub(crate) fn put_key(&self, layer: usize, head: usize, position: usize, key: &[i16], scale: Scale) {
        let mut cache = self.lock(layer, head).write().unwrap_or_else(PoisonError::into_inner);
        let HeadCache { keys, key_scales, .. } = &mut *cache;
        put(keys, key_scales, self.head_dim, position, key, scale);
    }

    /// Stores a value. Positions may come in any order within one step.
    pub(crate) fn put_value(&self, layer: usize, head: usize, position: usize, value: &[i16], scale: Scale) {
        let mut cache = self.lock(layer, head).write().unwrap_or_else(PoisonError::into_inner);
        let HeadCache { values, value_scales, .. } = &mut *cache;
        put(values, value_scales, self.head_dim, position, value, scale);
    }

    fn lock(&self, layer: usize, head: usize) -> &RwLock<HeadCache> {
        &self.heads[layer * self.kv_heads + head]
    }
}

fn put(rows: &mut Vec<i16>, scales: &mut Vec<Scale>, cols: usize, at: usize, row: &[i16], scale: Scale) {
    if scales.len() <= at {
        rows.resize((at + 1) * cols, 0);
        scales.resize(at + 1, Scale::ZERO);
    }
    rows[at * cols..][..cols].copy_from_slice(row);
    scales[at] = scale;
}
