//! Building a graph node by node, with the range of every tensor at hand: tables can be made as wide as their keys reach.

use crate::check::Checker;
use crate::node::half;
use crate::{Error, Graph, Interface, Node, Range, Table, Tensor};

/// A graph in the making.
#[derive(Clone, Debug)]
pub struct Builder {
    inputs: Vec<Range>,
    tables: Vec<Table>,
    /// What each table computes, in the caller's words.
    functions: Vec<String>,
    nodes: Vec<Node>,
    checker: Checker,
}

impl Builder {
    /// A graph of inputs alone.
    ///
    /// # Errors
    /// [`Error::Invalid`], as [`Graph::new`].
    pub fn new(inputs: Vec<Range>) -> Result<Builder, Error> {
        let checker = Checker::new(&inputs)?;
        Ok(Builder { inputs, tables: Vec::new(), functions: Vec::new(), nodes: Vec::new(), checker })
    }

    /// Appends a node that is no look-up.
    ///
    /// # Errors
    /// [`Error::Invalid`], as [`Graph::new`]; the graph is then as before.
    pub fn push(&mut self, node: Node) -> Result<Tensor, Error> {
        self.checker.push(&node, &self.tables)?;
        self.nodes.push(node);
        Ok(Tensor(self.nodes.len() as u32))
    }

    /// Appends a look-up of `f` on everything that `(input + half) >> shift` can be. Look-ups of equal `function` names share
    /// a table, which grows to cover all their keys, so `f` must be the same.
    ///
    /// # Errors
    /// [`Error::Invalid`], as [`Graph::new`], and when the look-up would need more than `entries_max` entries.
    pub fn lookup(
        &mut self,
        input: Tensor,
        shift: u32,
        function: &str,
        entries_max: usize,
        f: impl Fn(i32) -> i32,
    ) -> Result<Tensor, Error> {
        let Range { low, high } = self.range(input);
        let (mut low, mut high) = ((low + half(shift)) >> shift, (high + half(shift)) >> shift);
        let known = self.functions.iter().position(|known| known == function);
        if let Some(known) = known {
            let keys = self.tables[known].keys();
            (low, high) = (low.min(keys.low), high.max(keys.high));
        }
        let entries = i64::from(high) - i64::from(low) + 1;
        if entries > entries_max as i64 {
            return Err(Error::invalid(format!(
                "a table of {entries} entries, where at most {entries_max} are wanted"
            )));
        }
        let table = match known {
            Some(known) => {
                let keys = self.tables[known].keys();
                if (low, high) != (keys.low, keys.high) {
                    self.tables[known] = Table::of(low, high, f);
                }
                known
            }
            None => {
                self.tables.push(Table::of(low, high, f));
                self.functions.push(function.to_owned());
                self.tables.len() - 1
            }
        };
        self.push(Node::Lookup { input, shift, table: table as u32 })
    }

    /// The number of values of a tensor.
    ///
    /// # Panics
    /// When the tensor is not of this graph.
    pub fn width(&self, tensor: Tensor) -> usize {
        self.checker.shape(tensor.index()).0
    }

    /// The range that holds every value of a tensor, for every allowed input.
    ///
    /// # Panics
    /// When the tensor is not of this graph.
    pub fn range(&self, tensor: Tensor) -> Range {
        self.checker.shape(tensor.index()).1
    }

    /// Entries of all tables so far.
    pub fn entries(&self) -> usize {
        self.tables.iter().map(|table| table.values.len()).sum()
    }

    /// The finished graph, checked again as a whole.
    ///
    /// # Errors
    /// As [`Graph::new`].
    pub fn finish(self, output: Tensor, interface: Interface) -> Result<Graph, Error> {
        Graph::new(self.inputs, self.tables, self.nodes, output, interface)
    }
}
