//! What every graph promises: bounds, exact evaluation, one encoding.
#![allow(clippy::unwrap_used)]

use assay_graph::{Encoding, Graph, Interface, Node, Range, Table, Tensor, VALUE_MAX, Window, ZERO};
use proptest::prelude::*;

fn conv() -> (Window, Vec<i32>, Vec<i32>) {
    let window = Window {
        channels: 4,
        size: [5, 6],
        filters: 6,
        groups: 2,
        kernel: [3, 2],
        stride: [2, 1],
        dilation: [1, 2],
        pad: [1, 1],
        output: [3, 6],
    };
    let weights = (0..window.weights_len()).map(|i| (i as i32 * 37) % 23 - 11).collect();
    (window, weights, vec![1, -2, 3, -4, 5, -6])
}

fn small() -> Graph {
    let (window, weights, bias) = conv();
    let nodes = vec![
        Node::Conv { input: Tensor::INPUT, window, weights, bias },
        Node::Lookup { input: Tensor(1), shift: 3, table: 0 },
        Node::Gather { inputs: vec![Tensor(2), Tensor::INPUT], index: vec![0, ZERO, 107, 108, 227, 3] },
        Node::Sum { terms: vec![(Tensor(3), 2), (Tensor(3), -1)], bias: vec![0, 1, 2, 3, 4, 5] },
        Node::Linear {
            input: Tensor(4),
            rows: 2,
            weights: (0..12).map(|i| i - 6).collect(),
            bias: vec![7, -7],
        },
    ];
    let table = Table::clamp(-600, 600, 0, 15);
    Graph::new(vec![Range { low: -15, high: 15 }; 120], vec![table], nodes, Tensor(5), Interface::plain(2))
        .unwrap()
}

#[test]
fn a_convolution_is_what_its_definition_says() {
    let (w, weights, bias) = conv();
    let x: Vec<i32> = (0..120).map(|i| (i * 29) % 31 - 15).collect();
    let found = small().run(&x).unwrap();
    let mut expected = Vec::new();
    for f in 0..6i64 {
        for oy in 0..3i64 {
            for ox in 0..6i64 {
                let mut sum = i64::from(bias[f as usize]);
                for c in 0..2i64 {
                    for ky in 0..3i64 {
                        for kx in 0..2i64 {
                            let (y, x_) = (oy * 2 + ky - 1, ox + kx * 2 - 1);
                            if (0..5).contains(&y) && (0..6).contains(&x_) {
                                let channel = f / 3 * 2 + c;
                                let weight = weights[(((f * 2 + c) * 3 + ky) * 2 + kx) as usize];
                                sum +=
                                    i64::from(weight) * i64::from(x[((channel * 5 + y) * 6 + x_) as usize]);
                            }
                        }
                    }
                }
                expected.push(sum as i32);
            }
        }
    }
    assert_eq!(w.output_len(), expected.len());
    assert_eq!(found.tensor(Tensor(1)), expected);
    let relu: Vec<i32> = expected.iter().map(|x| ((x + 4) >> 3).clamp(0, 15)).collect();
    assert_eq!(found.tensor(Tensor(2)), relu);
    assert_eq!(found.tensor(Tensor(3)), [relu[0], 0, relu[107], x[0], x[119], relu[3]]);
}

fn product(a: u32, b: u32, groups: u32, [rows, columns, inner]: [u32; 3]) -> Node {
    Node::Product { inputs: [Tensor(a), Tensor(b)], groups, rows, columns, inner }
}

/// Two groups of 2x3 times 3x4, then squares, through a look-up.
fn multiplied() -> Graph {
    let nodes = vec![
        Node::Gather { inputs: vec![Tensor::INPUT], index: (0..12).collect() },
        Node::Gather { inputs: vec![Tensor::INPUT], index: (12..36).collect() },
        product(1, 2, 2, [2, 4, 3]),
        Node::Lookup { input: Tensor(3), shift: 2, table: 0 },
        product(4, 4, 16, [1, 1, 1]),
    ];
    let inputs = vec![Range { low: -9, high: 7 }; 36];
    let tables = vec![Table::clamp(-70, 70, -20, 30)];
    Graph::new(inputs, tables, nodes, Tensor(5), Interface::plain(16)).unwrap()
}

#[test]
fn a_product_is_what_its_definition_says() {
    let graph = multiplied();
    let x: Vec<i32> = (0..36).map(|i| (i * 29) % 17 - 9).collect();
    let found = graph.run(&x).unwrap();
    let (mut expected, mut squares) = (Vec::new(), Vec::new());
    for g in 0..2 {
        for m in 0..2 {
            for n in 0..4 {
                let y: i32 = (0..3).map(|k| x[(g * 2 + m) * 3 + k] * x[12 + (g * 4 + n) * 3 + k]).sum();
                expected.push(y);
                squares.push(((y + 2) >> 2).clamp(-20, 30).pow(2));
            }
        }
    }
    assert_eq!(found.tensor(Tensor(3)), expected);
    assert_eq!(found.output(), squares);
    // Magnitudes of 9 · 9 and of 7 · 9; no square is negative.
    assert_eq!(graph.range(Tensor(3)), Range { low: -3 * 63, high: 3 * 81 });
    assert_eq!(graph.range(Tensor(5)), Range { low: 0, high: 900 });
    assert_eq!(graph.operations(), 2 * 2 * 4 * 3 + 16);
    let bytes = graph.encode();
    assert_eq!(Graph::decode(&bytes).unwrap(), graph);
    for at in 0..bytes.len() {
        let mut other = bytes.clone();
        other[at] ^= 1;
        if let Ok(other) = Graph::decode(&other) {
            assert_eq!(other.encode()[at], bytes[at] ^ 1);
        }
    }
}

#[test]
fn products_that_break_a_promise_are_refused() {
    let build = |reach: i32, nodes: Vec<Node>| {
        let last = Tensor(nodes.len() as u32);
        let inputs = vec![Range { low: -reach, high: reach }; 12];
        Graph::new(inputs, vec![], nodes, last, Interface::plain(1)).unwrap_err().to_string()
    };
    for sizes in [[2, 2, 2], [3, 2, 2], [0, 2, 6], [12, 1, 0], [1 << 31, 1 << 31, 1 << 31]] {
        assert!(build(1, vec![product(0, 0, 2, sizes)]).contains("contradict"), "{sizes:?}");
    }
    assert!(build(1, vec![product(0, 0, 0, [3, 3, 2])]).contains("contradict"));
    assert!(build(1, vec![product(0, 1, 2, [3, 3, 2])]).contains("made later"));
    // 2 · 16384² is 2^29, which is allowed; one more is not, although the sum itself would fit.
    assert!(!build(1 << 14, vec![product(0, 0, 2, [3, 3, 2])]).contains("partial sum"));
    assert!(build((1 << 14) + 1, vec![product(0, 0, 2, [3, 3, 2])]).contains("partial sum"));
    // Products of products have no proof; wiring between them changes nothing.
    let gather = Node::Gather { inputs: vec![Tensor(1)], index: (0..12).collect() };
    let chain = vec![product(0, 0, 12, [1, 1, 1]), gather, product(0, 2, 12, [1, 1, 1])];
    assert!(build(1, chain).contains("without a look-up between"));
    assert!(
        build(1, vec![product(0, 0, 12, [1, 1, 1]), product(1, 0, 12, [1, 1, 1])])
            .contains("node 1 multiplies")
    );
}

#[test]
fn a_batch_is_its_examples() {
    let graph = small();
    let x: Vec<i32> = (0..360).map(|i| (i * 17) % 31 - 15).collect();
    let together = graph.run(&x).unwrap();
    for (one, all) in x.chunks(120).zip(together.output().chunks(2)) {
        assert_eq!(graph.run(one).unwrap().output(), all);
    }
}

#[test]
fn inputs_outside_are_refused() {
    let graph = small();
    assert!(graph.run(&[0; 119]).is_err());
    assert!(graph.run(&[]).is_err());
    let mut x = vec![0; 120];
    x[7] = 16;
    assert!(graph.run(&x).unwrap_err().to_string().contains("value 7 is 16, outside -15 to 15"));
}

/// Each graph is refused, with a reason that names the fault.
#[test]
fn graphs_that_break_a_promise_are_refused() {
    let inputs = || vec![Range { low: 0, high: 255 }; 2];
    let linear = |weights: Vec<i32>| Node::Linear { input: Tensor(0), rows: 1, weights, bias: vec![0] };
    let build = |tables, nodes, output: u32| {
        Graph::new(inputs(), tables, nodes, Tensor(output), Interface::plain(1)).unwrap_err().to_string()
    };
    let table = || vec![Table::clamp(-4, 4, 0, 4)];
    assert!(build(vec![], vec![linear(vec![1 << 21, 1 << 21])], 1).contains("partial sum"));
    // The sum would fit, a partial sum would not.
    assert!(build(vec![], vec![linear(vec![1 << 22, -(1 << 22)])], 1).contains("partial sum"));
    assert!(build(vec![], vec![linear(vec![1, 2, 3])], 1).contains("contradict"));
    assert!(build(vec![], vec![linear(vec![1, 1])], 2).contains("no tensor"));
    let lookup = |shift, table| Node::Lookup { input: Tensor(1), shift, table };
    assert!(build(table(), vec![linear(vec![1, 1]), lookup(0, 0)], 2).contains("can meet the keys 0 to 510"));
    assert!(build(table(), vec![linear(vec![1, 1]), lookup(17, 0)], 2).contains("contradict"));
    assert!(build(table(), vec![linear(vec![1, 1]), lookup(8, 1)], 2).contains("contradict"));
    assert!(build(vec![Table { low: 0, values: vec![] }], vec![linear(vec![1, 1])], 1).contains("empty"));
    // A key that is out of reach, but whose multiple of 2^shift wraps around in the field of a proof to one within.
    let wide = vec![Table { low: -(1 << 14), values: vec![0; (1 << 14) + (1 << 15)] }];
    assert!(build(wide, vec![linear(vec![1, 1]), lookup(16, 0)], 2).contains("too wide for the shift"));
    let early = Node::Lookup { input: Tensor(1), shift: 0, table: 0 };
    assert!(build(table(), vec![early], 1).contains("made later"));
    let gather = Node::Gather { inputs: vec![Tensor(0)], index: vec![2] };
    assert!(build(vec![], vec![gather], 1).contains("contradict"));
    assert!(Graph::new(vec![], vec![], vec![], Tensor(0), Interface::plain(0)).is_err());
    let far = vec![Range { low: 0, high: VALUE_MAX as i32 + 1 }];
    assert!(Graph::new(far, vec![], vec![], Tensor(0), Interface::plain(1)).is_err());
}

/// Its bytes are read as they are written, in no other length, and its id depends on every one.
fn has_one_encoding(graph: &Graph) {
    let bytes = graph.encode();
    let again = Graph::decode(&bytes).unwrap();
    assert_eq!((&again, again.encode()), (graph, bytes.clone()));
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(Graph::decode(&longer).is_err());
    for cut in 0..bytes.len() {
        assert!(Graph::decode(&bytes[..cut]).is_err());
    }
    for at in 0..bytes.len() {
        let mut other = bytes.clone();
        other[at] ^= 1;
        if let Ok(other) = Graph::decode(&other) {
            assert_ne!(other.id(), graph.id(), "byte {at}");
        }
    }
}

#[test]
fn an_encoding_is_canonical_and_its_id_depends_on_every_byte() {
    has_one_encoding(&small());
}

/// Inputs that are rows of a table of 5 rows, two an example.
fn rows() -> Graph {
    let values: Vec<i16> = vec![1, -2, 3, 4, 0, 0, -300, 7, 4, 0];
    let encoding = Encoding::Rows { len: 2, values };
    let nodes =
        vec![Node::Linear { input: Tensor::INPUT, rows: 1, weights: vec![1, 10, 100, 1000], bias: vec![5] }];
    let range = |low, high| Range { low, high };
    let inputs = vec![range(-300, 4), range(-2, 7), range(-300, 10), range(-2, 7)];
    Graph::new(inputs, vec![], nodes, Tensor(1), Interface { encoding, ..Interface::plain(1) }).unwrap()
}

#[test]
fn numbers_of_rows_become_rows() {
    let graph = rows();
    assert_eq!((graph.numbers(), graph.inputs().len()), (2, 4));
    let inputs = graph.encode_inputs(&[1.0, 3.0, 4.0, 4.0]).unwrap();
    assert_eq!(inputs, [3, 4, -300, 7, 4, 0, 4, 0]);
    assert_eq!(graph.row_numbers(&inputs), Some(vec![1, 3, 4, 4]));
    assert_eq!(graph.run(&inputs).unwrap().output(), [5 + 3 + 40 - 30000 + 7000, 5 + 4 + 400]);
    // What is no row, and what is no number of one.
    assert_eq!(graph.row_numbers(&[3, 4, -300, 6]), None);
    assert_eq!(graph.row_numbers(&[3]), None);
    assert_eq!(small().row_numbers(&[0; 120]), None);
    for wrong in [-1.0, 5.0, 0.5, 1e300] {
        let error = graph.encode_inputs(&[1.0, wrong]).unwrap_err().to_string();
        assert!(error.contains("value 1 is") && error.contains("0 to 4"), "{error}");
    }
    assert!(graph.encode_inputs(&[f64::NAN, 0.0]).is_err());
    assert!(graph.encode_inputs(&[1.0]).unwrap_err().to_string().contains("each example has 2"));
    assert!(graph.encode_inputs(&[1.0; 3]).is_err());
}

#[test]
fn a_table_of_rows_fits_the_inputs_and_has_one_encoding() {
    let graph = rows();
    has_one_encoding(&graph);
    let change = |len: u32, values: &[i16]| {
        let encoding = Encoding::Rows { len, values: values.to_vec() };
        let interface = Interface { encoding, ..Interface::plain(1) };
        Graph::new(graph.inputs().to_vec(), vec![], graph.nodes().to_vec(), graph.output(), interface)
    };
    assert!(change(4, &[1, 2, 3, 4]).is_ok());
    // A row that is cut off, no rows, rows of nothing, rows that the inputs are no multiple of, and values out of a range.
    for (len, values) in [
        (2, &[1, 2, 3][..]),
        (2, &[]),
        (0, &[]),
        (0, &[1]),
        (3, &[1, 2, 3]),
        (u32::MAX, &[1, 2]),
        (2, &[1, 2, 5, 4]),
        (2, &[1, -3]),
        (4, &[0, 0, 11, 0]),
    ] {
        assert!(change(len, values).unwrap_err().to_string().contains("interface"), "{len} {values:?}");
    }
}

#[test]
fn a_map_of_places_is_the_same_in_narrow_and_in_wide_numbers() {
    let (channels, filters, plane) = (7, 5, 6);
    for (x_max, w_max) in [(1000, 1000), (1 << 17, 100), (50, 1 << 18)] {
        let number = |i: i32, max: i32| (i * 7919 + 13) % (2 * max + 1) - max;
        let weights: Vec<i32> = (0..35).map(|i| number(i, w_max)).collect();
        let padded: Vec<i32> = weights.iter().flat_map(|weight| [*weight, 0]).collect();
        let bias: Vec<i32> = (0..5).map(|i| number(i, 1000)).collect();
        let window = Window::pointwise(channels, filters, [2, plane / 2]);
        let wide = Window { kernel: [1, 2], ..window };
        let inputs = vec![Range { low: -x_max, high: x_max }; (channels * plane) as usize];
        let x: Vec<i32> = (0..inputs.len() as i32).map(|i| number(i * i, x_max)).collect();
        let of = |window, weights| {
            let node = Node::Conv { input: Tensor::INPUT, window, weights, bias: bias.clone() };
            let graph =
                Graph::new(inputs.clone(), vec![], vec![node], Tensor(1), Interface::plain(30)).unwrap();
            (graph.run(&x).unwrap().output().to_vec(), graph.range(Tensor(1)))
        };
        assert_eq!(of(window, weights), of(wide, padded));
    }
}

proptest! {
    #[test]
    fn hostile_bytes_give_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300), good in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let _ = Graph::decode(&[&b"ASSAYGR1"[..], &bytes].concat());
        let mut bytes = [small, multiplied, rows][usize::from(byte) % 3]().encode();
        let at = good.index(bytes.len());
        bytes[at] = byte;
        if let Ok(graph) = Graph::decode(&bytes) {
            prop_assert_eq!(graph.encode(), bytes);
        }
    }

    /// The bounds hold: no input in range reaches a value outside what the check promised.
    #[test]
    fn values_stay_in_the_ranges_found(seed in prop::collection::vec(-15i32..=15, 120)) {
        let graph = small();
        let trace = graph.run(&seed).unwrap();
        for tensor in 0..=5 {
            let range = graph.range(Tensor(tensor));
            prop_assert!(trace.tensor(Tensor(tensor)).iter().all(|value| range.contains(*value)));
        }
    }
}

#[test]
fn a_graph_without_weights_keeps_its_shape_but_cannot_run() {
    let graph = small();
    let public = graph.without_weights().unwrap();
    let ranges_of = |graph: &Graph| match &graph.nodes()[0] {
        Node::Committed { ranges, .. } => ranges.clone(),
        _ => Vec::new(),
    };
    assert_eq!(ranges_of(&public), [(graph.width(Tensor(1)) as u32, graph.range(Tensor(1)))]);
    assert_eq!(public.range(public.output()), graph.range(graph.output()));
    assert!(public.encode().len() < graph.encode().len());
    assert_eq!(Graph::decode(&public.encode()).unwrap(), public);
    assert!(public.run(&[0; 120]).unwrap_err().to_string().contains("not here"));
    assert!(public.without_weights().is_err());
    // Ranges that contradict a table or themselves, weights that are there, and maps that are none.
    let change = |change: &dyn Fn(&mut Node)| {
        let mut nodes = public.nodes().to_vec();
        change(&mut nodes[0]);
        let (inputs, tables) = (public.inputs().to_vec(), public.tables().to_vec());
        assert!(Graph::new(inputs, tables, nodes, public.output(), Interface::plain(2)).is_err());
    };
    let width = graph.width(Tensor(1)) as u32;
    let set = |node: &mut Node, new: &[(u32, i32, i32)]| {
        if let Node::Committed { ranges, .. } = node {
            *ranges =
                new.iter().map(|(count, low, high)| (*count, Range { low: *low, high: *high })).collect();
        }
    };
    change(&|node| set(node, &[(width, -(1 << 20), 0)]));
    change(&|node| set(node, &[(width, 1, 0)]));
    change(&|node| set(node, &[(width, 0, i32::MAX)]));
    // Ranges for too few values and for too many, an empty run, and one run written as two.
    change(&|node| set(node, &[]));
    change(&|node| set(node, &[(width - 1, 0, 1)]));
    change(&|node| set(node, &[(width, 0, 1), (u32::MAX, 0, 2)]));
    change(&|node| set(node, &[(width, 0, 1), (0, 0, 2)]));
    change(&|node| set(node, &[(1, 0, 1), (width - 1, 0, 1)]));
    change(&|node| {
        if let Node::Committed { map, .. } = node
            && let Node::Conv { weights, .. } = &mut **map
        {
            weights.push(1);
        }
    });
    change(&|node| {
        if let Node::Committed { map, .. } = node
            && let Node::Conv { bias, window, .. } = &mut **map
        {
            bias.resize(window.filters as usize, 1);
        }
    });
    change(&|node| {
        let lookup = Node::Lookup { input: Tensor::INPUT, shift: 0, table: 0 };
        *node = Node::Committed { map: Box::new(lookup), ranges: vec![(width, Range { low: 0, high: 1 })] };
    });
}

/// One range for all rows would let the sum reach what its table does not have.
#[test]
fn a_graph_that_needs_a_range_for_each_value_keeps_them_without_weights() {
    let nodes = vec![
        Node::Linear { input: Tensor::INPUT, rows: 3, weights: vec![1, 1, 9], bias: vec![0; 3] },
        Node::Gather { inputs: vec![Tensor(1)], index: vec![2, 1, 0] },
        Node::Sum { terms: vec![(Tensor(1), 1), (Tensor(2), 1)], bias: vec![0; 3] },
        Node::Lookup { input: Tensor(3), shift: 0, table: 0 },
    ];
    let table = Table::clamp(-70, 70, 0, 7);
    let inputs = vec![Range { low: -7, high: 7 }];
    let graph = Graph::new(inputs, vec![table], nodes, Tensor(4), Interface::plain(3)).unwrap();
    let public = graph.without_weights().unwrap();
    let Node::Committed { ranges, .. } = &public.nodes()[0] else { panic!("the weights are not here") };
    let range = |reach: i32| Range { low: -reach, high: reach };
    assert_eq!(*ranges, [(2, range(7)), (1, range(63))]);
    assert_eq!(Graph::decode(&public.encode()).unwrap(), public);
}
