//! The canonical bytes of a graph: little-endian, every list after its length, nothing optional. A graph has exactly one
//! encoding, and `docs/proof.md` specifies it.

use sha3::{Digest as _, Keccak256};

use crate::node::volume;
use crate::{Encoding, Error, Graph, Interface, Node, Range, Table, Task, Tensor, Window, limits};

/// The first bytes: "assay graph" and the version of this format.
const MAGIC: &[u8; 8] = b"ASSAYGR1";

/// Where bytes go: into memory, or straight into a hash.
pub(crate) trait Sink {
    fn put(&mut self, bytes: &[u8]);
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

impl Sink for Keccak256 {
    fn put(&mut self, bytes: &[u8]) {
        self.update(bytes);
    }
}

/// Counts.
impl Sink for usize {
    fn put(&mut self, bytes: &[u8]) {
        *self += bytes.len();
    }
}

impl Graph {
    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut len = 0usize;
        self.write(&mut len);
        // Large graphs would be copied several times while the list grows.
        let mut out = Vec::with_capacity(len);
        self.write(&mut out);
        out
    }

    pub(crate) fn write(&self, w: &mut impl Sink) {
        w.put(MAGIC);
        let Interface { encoding, task, scale, offset, labels } = &self.interface;
        match encoding {
            Encoding::Affine { offset, scale } => {
                w.put(&[0]);
                put_f64s(w, offset);
                put_f64s(w, scale);
            }
            Encoding::Rank { thresholds } => {
                w.put(&[1]);
                put_u32(w, thresholds.len());
                for list in thresholds {
                    put_u32(w, list.len());
                    list.iter().for_each(|x| w.put(&x.to_le_bytes()));
                }
            }
            Encoding::Rows { len, values } => {
                w.put(&[2]);
                put_u32(w, *len as usize);
                put_u32(w, values.len());
                put_all(w, values, |value| value.to_le_bytes());
            }
        }
        w.put(&[match task {
            Task::Numbers => 0,
            Task::Classes => 1,
            Task::Binary => 2,
        }]);
        w.put(&scale.to_le_bytes());
        put_f64s(w, offset);
        put_u32(w, labels.len());
        for label in labels {
            put_u32(w, label.len());
            w.put(label.as_bytes());
        }
        put_u32(w, self.inputs.len());
        for range in &self.inputs {
            w.put(&range.low.to_le_bytes());
            w.put(&range.high.to_le_bytes());
        }
        put_u32(w, self.tables.len());
        for table in &self.tables {
            w.put(&table.low.to_le_bytes());
            put_i32s(w, &table.values);
        }
        put_u32(w, self.nodes.len());
        for node in &self.nodes {
            put_node(w, node);
        }
        put_u32(w, self.output.index());
    }

    /// Whether bytes begin as a graph of this version does.
    pub fn is_graph(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }

    /// Reads and checks a graph.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the bytes are not the canonical encoding of a valid graph.
    pub fn decode(bytes: &[u8]) -> Result<Graph, Error> {
        let Parts { inputs, tables, nodes, output, interface } = Parts::read(bytes)?;
        Graph::new(inputs, tables, nodes, output, interface)
    }

    /// What checking a graph, or a proof about it, costs, from a pass over its bytes: whoever charges for it knows before. No less than
    /// for a valid graph, which these bytes need not be.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the bytes cannot be read as a graph.
    pub fn work(bytes: &[u8]) -> Result<Work, Error> {
        let Parts { inputs, nodes, tables, .. } = Parts::read(bytes)?;
        let mut widths = vec![inputs.len() as u64];
        let mut operations = 0u64;
        // A proof has an entry for each key of a table, and for each remainder that a shift leaves.
        let mut entries: u64 = tables.iter().map(|table| table.values.len() as u64).sum();
        let mut shifts = std::collections::HashSet::new();
        for node in &nodes {
            let of = |tensor: &Tensor| widths.get(tensor.index()).copied().unwrap_or(0);
            operations = operations.saturating_add(node.operations());
            let map = match node {
                Node::Committed { map, .. } => {
                    // What it reads is found twice, combined, and folded at a point.
                    let read: u64 = map.operands().iter().map(of).sum();
                    operations = operations.saturating_add(read.saturating_mul(4));
                    if let Node::Conv { window, .. } = &**map {
                        let across = u64::from(window.channels) + u64::from(window.filters);
                        let area =
                            volume([window.kernel[0], window.kernel[1], window.output[0], window.output[1]]);
                        operations = operations.saturating_add(across.saturating_mul(area as u64));
                    }
                    &**map
                }
                node => node,
            };
            if let Node::Lookup { shift, .. } = map
                && shifts.insert(*shift)
            {
                entries = entries.saturating_add(1u64.checked_shl(*shift).unwrap_or(u64::MAX));
            }
            widths.push(match map {
                Node::Linear { rows, .. } => u64::from(*rows),
                Node::Conv { window, .. } => window.output_len() as u64,
                Node::Gather { index, .. } => index.len() as u64,
                Node::Sum { bias, .. } => bias.len() as u64,
                Node::Product { groups, rows, columns, .. } => volume([*groups, *rows, *columns, 1]) as u64,
                Node::Lookup { input, .. } => of(input),
                Node::Committed { .. } => 0,
            });
        }
        Ok(Work { operations, values: widths.into_iter().fold(entries, u64::saturating_add) })
    }
}

/// What a graph takes to check, see [`Graph::work`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Multiplications of one evaluation; for a map without its weights, those of a check.
    pub operations: u64,
    /// Values in all tensors, of one example, and entries of tables and of remainders.
    pub values: u64,
}

/// A graph that was not checked.
struct Parts {
    inputs: Vec<Range>,
    tables: Vec<Table>,
    nodes: Vec<Node>,
    output: Tensor,
    interface: Interface,
}

impl Parts {
    fn read(bytes: &[u8]) -> Result<Parts, Error> {
        if bytes.len() > limits::BYTES {
            return Err(Error::invalid("it is larger than any valid graph"));
        }
        let mut r = Reader { bytes };
        if r.take(MAGIC.len())? != MAGIC {
            return Err(Error::invalid("it does not begin as a graph of this version does"));
        }
        let encoding = match r.u8()? {
            0 => Encoding::Affine { offset: r.f64s()?, scale: r.f64s()? },
            1 => {
                let lists = r.len(4)?;
                let mut thresholds = Vec::with_capacity(lists);
                for _ in 0..lists {
                    let len = r.len(4)?;
                    let list = r.take(4 * len)?.chunks_exact(4);
                    thresholds.push(list.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect());
                }
                Encoding::Rank { thresholds }
            }
            2 => {
                let len = r.u32()?;
                let count = r.len(2)?;
                let values = r.take(2 * count)?.as_chunks::<2>().0.iter();
                Encoding::Rows { len, values: values.map(|bytes| i16::from_le_bytes(*bytes)).collect() }
            }
            _ => return Err(Error::invalid("it has an unknown encoding of inputs")),
        };
        let task = match r.u8()? {
            0 => Task::Numbers,
            1 => Task::Classes,
            2 => Task::Binary,
            _ => return Err(Error::invalid("it has an unknown task")),
        };
        let (scale, offset) = (f64::from_le_bytes(r.array()?), r.f64s()?);
        let count = r.len(4)?;
        let mut labels = Vec::with_capacity(count);
        for _ in 0..count {
            let len = r.len(1)?;
            let text =
                std::str::from_utf8(r.take(len)?).map_err(|_| Error::invalid("a label is not UTF-8"))?;
            labels.push(text.to_owned());
        }
        let count = r.len(8)?;
        let mut inputs = Vec::with_capacity(count);
        for _ in 0..count {
            inputs.push(Range { low: r.i32()?, high: r.i32()? });
        }
        let count = r.len(8)?;
        let mut tables = Vec::with_capacity(count);
        for _ in 0..count {
            tables.push(Table { low: r.i32()?, values: r.i32s()? });
        }
        let count = r.len(5)?;
        let mut nodes = Vec::with_capacity(count.min(limits::NODES));
        for _ in 0..count {
            nodes.push(r.node()?);
        }
        let output = Tensor(r.u32()?);
        if !r.bytes.is_empty() {
            return Err(Error::invalid("bytes follow its end"));
        }
        let interface = Interface { encoding, task, scale, offset, labels };
        Ok(Parts { inputs, tables, nodes, output, interface })
    }
}

fn put_u32(w: &mut impl Sink, value: usize) {
    // Every length of a checked graph is below its limit.
    w.put(&(value as u32).to_le_bytes());
}

fn put_i32s(w: &mut impl Sink, values: &[i32]) {
    put_u32(w, values.len());
    put_all(w, values, |value| value.to_le_bytes());
}

/// Values in pieces, each put at once.
fn put_all<T: Copy, const N: usize>(w: &mut impl Sink, values: &[T], bytes: impl Fn(T) -> [u8; N]) {
    const PIECE: usize = 1024;
    let mut buffer = [[0; N]; PIECE];
    for piece in values.chunks(PIECE) {
        buffer.iter_mut().zip(piece).for_each(|(out, value)| *out = bytes(*value));
        w.put(buffer[..piece.len()].as_flattened());
    }
}

fn put_f64s(w: &mut impl Sink, values: &[f64]) {
    put_u32(w, values.len());
    values.iter().for_each(|value| w.put(&value.to_le_bytes()));
}

fn put_node(w: &mut impl Sink, node: &Node) {
    match node {
        Node::Linear { input, rows, weights, bias } => {
            w.put(&[0]);
            put_u32(w, input.index());
            put_u32(w, *rows as usize);
            put_i32s(w, weights);
            put_i32s(w, bias);
        }
        Node::Conv { input, window, weights, bias } => {
            w.put(&[1]);
            put_u32(w, input.index());
            window_numbers(window).iter().for_each(|n| w.put(&n.to_le_bytes()));
            put_i32s(w, weights);
            put_i32s(w, bias);
        }
        Node::Gather { inputs, index } => {
            w.put(&[2]);
            put_u32(w, inputs.len());
            inputs.iter().for_each(|tensor| put_u32(w, tensor.index()));
            put_u32(w, index.len());
            put_all(w, index, |i| i.to_le_bytes());
        }
        Node::Sum { terms, bias } => {
            w.put(&[3]);
            put_u32(w, terms.len());
            for (tensor, coefficient) in terms {
                put_u32(w, tensor.index());
                w.put(&coefficient.to_le_bytes());
            }
            put_i32s(w, bias);
        }
        Node::Lookup { input, shift, table } => {
            w.put(&[4]);
            for n in [input.0, *shift, *table] {
                w.put(&n.to_le_bytes());
            }
        }
        Node::Product { inputs: [a, b], groups, rows, columns, inner } => {
            w.put(&[6]);
            for n in [a.0, b.0, *groups, *rows, *columns, *inner] {
                w.put(&n.to_le_bytes());
            }
        }
        Node::Committed { map, ranges } => {
            w.put(&[5]);
            put_u32(w, ranges.len());
            for (count, range) in ranges {
                w.put(&count.to_le_bytes());
                w.put(&range.low.to_le_bytes());
                w.put(&range.high.to_le_bytes());
            }
            put_node(w, map);
        }
    }
}

fn window_numbers(w: &Window) -> [u32; 15] {
    let [s, k, t, d, p, o] = [w.size, w.kernel, w.stride, w.dilation, w.pad, w.output];
    [w.channels, s[0], s[1], w.filters, w.groups, k[0], k[1], t[0], t[1], d[0], d[1], p[0], p[1], o[0], o[1]]
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let (head, rest) =
            self.bytes.split_at_checked(count).ok_or_else(|| Error::invalid("it ends too early"))?;
        self.bytes = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u8(&mut self) -> Result<u8, Error> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn i32(&mut self) -> Result<i32, Error> {
        Ok(i32::from_le_bytes(self.array()?))
    }

    /// A length of items of at least `size` bytes each, which the rest can hold: what bounds memory by the input's size.
    fn len(&mut self, size: usize) -> Result<usize, Error> {
        let len = self.u32()? as usize;
        if len > self.bytes.len() / size {
            return Err(Error::invalid("a list is longer than what follows"));
        }
        Ok(len)
    }

    fn i32s(&mut self) -> Result<Vec<i32>, Error> {
        let len = self.len(4)?;
        Ok(self.take(4 * len)?.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect())
    }

    fn f64s(&mut self) -> Result<Vec<f64>, Error> {
        let len = self.len(8)?;
        (0..len).map(|_| Ok(f64::from_le_bytes(self.array()?))).collect()
    }

    fn node(&mut self) -> Result<Node, Error> {
        match self.u8()? {
            5 => {
                let count = self.len(12)?;
                let ranges = (0..count)
                    .map(|_| Ok((self.u32()?, Range { low: self.i32()?, high: self.i32()? })))
                    .collect::<Result<_, Error>>()?;
                let kind = self.u8()?;
                Ok(Node::Committed { map: Box::new(self.plain_node(kind)?), ranges })
            }
            kind => self.plain_node(kind),
        }
    }

    fn plain_node(&mut self, kind: u8) -> Result<Node, Error> {
        Ok(match kind {
            0 => Node::Linear {
                input: Tensor(self.u32()?),
                rows: self.u32()?,
                weights: self.i32s()?,
                bias: self.i32s()?,
            },
            1 => {
                let input = Tensor(self.u32()?);
                let mut n = [0; 15];
                for n in &mut n {
                    *n = self.u32()?;
                }
                let window = Window {
                    channels: n[0],
                    size: [n[1], n[2]],
                    filters: n[3],
                    groups: n[4],
                    kernel: [n[5], n[6]],
                    stride: [n[7], n[8]],
                    dilation: [n[9], n[10]],
                    pad: [n[11], n[12]],
                    output: [n[13], n[14]],
                };
                Node::Conv { input, window, weights: self.i32s()?, bias: self.i32s()? }
            }
            2 => {
                let count = self.len(4)?;
                let inputs = (0..count).map(|_| Ok(Tensor(self.u32()?))).collect::<Result<_, Error>>()?;
                let count = self.len(4)?;
                let index =
                    self.take(4 * count)?.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
                let index = index.collect();
                Node::Gather { inputs, index }
            }
            3 => {
                let count = self.len(8)?;
                let terms = (0..count)
                    .map(|_| Ok((Tensor(self.u32()?), self.i32()?)))
                    .collect::<Result<_, Error>>()?;
                Node::Sum { terms, bias: self.i32s()? }
            }
            6 => Node::Product {
                inputs: [Tensor(self.u32()?), Tensor(self.u32()?)],
                groups: self.u32()?,
                rows: self.u32()?,
                columns: self.u32()?,
                inner: self.u32()?,
            },
            4 => Node::Lookup { input: Tensor(self.u32()?), shift: self.u32()?, table: self.u32()? },
            _ => return Err(Error::invalid("it has an unknown kind of node")),
        })
    }
}
