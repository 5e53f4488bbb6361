//! Leaving out what the outputs do not depend on: a model of text that scores the last place only needs little of its last layer.

use assay_graph::ZERO;

use crate::real::{Id, Network, Op};

/// Which values of a tensor are kept.
pub(crate) type Kept = Vec<bool>;

/// The network without the values that nothing reads, and for each of its values which one it was and what of it is kept; `None` when
/// all of them are. Maps keep whole rows, products what all their groups keep.
pub(crate) fn only_needed(network: Network) -> (Network, Option<Vec<(Id, Kept)>>) {
    let Network { ops, widths, output } = network;
    let mut kept: Vec<Kept> = widths.iter().map(|width| vec![false; *width]).collect();
    kept[0].fill(true);
    kept[output].fill(true);
    for id in (1..ops.len()).rev() {
        if !kept[id].contains(&true) {
            continue;
        }
        let mut own = std::mem::take(&mut kept[id]);
        round_up(&ops[id], &mut own);
        for (operand, needed) in needs(&ops[id], &own, &widths) {
            kept[operand].iter_mut().zip(needed).for_each(|(kept, needed)| *kept |= needed);
        }
        kept[id] = own;
    }
    if kept.iter().all(|kept| kept.iter().all(|kept| *kept) || !kept.contains(&true)) {
        return (Network { ops, widths, output }, None);
    }
    let mut origins = Vec::new();
    let mut new = Network { ops: Vec::new(), widths: Vec::new(), output: 0 };
    let mut ids = vec![None; ops.len()];
    for (id, op) in ops.into_iter().enumerate() {
        if !kept[id].contains(&true) {
            continue;
        }
        // What another reader needs, but this one does not, is left out by wiring.
        let mut operands = Vec::new();
        if !matches!(op, Op::Gather { .. }) {
            for (operand, needed) in needs(&op, &kept[id], &widths) {
                let from = ids[operand].unwrap_or(0);
                operands.push(if needed == kept[operand] {
                    from
                } else {
                    let (places, _) = places(&kept[operand]);
                    let index = needed.iter().zip(&places).filter(|(needed, _)| **needed);
                    let index: Vec<u32> = index.map(|(_, place)| *place).collect();
                    new.widths.push(index.len());
                    new.ops.push(Op::Gather { inputs: vec![from], index });
                    origins.push((operand, needed));
                    new.ops.len() - 1
                });
            }
        }
        let op = reduced(op, &kept, id, &operands, &ids);
        new.widths.push(kept[id].iter().filter(|kept| **kept).count());
        new.ops.push(op);
        origins.push((id, kept[id].clone()));
        ids[id] = Some(new.ops.len() - 1);
    }
    new.output = ids[output].unwrap_or(0);
    (new, Some(origins))
}

/// Where the values that are kept lie then, and how many there are.
fn places(kept: &Kept) -> (Vec<u32>, u32) {
    let mut count = 0;
    let place = |kept: &bool| {
        count += u32::from(*kept);
        count.saturating_sub(1)
    };
    let places = kept.iter().map(place).collect();
    (places, count)
}

/// Keeps whole runs of this length.
fn whole(own: &mut Kept, len: usize) {
    own.chunks_exact_mut(len).filter(|run| run.contains(&true)).for_each(|run| run.fill(true));
}

/// The rows and the columns of a product that some group keeps.
fn sides(own: &Kept, rows: usize, columns: usize) -> (Kept, Kept) {
    let (mut kept_rows, mut kept_columns) = (vec![false; rows], vec![false; columns]);
    for (at, _) in own.iter().enumerate().filter(|(_, kept)| **kept) {
        kept_rows[at / columns % rows] = true;
        kept_columns[at % columns] = true;
    }
    (kept_rows, kept_columns)
}

/// Keeps what an operation can only make together.
fn round_up(op: &Op, own: &mut Kept) {
    match op {
        Op::Affine { bias, .. } => whole(own, bias.len()),
        Op::Normalise { len, .. } | Op::Softmax { len, .. } => whole(own, *len),
        Op::Product { rows, columns, .. } => {
            let (kept_rows, kept_columns) = sides(own, *rows, *columns);
            let place = |at: usize| kept_rows[at / columns % rows] && kept_columns[at % columns];
            own.iter_mut().enumerate().for_each(|(at, kept)| *kept = place(at));
        }
        Op::Conv { .. } | Op::MaxPool { .. } | Op::Embed { .. } => own.fill(true),
        Op::Input | Op::Scale { .. } | Op::Map { .. } | Op::Gather { .. } | Op::Add { .. } => {}
    }
}

/// For each operand of an operation of which this is kept, what of it is read.
fn needs(op: &Op, own: &Kept, widths: &[usize]) -> Vec<(Id, Kept)> {
    match op {
        Op::Input => Vec::new(),
        Op::Affine { x, weights, bias, .. } => {
            let columns = weights.len() / bias.len();
            let tokens = own.iter().step_by(bias.len());
            vec![(*x, tokens.flat_map(|kept| std::iter::repeat_n(*kept, columns)).collect())]
        }
        Op::Conv { x, .. } | Op::MaxPool { x, .. } | Op::Embed { x, .. } => {
            vec![(*x, vec![true; widths[*x]])]
        }
        Op::Scale { x, .. } | Op::Map { x, .. } | Op::Normalise { x, .. } | Op::Softmax { x, .. } => {
            vec![(*x, own.clone())]
        }
        Op::Add { terms } => terms.iter().map(|(x, _)| (*x, own.clone())).collect(),
        Op::Gather { inputs, index } => {
            let mut all = vec![false; inputs.iter().map(|x| widths[*x]).sum()];
            index.iter().zip(own).filter(|(at, kept)| **kept && **at != ZERO).for_each(|(at, _)| {
                all[*at as usize] = true;
            });
            // Padding alone: wiring still has an operand.
            if !all.contains(&true) && own.contains(&true) {
                all.iter_mut().take(1).for_each(|kept| *kept = true);
            }
            let mut rest = all.as_slice();
            let mut part = |x: &Id| {
                let (part, after) = rest.split_at(widths[*x]);
                rest = after;
                (*x, part.to_vec())
            };
            inputs.iter().map(&mut part).collect()
        }
        Op::Product { inputs: [a, b], groups, rows, columns, inner } => {
            let (kept_rows, kept_columns) = sides(own, *rows, *columns);
            let side = |kept: Kept| -> Kept {
                let row = kept.iter().flat_map(|kept| std::iter::repeat_n(*kept, *inner));
                row.collect::<Kept>().repeat(*groups)
            };
            vec![(*a, side(kept_rows)), (*b, side(kept_columns))]
        }
    }
}

/// An operation that makes only what is kept. The operands hold what it reads; those of wiring, which may hold more, are in `ids`.
fn reduced(op: Op, kept: &[Kept], id: Id, operands: &[Id], ids: &[Option<Id>]) -> Op {
    let own = &kept[id];
    fn chosen<T>(list: Vec<T>, own: &Kept) -> Vec<T> {
        list.into_iter().zip(own).filter(|(_, kept)| **kept).map(|(x, _)| x).collect()
    }
    match op {
        Op::Input => Op::Input,
        Op::Affine { weights, bias, .. } => {
            let tokens = own.iter().step_by(bias.len()).filter(|kept| **kept).count();
            Op::Affine { x: operands[0], tokens, weights, bias }
        }
        Op::Conv { window, weights, bias, .. } => Op::Conv { x: operands[0], window, weights, bias },
        Op::Scale { scale, offset, .. } => {
            Op::Scale { x: operands[0], scale: chosen(scale, own), offset: chosen(offset, own) }
        }
        Op::Map { function, .. } => Op::Map { x: operands[0], function },
        Op::Gather { inputs, index } => {
            // Operands that nothing is read of are gone, and so are the places before those of others.
            let mut first = 0;
            let (mut new_inputs, mut new_places) = (Vec::new(), Vec::new());
            for input in inputs {
                let (mut list, count) = places(&kept[input]);
                list.iter_mut().for_each(|place| *place += first);
                new_places.extend(list);
                if let Some(new) = ids[input] {
                    new_inputs.push(new);
                    first += count;
                }
            }
            let place = |at: u32| if at == ZERO { ZERO } else { new_places[at as usize] };
            Op::Gather { inputs: new_inputs, index: chosen(index, own).into_iter().map(place).collect() }
        }
        Op::Add { terms } => {
            Op::Add { terms: operands.iter().zip(terms).map(|(x, (_, factor))| (*x, factor)).collect() }
        }
        Op::Product { groups, rows, columns, inner, .. } => {
            let (kept_rows, kept_columns) = sides(own, rows, columns);
            let [rows, columns] =
                [kept_rows, kept_columns].map(|side| side.iter().filter(|kept| **kept).count());
            Op::Product { inputs: [operands[0], operands[1]], groups, rows, columns, inner }
        }
        Op::Normalise { len, epsilon, .. } => Op::Normalise { x: operands[0], len, epsilon },
        Op::Softmax { len, masked, .. } => Op::Softmax { x: operands[0], len, masked: chosen(masked, own) },
        Op::Embed { table, len, .. } => Op::Embed { x: operands[0], table, len },
        Op::MaxPool { window, .. } => Op::MaxPool { x: operands[0], window },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::real::run;

    /// Attention of one head over four places, of which the last is read.
    fn network() -> Network {
        let (tokens, width) = (4, 3);
        let number = |i: usize| ((i * 7 + 3) % 11) as f64 / 5.0 - 1.0;
        let numbers = |count: usize, from: usize| (0..count).map(|i| number(i + from)).collect::<Vec<_>>();
        let affine = |x: Id, from: usize| Op::Affine {
            x,
            tokens,
            weights: numbers(9, from),
            bias: numbers(width, from + 20),
        };
        let turned = (0..12u32).map(|i| i % 4 * 3 + i / 4).collect();
        let masked = (0..16).map(|i| i % 4 > i / 4).collect();
        let ops = vec![
            Op::Input,
            affine(0, 1),
            Op::Normalise { x: 1, len: 3, epsilon: 1e-5 },
            Op::Scale { x: 2, scale: numbers(12, 5), offset: numbers(12, 6) },
            affine(3, 2),
            affine(3, 3),
            Op::Product { inputs: [4, 3], groups: 1, rows: 4, columns: 4, inner: 3 },
            Op::Softmax { x: 6, len: 4, masked },
            Op::Gather { inputs: vec![5], index: turned },
            Op::Product { inputs: [7, 8], groups: 1, rows: 4, columns: 3, inner: 4 },
            Op::Add { terms: vec![(1, 1.0), (9, 0.5)] },
            Op::Map { x: 10, function: crate::real::Function::Gelu },
            // Nothing reads this.
            affine(11, 4),
            Op::Gather { inputs: vec![11, 12, 3], index: vec![9, ZERO, 10, 11, 35] },
        ];
        let widths = vec![12, 12, 12, 12, 12, 12, 16, 16, 12, 12, 12, 12, 12, 5];
        Network { ops, widths, output: 13 }
    }

    #[test]
    fn what_is_left_gives_the_same_outputs() {
        let samples: Vec<f64> = (0..24).map(|i| f64::from(i * i % 17) / 4.0 - 2.0).collect();
        let whole = network();
        let (reduced, origins) = only_needed(network());
        let origins = origins.unwrap();
        let values = run(&whole, &samples);
        assert_eq!(values.output(&whole), run(&reduced, &samples).output(&reduced));
        // What was known about the whole is known about what is left.
        let (low, high) = values.range(2);
        let values = values.kept(&whole.widths, &origins);
        let again = run(&reduced, &samples);
        (0..reduced.ops.len()).for_each(|id| assert_eq!(values.of(id), again.of(id), "{id}"));
        assert!(origins.iter().zip(0..).all(|((of, _), id)| *of != 2 || values.range(id) == (low, high)));
        assert!(reduced.values() < whole.values() * 3 / 4, "{} of {}", reduced.values(), whole.values());
        // The query of one place, the keys of all.
        let product = |op: &Op| matches!(op, Op::Product { rows: 1, columns: 4, .. });
        assert!(reduced.ops.iter().any(product));
    }

    #[test]
    fn a_network_whose_values_are_all_read_stays_as_it_is() {
        let mut network = network();
        (network.output, network.ops[13]) = (13, Op::Gather { inputs: vec![11], index: (0..12).collect() });
        network.widths[13] = 12;
        let before = format!("{network:?}");
        let (after, origins) = only_needed(network);
        assert_eq!((format!("{after:?}"), origins), (before, None));
    }
}
