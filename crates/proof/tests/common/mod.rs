//! Small graphs with every kind of node, and inputs for them.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub)]

use assay_graph::{Graph, Interface, Node, Range, Table, Tensor, Window, ZERO};

/// Deterministic numbers.
pub fn numbers(seed: u64) -> impl FnMut(i32, i32) -> i32 {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    move |low, high| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        low + ((state >> 33) % (i64::from(high) - i64::from(low) + 1) as u64) as i32
    }
}

/// What `work` gives on a single thread: several would take whichever proof of work one of them finds first.
pub fn single_threaded<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(work)
}

/// Inputs in range for a batch.
pub fn inputs(graph: &Graph, batch: usize, seed: u64) -> Vec<i32> {
    let mut next = numbers(seed);
    (0..batch).flat_map(|_| graph.inputs().iter().map(|r| next(r.low, r.high)).collect::<Vec<_>>()).collect()
}

/// A perceptron 6-5-4-3 with two shifts and two tables.
pub fn perceptron() -> Graph {
    let mut next = numbers(7);
    let mut linear = |input: u32, rows: u32, columns: u32| Node::Linear {
        input: Tensor(input),
        rows,
        weights: (0..rows * columns).map(|_| next(-20, 20)).collect(),
        bias: (0..rows).map(|_| next(-99, 99)).collect(),
    };
    let nodes = vec![
        linear(0, 5, 6),
        Node::Lookup { input: Tensor(1), shift: 4, table: 0 },
        linear(2, 4, 5),
        Node::Lookup { input: Tensor(3), shift: 6, table: 1 },
        linear(4, 3, 4),
    ];
    let tables = vec![Table::clamp(-150, 150, 0, 63), Table::of(-120, 120, |x| (x * x) / 9 - 7)];
    Graph::new(vec![Range { low: -15, high: 15 }; 6], tables, nodes, Tensor(5), Interface::plain(3)).unwrap()
}

/// Convolution, rounding, pooling by pairs, wiring with zeros, a sum, a matrix.
pub fn convolution() -> Graph {
    let window = Window {
        channels: 2,
        size: [6, 6],
        filters: 3,
        groups: 1,
        kernel: [3, 3],
        stride: [1, 1],
        dilation: [1, 1],
        pad: [1, 1],
        output: [6, 6],
    };
    let mut next = numbers(9);
    let pick = |dy: usize, dx: usize| {
        let at = move |i: usize| (i / 9 * 36 + i % 9 / 3 * 12 + dy * 6 + i % 3 * 2 + dx) as u32;
        Node::Gather { inputs: vec![Tensor(2)], index: (0..27).map(at).collect() }
    };
    let sum =
        |a: u32, b: u32, c: i32| Node::Sum { terms: vec![(Tensor(a), 1), (Tensor(b), c)], bias: vec![0; 27] };
    let nodes = vec![
        Node::Conv {
            input: Tensor::INPUT,
            window,
            weights: (0..window.weights_len()).map(|_| next(-9, 9)).collect(),
            bias: vec![5, -5, 0],
        },
        Node::Lookup { input: Tensor(1), shift: 3, table: 0 },
        pick(0, 0),
        pick(1, 1),
        // max(a, b) = a + relu(b - a)
        sum(4, 3, -1),
        Node::Lookup { input: Tensor(5), shift: 0, table: 1 },
        sum(3, 6, 1),
        Node::Gather {
            inputs: vec![Tensor(7), Tensor::INPUT],
            index: (0..30).map(|i| if i % 5 == 0 { ZERO } else { i }).collect(),
        },
        Node::Linear {
            input: Tensor(8),
            rows: 4,
            weights: (0..120).map(|_| next(-9, 9)).collect(),
            bias: vec![1, 2, 3, 4],
        },
    ];
    let tables = vec![Table::clamp(-320, 320, 0, 31), Table::clamp(-31, 31, 0, 31)];
    Graph::new(vec![Range { low: -15, high: 15 }; 72], tables, nodes, Tensor(9), Interface::plain(4)).unwrap()
}

/// A head of attention over three tokens of five values, with reciprocals and squares: products of every shape.
pub fn attention() -> Graph {
    let window = Window::pointwise(5, 15, [1, 3]);
    let mut next = numbers(21);
    let product = |a: u32, b: u32, groups: u32, [rows, columns, inner]: [u32; 3]| Node::Product {
        inputs: [Tensor(a), Tensor(b)],
        groups,
        rows,
        columns,
        inner,
    };
    let lookup = |input: u32, shift: u32, table: u32| Node::Lookup { input: Tensor(input), shift, table };
    let by_token = |first: u32| (0..15).map(|i| first + i % 5 * 3 + i / 5).collect::<Vec<_>>();
    let wire = |inputs: Vec<u32>, index: Vec<u32>| Node::Gather {
        inputs: inputs.into_iter().map(Tensor).collect(),
        index,
    };
    let nodes = vec![
        Node::Conv {
            input: Tensor::INPUT,
            window,
            weights: (0..75).map(|_| next(-9, 9)).collect(),
            bias: (0..15).map(|_| next(-99, 99)).collect(),
        },
        lookup(1, 4, 0),
        wire(vec![2], by_token(0)),
        wire(vec![2], by_token(15)),
        wire(vec![2], (30..45).collect()),
        product(3, 4, 1, [3, 3, 5]),
        lookup(6, 6, 1),
        product(7, 5, 1, [3, 5, 3]),
        lookup(8, 3, 0),
        // The sums of the rows of 7, by which those of 9 are divided.
        Node::Linear {
            input: Tensor(7),
            rows: 3,
            weights: (0..27).map(|i| i32::from(i / 9 == i % 9 / 3)).collect(),
            bias: vec![0; 3],
        },
        lookup(10, 2, 2),
        product(9, 11, 3, [5, 1, 1]),
        lookup(12, 4, 0),
        product(13, 13, 3, [1, 1, 5]),
        // Results of products that are added, and one that is read without a look-up.
        Node::Sum { terms: vec![(Tensor(14), 3), (Tensor(10), -1)], bias: vec![7; 3] },
        wire(vec![15, 0, 14], vec![0, ZERO, 2, 7, 19]),
    ];
    let tables = vec![
        Table::clamp(-800, 800, -30, 31),
        Table::of(-80, 80, |x| 40 + x / 3),
        Table::of(0, 64, |x| 100 / (x + 1)),
    ];
    let inputs = vec![Range { low: -15, high: 15 }; 15];
    Graph::new(inputs, tables, nodes, Tensor(16), Interface::plain(5)).unwrap()
}
