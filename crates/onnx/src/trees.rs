//! Tree ensembles. Their comparisons are exact in integers: an input becomes its rank among the thresholds that it meets.

use std::collections::BTreeMap;

use assay_graph::{Builder, Encoding, Graph, Interface, Node, Range, Tensor};

use crate::Error;
use crate::lower::Lowered;
use crate::proto::NodeProto;

/// A node of a tree.
#[derive(Clone, Debug)]
enum TreeNode {
    /// Goes to the first child when `x[feature] <= threshold`.
    Branch { feature: usize, threshold: f32, children: [usize; 2] },
    /// What it adds to each output.
    Leaf(Vec<(usize, f64)>),
}

/// An ensemble whose outputs are sums over its trees.
#[derive(Clone, Debug)]
pub(crate) struct Forest {
    inputs: usize,
    pub(crate) outputs: usize,
    nodes: Vec<TreeNode>,
    roots: Vec<usize>,
    /// Where the sums start.
    base: Vec<f64>,
}

/// The most nodes of all trees together.
const NODES_MAX: usize = 1 << 20;
/// The deepest tree.
const DEPTH_MAX: usize = 64;

impl Forest {
    /// Reads a TreeEnsembleClassifier or TreeEnsembleRegressor of ai.onnx.ml 1 to 3.
    pub(crate) fn read(node: &NodeProto, inputs: usize) -> Result<Forest, String> {
        let classifier = node.operator.ends_with("Classifier");
        let ints = |name: &str| node.attribute(name).map_or(&[][..], |attribute| &attribute.ints);
        let floats = |name: &str| node.attribute(name).map_or(&[][..], |attribute| &attribute.floats);
        let strings = |name: &str| node.attribute(name).map_or(&[][..], |attribute| &attribute.strings);
        let double = |name: &str| node.attribute(name).and_then(|attribute| attribute.tensor.as_ref());
        if double("nodes_values_as_tensor").is_some() {
            return Err("thresholds in double precision are not supported".into());
        }
        let (trees, ids, modes) = (ints("nodes_treeids"), ints("nodes_nodeids"), strings("nodes_modes"));
        let (features, values) = (ints("nodes_featureids"), floats("nodes_values"));
        let children = [ints("nodes_truenodeids"), ints("nodes_falsenodeids")];
        let count = ids.len();
        let lists =
            [trees.len(), modes.len(), features.len(), values.len(), children[0].len(), children[1].len()];
        if count == 0 || count > NODES_MAX || lists.iter().any(|len| *len != count) {
            return Err("its lists of nodes differ in length, or are empty or too long".into());
        }
        if ints("nodes_missing_value_tracks_true").iter().any(|tracks| *tracks != 0) {
            return Err("missing values are not supported".into());
        }
        let place: BTreeMap<(i64, i64), usize> =
            trees.iter().copied().zip(ids.iter().copied()).zip(0..).collect();
        if place.len() != count {
            return Err("a node is there twice".into());
        }
        let mut nodes = Vec::with_capacity(count);
        let mut is_child = vec![false; count];
        for at in 0..count {
            let threshold = values[at] as f32;
            let threshold = match modes[at].as_str() {
                "LEAF" => {
                    nodes.push(TreeNode::Leaf(Vec::new()));
                    continue;
                }
                "BRANCH_LEQ" => threshold,
                // x < t is x <= the number before t.
                "BRANCH_LT" => threshold.next_down(),
                mode => return Err(format!("the comparison {mode} is not supported")),
            };
            let feature = usize::try_from(features[at]).ok().filter(|feature| *feature < inputs);
            let child = |side: usize| place.get(&(trees[at], children[side][at])).copied();
            let (Some(feature), Some(yes), Some(no)) = (feature, child(0), child(1)) else {
                return Err("a branch names a feature or a node that is not there".into());
            };
            if is_child[yes] || is_child[no] || yes == no || !threshold.is_finite() {
                return Err("a node has two parents, or a threshold is not finite".into());
            }
            (is_child[yes], is_child[no]) = (true, true);
            nodes.push(TreeNode::Branch { feature, threshold, children: [yes, no] });
        }
        let (prefix, targets) = if classifier { ("class", "class_ids") } else { ("target", "target_ids") };
        let list = |name: &str| ints(&format!("{prefix}_{name}"));
        let (leaf_trees, leaf_ids, leaf_targets) = (list("treeids"), list("nodeids"), ints(targets));
        let weights = floats(&format!("{prefix}_weights"));
        if [leaf_trees.len(), leaf_ids.len(), leaf_targets.len()].iter().any(|len| *len != weights.len()) {
            return Err("its lists of leaves differ in length".into());
        }
        let labels = ints("classlabels_int64s").len().max(strings("classlabels_strings").len());
        let targets =
            if classifier { labels as i64 } else { node.attribute("n_targets").map_or(1, |a| a.int) };
        if !(1..=4096).contains(&targets) {
            return Err("its number of outputs is not supported".into());
        }
        // Two classes with one score: the score is of the second.
        let binary =
            classifier && labels == 2 && leaf_targets.iter().all(|target| *target == leaf_targets[0]);
        let outputs = if binary { 1 } else { targets as usize };
        for at in 0..weights.len() {
            let target = usize::try_from(leaf_targets[at]).ok().filter(|target| *target < targets as usize);
            let Some(TreeNode::Leaf(values)) =
                place.get(&(leaf_trees[at], leaf_ids[at])).and_then(|place| nodes.get_mut(*place))
            else {
                return Err("a weight is not of a leaf".into());
            };
            let Some(target) = target else { return Err("a weight is of no output".into()) };
            values.push((if binary { 0 } else { target }, weights[at]));
        }
        let roots: Vec<usize> = (0..count).filter(|at| !is_child[*at]).collect();
        let mut base = floats("base_values").to_vec();
        if base.is_empty() {
            base = vec![0.0; outputs];
        } else if base.len() != outputs {
            return Err("its base values do not fit its outputs".into());
        }
        let transform = node.attribute("post_transform").map_or("NONE", |a| &a.string);
        match (classifier, transform) {
            (_, "NONE" | "") | (true, "LOGISTIC" | "SOFTMAX" | "SOFTMAX_ZERO") => {}
            _ => return Err(format!("the transform {transform} is not supported")),
        }
        if binary && transform != "LOGISTIC" {
            // A probability: the second class wins from a half on.
            base[0] -= 0.5;
        }
        match node.attribute("aggregate_function").map_or("SUM", |a| &a.string) {
            "SUM" | "" => {}
            "AVERAGE" => {
                let share = 1.0 / roots.len().max(1) as f64;
                for node in &mut nodes {
                    if let TreeNode::Leaf(values) = node {
                        values.iter_mut().for_each(|(_, value)| *value *= share);
                    }
                }
            }
            function => return Err(format!("the aggregate {function} is not supported")),
        }
        let forest = Forest { inputs, outputs, nodes, roots, base };
        // Every node has one parent at most, so what cannot be reached from a root lies on a ring.
        if forest.levels()?.iter().map(Vec::len).sum::<usize>() != count {
            return Err("its branches form a ring".into());
        }
        Ok(forest)
    }

    /// The nodes by depth.
    fn levels(&self) -> Result<Vec<Vec<usize>>, String> {
        let mut levels = vec![self.roots.clone()];
        while let Some(level) = levels.last()
            && !level.is_empty()
        {
            if levels.len() > DEPTH_MAX {
                return Err("a tree is too deep".into());
            }
            let children = |at: &usize| match &self.nodes[*at] {
                TreeNode::Branch { children, .. } => children.to_vec(),
                TreeNode::Leaf(_) => Vec::new(),
            };
            levels.push(level.iter().flat_map(children).collect());
        }
        levels.pop();
        Ok(levels)
    }

    /// The outputs of one example.
    pub(crate) fn run(&self, x: &[f64]) -> Vec<f64> {
        let mut out = self.base.clone();
        for root in &self.roots {
            let mut at = *root;
            loop {
                match &self.nodes[at] {
                    TreeNode::Branch { feature, threshold, children } => {
                        at = children[usize::from(x[*feature] as f32 > *threshold)];
                    }
                    TreeNode::Leaf(values) => {
                        values.iter().for_each(|(target, value)| out[*target] += value);
                        break;
                    }
                }
            }
        }
        out
    }
}

/// The integer graph of a forest: which branches are true, which nodes are reached, what the reached leaves add.
///
/// # Errors
/// [`Error::Quantise`].
pub(crate) fn quantise(model: &Lowered, forest: &Forest) -> Result<Graph, Error> {
    let branches: Vec<(usize, usize, f32, [usize; 2])> = forest
        .nodes
        .iter()
        .enumerate()
        .filter_map(|(at, node)| match node {
            TreeNode::Branch { feature, threshold, children } => Some((at, *feature, *threshold, *children)),
            TreeNode::Leaf(_) => None,
        })
        .collect();
    let mut thresholds = vec![Vec::new(); forest.inputs];
    branches.iter().for_each(|(_, feature, threshold, _)| thresholds[*feature].push(*threshold));
    for list in &mut thresholds {
        list.sort_by(f32::total_cmp);
        // Zero has two signs that compare equal.
        list.dedup_by(|a, b| a == b);
    }
    let ranges = thresholds.iter().map(|list| Range { low: 0, high: list.len() as i32 }).collect();
    let mut builder = Builder::new(ranges)?;
    let levels = forest.levels().map_err(Error::Quantise)?;

    // x <= thresholds[j] exactly when rank(x) <= j.
    let mut truth = None;
    let mut number = vec![0u32; forest.nodes.len()];
    if !branches.is_empty() {
        let index = branches.iter().map(|(_, feature, ..)| *feature as u32).collect();
        let ranks = builder.push(Node::Gather { inputs: vec![Tensor::INPUT], index })?;
        let place = |(_, feature, threshold, _): &(usize, usize, f32, [usize; 2])| {
            thresholds[*feature].partition_point(|other| other < threshold) as i32
        };
        let bias = branches.iter().map(place).collect();
        let margin = builder.push(Node::Sum { terms: vec![(ranks, -1)], bias })?;
        truth = Some(builder.lookup(margin, 0, "not negative", 1 << 18, |key| i32::from(key >= 0))?);
        branches.iter().zip(0..).for_each(|((at, ..), i)| number[*at] = i);
    }

    // Whether each node of a level is reached, level by level: the first child when its parent is and the branch is true.
    let (mut reached, mut leaves): (Option<Tensor>, Vec<(Tensor, u32, usize)>) = (None, Vec::new());
    let mut base = forest.base.clone();
    for level in &levels {
        let Some(truth) = truth else { break };
        let mut parents = Vec::new();
        for (place, at) in level.iter().enumerate() {
            match (&forest.nodes[*at], reached) {
                (TreeNode::Branch { .. }, _) => parents.push((place as u32, number[*at])),
                (TreeNode::Leaf(_), Some(tensor)) => leaves.push((tensor, place as u32, *at)),
                (TreeNode::Leaf(_), None) => {} // a tree of one leaf, see below
            }
        }
        if parents.is_empty() {
            break;
        }
        let here = builder
            .push(Node::Gather { inputs: vec![truth], index: parents.iter().map(|p| p.1).collect() })?;
        let count = parents.len();
        let (yes, no) = match reached {
            None => {
                let no = builder.push(Node::Sum { terms: vec![(here, -1)], bias: vec![1; count] })?;
                (here, no)
            }
            Some(reached) => {
                let index = parents.iter().map(|p| p.0).collect();
                let parent = builder.push(Node::Gather { inputs: vec![reached], index })?;
                let both =
                    builder.push(Node::Sum { terms: vec![(parent, 1), (here, 1)], bias: vec![0; count] })?;
                let yes = builder.lookup(both, 0, "both", 16, |key| i32::from(key == 2))?;
                let no =
                    builder.push(Node::Sum { terms: vec![(parent, 1), (yes, -1)], bias: vec![0; count] })?;
                (yes, no)
            }
        };
        // In the order of the next level: the children of each branch, one after the other.
        let index = (0..count as u32).flat_map(|i| [i, count as u32 + i]).collect();
        reached = Some(builder.push(Node::Gather { inputs: vec![yes, no], index })?);
    }
    for root in &forest.roots {
        if let TreeNode::Leaf(values) = &forest.nodes[*root] {
            values.iter().for_each(|(target, value)| base[*target] += value);
        }
    }

    // One matrix over all leaves.
    let mut tensors: Vec<Tensor> = leaves.iter().map(|(tensor, ..)| *tensor).collect();
    tensors.dedup();
    let mut first = BTreeMap::new();
    let mut total = 0u32;
    for tensor in &tensors {
        first.insert(*tensor, total);
        total += builder.width(*tensor) as u32;
    }
    let (inputs, index, columns) = if leaves.is_empty() {
        (vec![Tensor::INPUT], vec![0], 1)
    } else {
        let index: Vec<u32> = leaves.iter().map(|(tensor, place, _)| first[tensor] + place).collect();
        (tensors, index, leaves.len())
    };
    let reached = builder.push(Node::Gather { inputs, index })?;
    let mut reals = vec![0.0f64; forest.outputs * columns];
    for (column, (_, _, at)) in leaves.iter().enumerate() {
        if let TreeNode::Leaf(values) = &forest.nodes[*at] {
            values.iter().for_each(|(target, value)| reals[target * columns + column] += value);
        }
    }
    // The sums of all magnitudes stay below 2^28, so that no partial sum leaves the bounds.
    let row = |reals: &[f64], base: f64| reals.iter().map(|x| x.abs()).sum::<f64>() + base.abs();
    let largest =
        reals.chunks_exact(columns).zip(&base).map(|(reals, base)| row(reals, *base)).fold(0.0, f64::max);
    if !largest.is_finite() {
        return Err(Error::Quantise("a leaf is not a finite number".into()));
    }
    let scale = if largest > 0.0 { largest / f64::from(1 << 28) } else { 1.0 };
    let round = |real: &f64| (real / scale).round() as i32;
    let output = builder.push(Node::Linear {
        input: reached,
        rows: forest.outputs as u32,
        weights: reals.iter().map(round).collect(),
        bias: base.iter().map(round).collect(),
    })?;
    let interface = Interface {
        encoding: Encoding::Rank { thresholds },
        task: model.task,
        scale,
        offset: vec![0.0; forest.outputs],
        labels: model.labels.clone(),
    };
    Ok(builder.finish(output, interface)?)
}
