//! From a graph to what is committed and looked up: slots, rows and table entries.
//!
//! For every example, the committed vector has one *slot* for each result of a look-up and one for each remainder of a
//! look-up that shifts. Look-ups are *rows*: one for each (key, value) pair and one for each remainder. Both are laid out
//! number by number with the batch in the low bits: slot `s` of example `b` lies at `s · batch + b`. Behind the slots
//! follow the multiplicities of the table entries, behind the rows the entries themselves.

use assay_graph::{Graph, Node, Range, SHIFT_MAX};

use crate::products::Products;
use crate::{BATCH_MAX, Error};

/// The largest base-two logarithm of the committed vector and of the rows.
pub(crate) const LOG_MAX: usize = 24;
/// The smallest base-two logarithm of the committed vector: the commitment folds four variables twice.
pub(crate) const LOG_MIN: usize = 8;

/// Where a look-up node's values are.
pub(crate) struct Lookup {
    /// The number of the node in the graph.
    pub(crate) node: usize,
    /// Values an example.
    pub(crate) width: usize,
    /// Bits dropped.
    pub(crate) shift: u32,
    /// Tag of its table.
    pub(crate) tag: u32,
    /// First slot and first row of the results.
    pub(crate) results: (usize, usize),
    /// First slot and first row of the remainders, when it shifts.
    pub(crate) remainders: Option<(usize, usize)>,
    /// Where the entries of its table start, and the smallest key.
    #[cfg_attr(not(feature = "prover"), expect(dead_code, reason = "the prover counts with it"))]
    pub(crate) entries: (usize, i32),
    /// Where the entries of the range of remainders start; unused without a shift.
    #[cfg_attr(not(feature = "prover"), expect(dead_code, reason = "the prover counts with it"))]
    pub(crate) range_entries: usize,
}

/// An entry of a table.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) tag: u32,
    pub(crate) key: i32,
    pub(crate) value: i32,
}

/// The layout of a graph.
pub(crate) struct Circuit<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) lookups: Vec<Lookup>,
    /// Slots an example.
    pub(crate) slots: usize,
    /// Rows an example.
    pub(crate) rows: usize,
    /// The entries of all tables that are used. Without look-ups there is one that nobody uses.
    pub(crate) entries: Vec<Entry>,
    pub(crate) products: Products,
    /// When inputs are hidden: which of the ranges each is in. They are the first slots and the first rows, whose keys they are.
    pub(crate) inputs: Vec<usize>,
    /// The ranges that hidden inputs are in, and where the entries of each start.
    #[cfg_attr(not(feature = "prover"), expect(dead_code, reason = "the prover counts with it"))]
    pub(crate) ranges: Vec<(Range, usize)>,
}

/// The sizes of one proof.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Base-two logarithm of the batch, which is filled up with copies of its last example.
    pub(crate) log_batch: usize,
    /// Base-two logarithm of rows and entries together.
    pub(crate) log_rows: usize,
    /// Base-two logarithm of the committed vector.
    pub(crate) log_committed: usize,
}

impl<'a> Circuit<'a> {
    pub(crate) fn new(graph: &'a Graph) -> Circuit<'a> {
        Circuit::build(graph, Vec::new(), Vec::new())
    }

    /// As [`new`](Self::new), where the inputs are hidden: they are committed to and held to their ranges like the results of look-ups.
    ///
    /// # Errors
    /// [`Error::Size`] when the ranges are too large to look anything up in them.
    pub(crate) fn hiding(graph: &'a Graph) -> Result<Circuit<'a>, Error> {
        let (mut ranges, mut numbers) = (Vec::new(), std::collections::HashMap::new());
        let inputs = graph.inputs().iter().map(|range| {
            *numbers.entry((range.low, range.high)).or_insert_with(|| {
                ranges.push((*range, 0));
                ranges.len() - 1
            })
        });
        let inputs = inputs.collect();
        // A graph bounds values: this does not overflow.
        let entries: u64 =
            ranges.iter().map(|(range, _)| (i64::from(range.high) - i64::from(range.low)) as u64 + 1).sum();
        if entries > 1 << LOG_MAX {
            return Err(Error::Size(format!(
                "the ranges of the inputs have {entries} numbers, where 2^{LOG_MAX} can be hidden"
            )));
        }
        Ok(Circuit::build(graph, inputs, ranges))
    }

    /// That of a proof that hides its inputs, or not them.
    ///
    /// # Errors
    /// As [`hiding`](Self::hiding).
    pub(crate) fn of(graph: &'a Graph, hides_inputs: bool) -> Result<Circuit<'a>, Error> {
        if hides_inputs { Circuit::hiding(graph) } else { Ok(Circuit::new(graph)) }
    }

    fn build(graph: &'a Graph, inputs: Vec<usize>, mut ranges: Vec<(Range, usize)>) -> Circuit<'a> {
        let tables = graph.tables();
        // The smallest offset is where a table's entries start; `usize::MAX` for one that is not used.
        let mut starts = vec![usize::MAX; tables.len() + assay_graph::SHIFT_MAX as usize + 1];
        let mut entries = Vec::new();
        for node in graph.nodes() {
            let Node::Lookup { shift, table, .. } = node else { continue };
            let (tag, range_tag) = (*table as usize, tables.len() + *shift as usize);
            if starts[tag] == usize::MAX {
                starts[tag] = entries.len();
                let table = &tables[tag];
                entries.extend(table.values.iter().zip(table.low..).map(|(value, key)| Entry {
                    tag: tag as u32,
                    key,
                    value: *value,
                }));
            }
            if *shift > 0 && starts[range_tag] == usize::MAX {
                starts[range_tag] = entries.len();
                entries.extend((0..1i32 << shift).map(|key| Entry { tag: range_tag as u32, key, value: 0 }));
            }
        }
        for (number, (range, start)) in ranges.iter_mut().enumerate() {
            *start = entries.len();
            let tag = input_tag(graph, number);
            entries.extend((range.low..=range.high).map(|key| Entry { tag, key, value: 0 }));
        }
        if entries.is_empty() {
            entries.push(Entry { tag: 0, key: 0, value: 0 });
        }
        let (mut lookups, mut slots, mut rows) = (Vec::new(), inputs.len(), inputs.len());
        for (number, node) in graph.nodes().iter().enumerate() {
            let Node::Lookup { input, shift, table } = node else { continue };
            let width = graph.width(*input);
            let mut place = || {
                let place = (slots, rows);
                slots += width;
                rows += width;
                place
            };
            lookups.push(Lookup {
                node: number,
                width,
                shift: *shift,
                tag: *table,
                results: place(),
                remainders: (*shift > 0).then(place),
                entries: (starts[*table as usize], tables[*table as usize].low),
                range_entries: starts[tables.len() + *shift as usize],
            });
        }
        Circuit { graph, lookups, slots, rows, entries, products: Products::new(graph), inputs, ranges }
    }

    /// The tag of the range of a look-up's remainders.
    pub(crate) fn range_tag(&self, shift: u32) -> u32 {
        self.graph.tables().len() as u32 + shift
    }

    /// Runs of rows of hidden inputs with one tag: the first, how many, and the tag.
    pub(crate) fn input_tags(&self) -> impl Iterator<Item = (usize, usize, u32)> {
        let mut first = 0;
        self.inputs.chunk_by(|a, b| a == b).map(move |run| {
            let start = first;
            first += run.len();
            (start, run.len(), input_tag(self.graph, run[0]))
        })
    }

    /// The sizes for a batch.
    ///
    /// # Errors
    /// [`Error::Size`] when it is beyond what one proof covers.
    pub(crate) fn sizes(&self, batch: usize) -> Result<Sizes, Error> {
        if batch == 0 || batch > BATCH_MAX {
            return Err(Error::Size(format!("{batch} examples, where one proof covers 1 to {BATCH_MAX}")));
        }
        let log = |n: u64| n.next_power_of_two().trailing_zeros() as usize;
        let log_batch = log(batch as u64);
        // In 64 bits, also where addresses have 32: nothing here may wrap around.
        let total = |each: usize| ((each as u64) << log_batch) + self.entries.len() as u64;
        let log_rows = log(total(self.rows)).max(1).max(log_batch);
        let log_committed = log(total(self.slots)).max(LOG_MIN).max(log_batch);
        if log_rows.max(log_committed) > LOG_MAX {
            return Err(Error::Size(format!(
                "{} look-ups and table entries, where one proof covers 2^{LOG_MAX}",
                total(self.rows)
            )));
        }
        if self.products.log_results.max(self.products.log_operands + log_batch) > LOG_MAX {
            return Err(Error::Size(format!(
                "the products have 2^{} results and 2^{} operands, where one proof covers 2^{LOG_MAX}",
                self.products.log_results,
                self.products.log_operands + log_batch
            )));
        }
        Ok(Sizes { log_batch, log_rows, log_committed })
    }
}

/// The tag of a range of hidden inputs; behind those of tables and of remainders.
fn input_tag(graph: &Graph, number: usize) -> u32 {
    graph.tables().len() as u32 + SHIFT_MAX + 1 + number as u32
}
