//! From the nodes of an ONNX file to a real-valued network or a forest.

use std::collections::HashMap;
use std::rc::Rc;

use assay_graph::{Task, Window, ZERO};

use crate::Error;
use crate::fold::fold;
use crate::proto::{Attribute, Constant, Model, NodeProto};
use crate::real::{Formula, Function, Id, Network, Op};
use crate::shape::{WIDTH_MAX, broadcast_index, broadcast_shape, list, moved, product};
use crate::trees::Forest;

/// What was found in a file.
pub(crate) struct Lowered {
    /// Values of an input.
    pub(crate) width: usize,
    /// Whether inputs have more than one dimension, as images do: all their values then share one scale.
    pub(crate) image: bool,
    pub(crate) task: Task,
    pub(crate) labels: Vec<String>,
}

pub(crate) enum Body {
    Network(Network),
    Trees(Forest),
}

/// Scores below this are left out of a softmax: masks are written as large negative numbers.
const MASKED: f64 = -1e4;

/// The most operations of a formula that becomes one function.
const FORMULA_MAX: usize = 64;

/// What a name stands for.
#[derive(Clone)]
enum Term {
    /// A value of the network with its dimensions; see [`shape`](crate::shape) for the first.
    Real(Id, Vec<usize>),
    /// A value some of whose parts are left out of a softmax.
    Masked(Id, Vec<usize>, Vec<bool>),
    /// Something that is made from the scores: probabilities, labels.
    After,
}

/// The scores that everything in `Term::After` is made from.
struct Scores {
    id: Id,
    task: Task,
}

struct Lowering<'a> {
    model: &'a Model,
    /// The node that makes each name.
    makers: HashMap<&'a str, &'a NodeProto>,
    /// The batch that the file was exported with; 1 when it is not fixed.
    batch: usize,
    constants: HashMap<String, Constant>,
    terms: HashMap<String, Term>,
    ops: Vec<Op>,
    widths: Vec<usize>,
    /// How often each name is read, as an input of a node or as an output of the model.
    uses: HashMap<&'a str, usize>,
    scores: Option<Scores>,
    labels: Vec<String>,
    forest: Option<Forest>,
}

/// Finds the network of a model.
///
/// # Errors
/// [`Error`].
pub(crate) fn lower(mut model: Model) -> Result<(Lowered, Body), Error> {
    let constants = std::mem::take(&mut model.constants);
    let model = &model;
    let [(name, dims)] = model.inputs.as_slice() else {
        return Err(Error::Unsupported(format!("{} inputs", model.inputs.len())));
    };
    let batch = dims.first().copied().unwrap_or(1).max(1);
    let mut shape = dims.clone();
    shape.iter_mut().take(1).for_each(|first| *first = 1);
    let width = product(&shape).filter(|width| *width > 0 && shape.len() > 1);
    let Some(width) = width.filter(|width| *width <= WIDTH_MAX) else {
        return Err(Error::Unsupported("an input without fixed dimensions behind the batch".into()));
    };
    let image = shape.len() > 2;
    let mut uses: HashMap<&str, usize> = HashMap::new();
    for name in model.nodes.iter().flat_map(|node| &node.inputs).chain(&model.outputs) {
        *uses.entry(name).or_default() += 1;
    }
    let makers =
        model.nodes.iter().flat_map(|node| node.outputs.iter().map(move |name| (name.as_str(), node)));
    let mut this = Lowering {
        model,
        makers: makers.collect(),
        batch,
        constants,
        terms: HashMap::from([(name.clone(), Term::Real(0, shape))]),
        ops: vec![Op::Input],
        widths: vec![width],
        uses,
        scores: None,
        labels: Vec::new(),
        forest: None,
    };
    for node in &model.nodes {
        this.node(node)?;
    }
    let Lowering { ops, widths, terms, scores, mut labels, forest, .. } = this;
    let real = model.outputs.iter().find_map(|name| match terms.get(name) {
        Some(Term::Real(id, _)) => Some(*id),
        _ => None,
    });
    let (output, task) = match (scores, real) {
        (Some(scores), _) => (scores.id, scores.task),
        (None, Some(id)) => (id, Task::Numbers),
        (None, None) => return Err(Error::File("none of its outputs is made by a node")),
    };
    let outputs = forest.as_ref().map_or(widths[output], |forest| forest.outputs);
    let names = match task {
        Task::Numbers => 0,
        Task::Classes => outputs,
        Task::Binary => 2,
    };
    if labels.len() != names {
        labels = (0..names).map(|class| class.to_string()).collect();
    }
    let body = match forest {
        Some(forest) => Body::Trees(forest),
        None => Body::Network(Network { ops, widths, output }),
    };
    Ok((Lowered { width, image, task, labels }, body))
}

fn invalid(node: &NodeProto, reason: impl Into<String>) -> Error {
    Error::Node {
        node: node.outputs.first().cloned().unwrap_or_default(),
        operator: node.operator.clone(),
        reason: reason.into(),
    }
}

fn unsupported(node: &NodeProto, what: &str) -> Error {
    Error::Unsupported(format!("the operator {} {what}", node.operator))
}

impl NodeProto {
    pub(crate) fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.get(name)
    }

    pub(crate) fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, |attribute| attribute.int)
    }

    fn float(&self, name: &str, default: f64) -> f64 {
        self.attribute(name).map_or(default, |attribute| attribute.float)
    }

    fn string(&self, name: &str) -> &str {
        self.attribute(name).map_or("", |attribute| &attribute.string)
    }

    fn input(&self, at: usize) -> Option<&str> {
        self.inputs.get(at).map(String::as_str).filter(|name| !name.is_empty())
    }
}

impl Lowering<'_> {
    fn push(&mut self, node: &NodeProto, op: Op, shape: Vec<usize>) -> Result<(), Error> {
        let id = self.add(node, op, product(&shape).unwrap_or(usize::MAX))?;
        self.set(node, Term::Real(id, shape))
    }

    /// A value that no name of the file stands for.
    fn add(&mut self, node: &NodeProto, op: Op, width: usize) -> Result<Id, Error> {
        if !(1..=WIDTH_MAX).contains(&width) {
            return Err(invalid(node, "its result is empty or too large"));
        }
        self.ops.push(op);
        self.widths.push(width);
        Ok(self.ops.len() - 1)
    }

    /// What a node's own output stands for.
    fn own(&self, node: &NodeProto) -> Result<(Id, Vec<usize>), Error> {
        match node.outputs.first().and_then(|name| self.terms.get(name)) {
            Some(Term::Real(id, shape)) => Ok((*id, shape.clone())),
            _ => Err(invalid(node, "it has no output")),
        }
    }

    fn set(&mut self, node: &NodeProto, term: Term) -> Result<(), Error> {
        let name = node.outputs.first().ok_or_else(|| invalid(node, "it has no output"))?;
        self.terms.insert(name.clone(), term);
        Ok(())
    }

    fn constant(&self, node: &NodeProto, at: usize) -> Option<&Constant> {
        self.constants.get(node.input(at)?)
    }

    /// A constant for good, where this is the only one who reads it: large weights are kept once.
    fn take_constant(&mut self, node: &NodeProto, at: usize) -> Option<Constant> {
        let name = node.input(at)?;
        if self.uses.get(name) == Some(&1) {
            return self.constants.remove(name);
        }
        self.constants.get(name).cloned()
    }

    fn real(&self, node: &NodeProto, at: usize) -> Result<(Id, Vec<usize>), Error> {
        match node.input(at).and_then(|name| self.terms.get(name)) {
            Some(Term::Real(id, shape)) => Ok((*id, shape.clone())),
            Some(Term::Masked(..)) => Err(unsupported(node, "between a mask and its softmax")),
            Some(Term::After) => Err(unsupported(node, "behind a softmax or a label")),
            None => Err(invalid(node, format!("its input {at} is not there"))),
        }
    }

    fn node(&mut self, node: &NodeProto) -> Result<(), Error> {
        let is_after = |name: &String| matches!(self.terms.get(name), Some(Term::After));
        if node.inputs.iter().any(is_after) {
            return self.after(node);
        }
        // What is made of constants and shapes is a constant.
        if node.domain.is_empty() && !node.inputs.is_empty() {
            let named = node.inputs.iter().filter(|name| !name.is_empty());
            let known: Option<Vec<&Constant>> = named.map(|name| self.constants.get(name)).collect();
            if let Some(parts) = known.and_then(|inputs| fold(node, &inputs)) {
                for (name, constant) in node.outputs.iter().zip(parts) {
                    self.constants.insert(name.clone(), constant);
                }
                return Ok(());
            }
        }
        let masked = node.input(0).and_then(|name| self.terms.get(name));
        if let (Some(Term::Masked(id, shape, masked)), "Softmax") = (masked, node.operator.as_str()) {
            let (id, shape, masked) = (*id, shape.clone(), masked.clone());
            return self.softmax(node, id, shape, masked);
        }
        match (node.domain.as_str(), node.operator.as_str()) {
            ("", "Shape") => {
                let (_, shape) = self.real(node, 0)?;
                let numbers: Vec<f64> = shape.iter().map(|dim| *dim as f64).collect();
                self.define(node, Constant { dims: vec![numbers.len()], numbers, strings: Vec::new() })
            }
            ("", "Constant") => {
                let value = ["value", "value_float", "value_int", "value_floats", "value_ints"]
                    .iter()
                    .find_map(|name| Some((*name, node.attribute(name)?)));
                let numbers = match value {
                    Some(("value", attribute)) => {
                        let tensor =
                            attribute.tensor.clone().ok_or_else(|| invalid(node, "it has no value"))?;
                        return self.define(node, tensor);
                    }
                    Some(("value_float", attribute)) => vec![attribute.float],
                    Some(("value_int", attribute)) => vec![attribute.int as f64],
                    Some(("value_floats", attribute)) => attribute.floats.clone(),
                    Some((_, attribute)) => attribute.ints.iter().map(|int| *int as f64).collect(),
                    None => return Err(unsupported(node, "with a value that is no number")),
                };
                self.define(node, Constant { dims: vec![numbers.len()], numbers, strings: Vec::new() })
            }
            ("", "Identity" | "Cast" | "Dropout") => {
                if let Some(constant) = self.constant(node, 0).cloned() {
                    return self.define(node, constant);
                }
                let (id, shape) = self.real(node, 0)?;
                let whole = id == 0 && [6, 7].contains(&node.int("to", 1));
                if node.operator == "Cast" && ![1, 10, 11, 16].contains(&node.int("to", 1)) && !whole {
                    return Err(unsupported(node, "to a type that is no floating-point number"));
                }
                self.set(node, Term::Real(id, shape))
            }
            ("", "Gemm" | "MatMul") => self.matrix(node),
            ("", "Add" | "Sub" | "Mul" | "Div") => self.arithmetic(node),
            ("", "Neg") => {
                let (x, shape) = self.real(node, 0)?;
                let width = self.widths[x];
                self.scale(node, x, shape, vec![-1.0; width], vec![0.0; width])
            }
            ("", "BatchNormalization") => self.batch_norm(node),
            ("", "Conv") => self.conv(node),
            ("", "MaxPool" | "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool") => self.pool(node),
            ("", "Gather") if self.constant(node, 0).is_some() => self.embed(node),
            (
                "",
                "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" | "Transpose" | "Slice" | "Expand" | "Gather"
                | "Split",
            ) => self.move_values(node),
            ("", "Concat") => self.concat(node),
            ("", "Softmax" | "LogSoftmax" | "ArgMax") => {
                let (id, shape) = self.real(node, 0)?;
                let mut readers =
                    self.model.nodes.iter().filter(|reader| {
                        node.outputs.first().is_some_and(|name| reader.inputs.contains(name))
                    });
                // The last softmax of a classifier is for whoever reads the scores.
                if shape.len() == 2 && readers.all(|reader| AFTER.contains(&reader.operator.as_str())) {
                    return self.score(node, id, Task::Classes);
                }
                if node.operator != "Softmax" {
                    return Err(unsupported(node, "over more than the classes of an example"));
                }
                let masked = vec![false; self.widths[id]];
                self.softmax(node, id, shape, masked)
            }
            ("", "LayerNormalization") => self.layer_norm(node),
            ("", "ReduceMean" | "ReduceSum") => self.reduce(node),
            ("", "Where") => self.pick(node),
            ("", "Pow") => {
                let (x, shape) = self.real(node, 0)?;
                match self.constant(node, 1).map(|constant| constant.numbers.as_slice()) {
                    Some(&[exponent]) => {
                        self.push(node, Op::Map { x, function: Function::Power(exponent) }, shape)
                    }
                    _ => Err(unsupported(node, "with other than one constant exponent")),
                }
            }
            ("ai.onnx.ml", "Scaler") => {
                let (x, shape) = self.real(node, 0)?;
                let width = self.widths[x];
                let list = |name: &str, default: f64| {
                    let list = node.attribute(name).map_or(Vec::new(), |attribute| attribute.floats.clone());
                    match list.len() {
                        0 => Ok(vec![default; width]),
                        1 => Ok(vec![list[0]; width]),
                        len if len == width => Ok(list),
                        _ => Err(invalid(node, "its lists do not fit its input")),
                    }
                };
                let (offset, scale) = (list("offset", 0.0)?, list("scale", 1.0)?);
                let offset = offset.iter().zip(&scale).map(|(offset, scale)| -offset * scale).collect();
                self.scale(node, x, shape, scale, offset)
            }
            ("ai.onnx.ml", "LinearClassifier" | "LinearRegressor") => self.linear(node),
            ("ai.onnx.ml", "TreeEnsembleClassifier" | "TreeEnsembleRegressor") => {
                let (x, _) = self.real(node, 0)?;
                if x != 0 {
                    return Err(unsupported(node, "behind another operator"));
                }
                let forest = Forest::read(node, self.widths[0]).map_err(|reason| invalid(node, reason))?;
                let task = if !node.operator.ends_with("Classifier") {
                    Task::Numbers
                } else if forest.outputs == 1 {
                    Task::Binary
                } else {
                    Task::Classes
                };
                self.class_labels(node);
                self.scores = Some(Scores { id: 0, task });
                self.forest = Some(forest);
                node.outputs.iter().for_each(|name| _ = self.terms.insert(name.clone(), Term::After));
                Ok(())
            }
            ("", operator) => {
                let function = match operator {
                    "Relu" => Function::Relu,
                    "LeakyRelu" => Function::LeakyRelu(node.float("alpha", 0.01)),
                    "Elu" => Function::Elu(node.float("alpha", 1.0)),
                    "Sigmoid" => Function::Sigmoid,
                    "Tanh" => Function::Tanh,
                    "Softplus" => Function::Softplus,
                    "Gelu" if node.string("approximate") == "tanh" => Function::GeluTanh,
                    "Gelu" => Function::Gelu,
                    "Sqrt" => Function::Power(0.5),
                    "Reciprocal" => Function::Power(-1.0),
                    "Exp" => Function::Exp,
                    "Log" => Function::Log,
                    "Erf" => Function::Erf,
                    "Abs" => Function::Abs,
                    "HardSigmoid" => Function::HardSigmoid(node.float("alpha", 0.2), node.float("beta", 0.5)),
                    "HardSwish" => Function::HardSwish,
                    "Swish" if node.float("alpha", 1.0) == 1.0 => Function::Silu,
                    "Clip" => {
                        let bound = |at: usize, name: &str, default: f64| {
                            let number = self
                                .constant(node, at)
                                .and_then(|constant| constant.numbers.first().copied());
                            number.unwrap_or_else(|| node.float(name, default))
                        };
                        Function::Clip(bound(1, "min", f64::NEG_INFINITY), bound(2, "max", f64::INFINITY))
                    }
                    _ => return Err(Error::Unsupported(format!("the operator {operator}"))),
                };
                let (x, shape) = self.real(node, 0)?;
                // The last sigmoid of a classifier is for whoever reads the score.
                let readers =
                    self.model.nodes.iter().filter(|reader| {
                        node.outputs.first().is_some_and(|name| reader.inputs.contains(name))
                    });
                let classifies = readers.clone().count() > 0
                    && readers.clone().all(|reader| AFTER.contains(&reader.operator.as_str()));
                if function == Function::Sigmoid && classifies && shape.len() == 2 {
                    let task = if self.widths[x] == 1 { Task::Binary } else { Task::Classes };
                    return self.score(node, x, task);
                }
                self.push(node, Op::Map { x, function }, shape)
            }
            (domain, operator) => Err(Error::Unsupported(format!("the operator {operator} of {domain}"))),
        }
    }

    fn define(&mut self, node: &NodeProto, constant: Constant) -> Result<(), Error> {
        let name = node.outputs.first().ok_or_else(|| invalid(node, "it has no output"))?;
        self.constants.insert(name.clone(), constant);
        Ok(())
    }

    /// Everything from here on is made from these scores.
    fn score(&mut self, node: &NodeProto, id: Id, task: Task) -> Result<(), Error> {
        if self.scores.as_ref().is_some_and(|scores| scores.id != id) {
            return Err(unsupported(node, "for a second set of scores"));
        }
        self.scores = Some(Scores { id, task });
        self.set(node, Term::After)
    }

    /// A node behind the scores: it must be one that only presents them.
    fn after(&mut self, node: &NodeProto) -> Result<(), Error> {
        if !AFTER.contains(&node.operator.as_str()) {
            return Err(unsupported(node, "behind a softmax or a label"));
        }
        self.class_labels(node);
        if node.operator == "ArrayFeatureExtractor"
            && let Some(classes) = self.constant(node, 0)
        {
            self.labels = if classes.strings.is_empty() {
                classes.numbers.iter().map(f64::to_string).collect()
            } else {
                classes.strings.clone()
            };
        }
        node.outputs.iter().for_each(|name| _ = self.terms.insert(name.clone(), Term::After));
        Ok(())
    }

    fn class_labels(&mut self, node: &NodeProto) {
        for name in ["classlabels_int64s", "classlabels_ints"] {
            if let Some(attribute) = node.attribute(name)
                && !attribute.ints.is_empty()
            {
                self.labels = attribute.ints.iter().map(i64::to_string).collect();
            }
        }
        if let Some(attribute) = node.attribute("classlabels_strings")
            && !attribute.strings.is_empty()
        {
            self.labels.clone_from(&attribute.strings);
        }
    }

    fn matrix(&mut self, node: &NodeProto) -> Result<(), Error> {
        let (x, shape) = self.real(node, 0)?;
        let Some(matrix) = self.take_constant(node, 1) else {
            return self.multiply(node);
        };
        if node.int("transA", 0) != 0 {
            return Err(unsupported(node, "with transA"));
        }
        // Leading dimensions of one are those of the batch.
        let ones = matrix.dims.len().saturating_sub(2);
        let dims = if matrix.dims[..ones].iter().all(|dim| *dim == 1) { &matrix.dims[ones..] } else { &[] };
        let ([rows, columns], transposed) = match (dims, node.int("transB", 0) != 0) {
            (&[k, n], false) => ([n, k], true),
            (&[n, k], true) => ([n, k], false),
            _ => return Err(unsupported(node, "with a constant that is no matrix")),
        };
        if shape.last() != Some(&columns) || shape.len() < 2 || rows == 0 || columns == 0 {
            return Err(invalid(
                node,
                format!("a matrix for {columns} values meets the dimensions {shape:?}"),
            ));
        }
        let (alpha, beta) = (node.float("alpha", 1.0), node.float("beta", 1.0));
        let mut weights = matrix.numbers;
        if transposed {
            let numbers = weights;
            weights = Vec::with_capacity(numbers.len());
            (0..rows).for_each(|row| weights.extend(numbers.iter().skip(row).step_by(rows)));
        }
        if alpha != 1.0 {
            weights.iter_mut().for_each(|weight| *weight *= alpha);
        }
        let bias = match (node.operator.as_str(), self.constant(node, 2)) {
            ("Gemm", Some(bias)) => broadcast(node, bias, &[1, rows])?.iter().map(|b| beta * b).collect(),
            ("Gemm", None) if node.input(2).is_some() => {
                return Err(unsupported(node, "with a computed bias"));
            }
            _ => vec![0.0; rows],
        };
        let tokens = self.widths[x] / columns;
        let out = [&shape[..shape.len() - 1], &[rows]].concat();
        self.push(node, Op::Affine { x, tokens, weights, bias }, out)
    }

    /// A product of two computed stacks of matrices.
    fn multiply(&mut self, node: &NodeProto) -> Result<(), Error> {
        let ((a, a_shape), (b, b_shape)) = (self.real(node, 0)?, self.real(node, 1)?);
        let plain = node.operator == "MatMul" && a_shape.len() == b_shape.len() && a_shape.len() > 2;
        if !plain {
            return Err(unsupported(node, "of two computed values that are no stacks of matrices"));
        }
        let rank = a_shape.len() - 2;
        let ([rows, inner], [depth, columns]) =
            ([a_shape[rank], a_shape[rank + 1]], [b_shape[rank], b_shape[rank + 1]]);
        let stack = broadcast_shape(&a_shape[..rank], &b_shape[..rank]);
        let Some(stack) = stack.filter(|stack| inner == depth && stack[0] == a_shape[0].min(b_shape[0]))
        else {
            return Err(invalid(node, format!("matrices of {a_shape:?} and {b_shape:?} do not fit")));
        };
        let groups = product(&stack).unwrap_or(usize::MAX);
        let dims = |first: usize, second: usize| [stack.as_slice(), &[first, second]].concat();
        let a = self.expanded(node, a, &a_shape, &dims(rows, inner))?;
        let b = self.expanded(node, b, &b_shape, &dims(inner, columns))?;
        // Both operands list rows of inner values.
        let turn = |at: usize| {
            let (group, at) = (at / (inner * columns), at % (inner * columns));
            (group * inner * columns + at % inner * columns + at / inner) as u32
        };
        let index = (0..self.widths[b]).map(turn).collect();
        let b = self.add(node, Op::Gather { inputs: vec![b], index }, self.widths[b])?;
        self.push(node, Op::Product { inputs: [a, b], groups, rows, columns, inner }, dims(rows, columns))
    }

    /// A value at larger dimensions, by NumPy's rules.
    fn expanded(&mut self, node: &NodeProto, x: Id, from: &[usize], to: &[usize]) -> Result<Id, Error> {
        if from == to {
            return Ok(x);
        }
        let index = broadcast_index(from, to)
            .filter(|_| from.len() == to.len() && from.first() == to.first())
            .ok_or_else(|| invalid(node, format!("dimensions {from:?} do not fit {to:?}")))?;
        let width = index.len();
        self.add(node, Op::Gather { inputs: vec![x], index }, width)
    }

    fn linear(&mut self, node: &NodeProto) -> Result<(), Error> {
        let (x, shape) = self.real(node, 0)?;
        let columns = self.widths[x];
        let list = |name: &str| node.attribute(name).map_or(Vec::new(), |attribute| attribute.floats.clone());
        let (weights, mut bias) = (list("coefficients"), list("intercepts"));
        if shape.len() != 2 || weights.is_empty() || !weights.len().is_multiple_of(columns) {
            return Err(invalid(node, "its coefficients do not fit its input"));
        }
        let rows = weights.len() / columns;
        if bias.is_empty() {
            bias = vec![0.0; rows];
        }
        if bias.len() != rows {
            return Err(invalid(node, "its intercepts do not fit its coefficients"));
        }
        self.class_labels(node);
        self.push(node, Op::Affine { x, tokens: 1, weights, bias }, vec![1, rows])?;
        if node.operator == "LinearRegressor" {
            return Ok(());
        }
        let id = self.ops.len() - 1;
        let task = if rows == 1 { Task::Binary } else { Task::Classes };
        node.outputs.iter().for_each(|name| _ = self.terms.insert(name.clone(), Term::After));
        self.scores = Some(Scores { id, task });
        Ok(())
    }

    fn arithmetic(&mut self, node: &NodeProto) -> Result<(), Error> {
        let operator = node.operator.as_str();
        let (at, constant) = match [self.constant(node, 0), self.constant(node, 1)] {
            [None, None] => return self.combine(node),
            [None, Some(constant)] => (0, constant.clone()),
            [Some(constant), None] => (1, constant.clone()),
            [Some(_), Some(_)] => return Err(unsupported(node, "of two constants; fold them at the export")),
        };
        let (x, shape) = self.real(node, at)?;
        let out = broadcast_shape(&shape, &constant.dims)
            .filter(|out| out.len() == shape.len() && out.first() == shape.first())
            .ok_or_else(|| {
                invalid(node, format!("a constant of dimensions {:?} meets {shape:?}", constant.dims))
            })?;
        let x = self.expanded(node, x, &shape, &out)?;
        let list = broadcast(node, &constant, &out)?;
        if operator == "Add" && list.iter().any(|number| *number <= MASKED) {
            // A mask: what is left of the sum there counts for nothing.
            let masked: Vec<bool> = list.iter().map(|number| *number <= MASKED).collect();
            let rest: Vec<f64> =
                list.iter().map(|number| if *number <= MASKED { 0.0 } else { *number }).collect();
            if rest.iter().any(|number| *number != 0.0) {
                self.scale(node, x, out.clone(), vec![1.0; rest.len()], rest)?;
                let (x, _) = self.own(node)?;
                return self.set(node, Term::Masked(x, out, masked));
            }
            return self.set(node, Term::Masked(x, out, masked));
        }
        let ones = vec![1.0; list.len()];
        let zeros = vec![0.0; list.len()];
        let (scale, offset) = match (operator, at) {
            ("Add", _) => (ones, list),
            ("Sub", 0) => (ones, list.iter().map(|x| -x).collect()),
            ("Sub", _) => (vec![-1.0; list.len()], list),
            ("Mul", _) => (list, zeros),
            (_, 0) => (list.iter().map(|x| 1.0 / x).collect(), zeros),
            _ => {
                let inverse = Op::Map { x, function: Function::Power(-1.0) };
                let width = self.widths[x];
                let x = self.add(node, inverse, width)?;
                return self.scale(node, x, out, list, zeros);
            }
        };
        self.scale(node, x, out, scale, offset)
    }

    /// Sums, products and quotients of two computed values.
    fn combine(&mut self, node: &NodeProto) -> Result<(), Error> {
        let ((a, a_shape), (b, b_shape)) = (self.real(node, 0)?, self.real(node, 1)?);
        let out = broadcast_shape(&a_shape, &b_shape)
            .filter(|out| out.len() == a_shape.len() && out.len() == b_shape.len() && out[0] == a_shape[0])
            .ok_or_else(|| invalid(node, format!("dimensions {a_shape:?} and {b_shape:?} do not fit")))?;
        if a_shape == b_shape
            && let Some((x, formula)) = self.formula(&node.operator, a, b)
        {
            return self.push(node, Op::Map { x, function: Function::Formula(Rc::new(formula)) }, out);
        }
        if node.operator == "Div" {
            return match self.normalised(node) {
                Some((x, len, epsilon)) => self.push(node, Op::Normalise { x, len, epsilon }, out),
                None => Err(unsupported(node, "of two computed values")),
            };
        }
        let (a, b) = (self.expanded(node, a, &a_shape, &out)?, self.expanded(node, b, &b_shape, &out)?);
        let op = match node.operator.as_str() {
            "Add" => Op::Add { terms: vec![(a, 1.0), (b, 1.0)] },
            "Sub" => Op::Add { terms: vec![(a, 1.0), (b, -1.0)] },
            _ => Op::Product { inputs: [a, b], groups: self.widths[a], rows: 1, columns: 1, inner: 1 },
        };
        self.push(node, op, out)
    }

    /// Two values that are functions of one, value by value, as one function of it: the forms in which GELU and its like are written.
    fn formula(&self, operator: &str, a: Id, b: Id) -> Option<(Id, Formula)> {
        let (left, right) = (self.ancestors(a), self.ancestors(b));
        let (x, f) = left.iter().find(|(id, _)| right.iter().any(|(other, _)| other == id))?;
        let (_, g) = right.iter().find(|(id, _)| id == x)?;
        // A sum of linear functions stays linear, and two values that are one value stay a product.
        let linear = |f: &Formula| match f {
            Formula::Argument => true,
            Formula::Linear(f, ..) => **f == Formula::Argument,
            _ => false,
        };
        if linear(f) && linear(g) && operator != "Mul" && operator != "Div" {
            return None;
        }
        let (f, g) = (f.clone(), g.clone());
        let formula = match operator {
            "Add" => Formula::Sum(f.into(), g.into()),
            "Sub" => Formula::Sum(f.into(), Rc::new(Formula::Linear(g.into(), -1.0, 0.0))),
            "Mul" => Formula::Product(f.into(), g.into()),
            _ => Formula::Quotient(f.into(), g.into()),
        };
        (formula.size() <= FORMULA_MAX).then_some((*x, formula))
    }

    /// The values that one is a function of, value by value, the nearest first, with the functions.
    fn ancestors(&self, id: Id) -> Vec<(Id, Formula)> {
        /// Puts `inner` in the place of the argument.
        fn within(outer: &Formula, inner: &Formula) -> Formula {
            let rec = |f: &Rc<Formula>| Rc::new(within(f, inner));
            match outer {
                Formula::Argument => inner.clone(),
                Formula::Linear(f, factor, offset) => Formula::Linear(rec(f), *factor, *offset),
                Formula::Apply(function, f) => Formula::Apply(function.clone(), rec(f)),
                Formula::Sum(f, g) => Formula::Sum(rec(f), rec(g)),
                Formula::Product(f, g) => Formula::Product(rec(f), rec(g)),
                Formula::Quotient(f, g) => Formula::Quotient(rec(f), rec(g)),
            }
        }
        let mut out = vec![(id, Formula::Argument)];
        while let Some((id, formula)) = out.last()
            && formula.size() <= FORMULA_MAX
        {
            let argument = Rc::new(Formula::Argument);
            let (x, step) = match &self.ops[*id] {
                Op::Map { x, function: Function::Formula(own) } => (*x, (**own).clone()),
                Op::Map { x, function } => (*x, Formula::Apply(function.clone(), argument)),
                Op::Scale { x, scale, offset }
                    if scale.iter().all(|s| *s == scale[0]) && offset.iter().all(|o| *o == offset[0]) =>
                {
                    (*x, Formula::Linear(argument, scale[0], offset[0]))
                }
                _ => break,
            };
            let formula = within(formula, &step);
            out.push((x, formula));
        }
        out
    }

    /// The node that makes an input.
    fn maker(&self, node: &NodeProto, at: usize, operator: &str) -> Option<&NodeProto> {
        self.makers.get(node.input(at)?).copied().filter(|maker| maker.operator == operator)
    }

    /// Whether a quotient is `(x - mean) / sqrt(variance + epsilon)`, written out; then `x`, the length of its rows, and epsilon.
    fn normalised(&self, node: &NodeProto) -> Option<(Id, usize, f64)> {
        let centred = self.maker(node, 0, "Sub")?;
        let sum = self.maker(self.maker(node, 1, "Sqrt")?, 0, "Add")?;
        let at = usize::from(self.constant(sum, 0).is_some());
        let epsilon = self.constant(sum, 1 - at)?.numbers.first().copied()?;
        let variance = self.maker(sum, at, "ReduceMean")?;
        let square = self.makers.get(variance.input(0)?)?;
        let same = |name: Option<&str>| {
            let found = name.and_then(|name| self.makers.get(name));
            found.is_some_and(|found| found.operator == "Sub" && self.centres(found) == self.centres(centred))
        };
        let squared = match square.operator.as_str() {
            "Pow" => self.constant(square, 1)?.numbers == [2.0] && same(square.input(0)),
            "Mul" => same(square.input(0)) && same(square.input(1)),
            _ => false,
        };
        let (name, len) = self.centres(centred)?;
        let last = self.last_axis(variance) == Some(len);
        match self.terms.get(name) {
            Some(Term::Real(x, _)) if squared && last && epsilon >= 0.0 => Some((*x, len, epsilon)),
            _ => None,
        }
    }

    /// Of a difference that takes the mean over the last axis away: from what, and the length of that axis.
    fn centres<'n>(&self, node: &'n NodeProto) -> Option<(&'n str, usize)> {
        let name = node.input(0)?;
        let mean = self.maker(node, 1, "ReduceMean").filter(|mean| mean.input(0) == Some(name))?;
        Some((name, self.last_axis(mean)?))
    }

    /// The length of the last axis, when that is what a node reduces.
    fn last_axis(&self, node: &NodeProto) -> Option<usize> {
        let (_, shape) = self.real(node, 0).ok()?;
        let axes = list(node, "axes", self.constant(node, 1))?;
        let last = [-1, shape.len() as i64 - 1];
        (axes.len() == 1 && last.contains(&axes[0]) && node.int("keepdims", 1) == 1)
            .then(|| shape.last().copied())?
    }

    fn layer_norm(&mut self, node: &NodeProto) -> Result<(), Error> {
        let (x, shape) = self.real(node, 0)?;
        let axis = node.int("axis", -1);
        let axis = usize::try_from(if axis < 0 { axis + shape.len() as i64 } else { axis }).unwrap_or(0);
        if axis == 0 || axis >= shape.len() {
            return Err(unsupported(node, "across the batch"));
        }
        let len = product(&shape[axis..]).unwrap_or(0);
        let list = |at: usize, default: f64| match (self.constant(node, at), node.input(at)) {
            (Some(constant), _) => broadcast(node, constant, &shape),
            (None, None) => Ok(vec![default; product(&shape).unwrap_or(0)]),
            _ => Err(unsupported(node, "with computed weights")),
        };
        let (scale, offset) = (list(1, 1.0)?, list(2, 0.0)?);
        let epsilon = node.float("epsilon", 1e-5);
        if len == 0 || !(0.0..1e9).contains(&epsilon) {
            return Err(invalid(node, "its axis or epsilon is out of range"));
        }
        let width = self.widths[x];
        let x = self.add(node, Op::Normalise { x, len, epsilon }, width)?;
        self.scale(node, x, shape, scale, offset)
    }

    fn softmax(
        &mut self,
        node: &NodeProto,
        x: Id,
        shape: Vec<usize>,
        masked: Vec<bool>,
    ) -> Result<(), Error> {
        let axis = node.int("axis", -1);
        let len = shape.last().copied().unwrap_or(1);
        if axis != -1 && axis != shape.len() as i64 - 1 {
            return Err(unsupported(node, "over other than the last axis"));
        }
        if masked.chunks_exact(len).any(|row| row.iter().all(|masked| *masked)) {
            return Err(unsupported(node, "of a row that is masked as a whole"));
        }
        self.push(node, Op::Softmax { x, len, masked }, shape)
    }

    fn reduce(&mut self, node: &NodeProto) -> Result<(), Error> {
        let (x, shape) = self.real(node, 0)?;
        let axes = list(node, "axes", self.constant(node, 1));
        let axis = match axes.as_deref() {
            Some(&[axis]) => usize::try_from(if axis < 0 { axis + shape.len() as i64 } else { axis }).ok(),
            _ => None,
        };
        let Some(axis) = axis.filter(|axis| (1..shape.len()).contains(axis)) else {
            return Err(unsupported(node, "over other than one axis of an example"));
        };
        // That axis last, then as a matrix of one row.
        let len = shape[axis];
        let inner: usize = shape[axis + 1..].iter().product();
        let width = self.widths[x];
        let index = (0..width)
            .map(|at| {
                let (row, i) = (at / len, at % len);
                ((row / inner * len + i) * inner + row % inner) as u32
            })
            .collect();
        let x = self.add(node, Op::Gather { inputs: vec![x], index }, width)?;
        let each = if node.operator == "ReduceMean" { 1.0 / len as f64 } else { 1.0 };
        let mut out = shape;
        if node.int("keepdims", 1) == 1 {
            out[axis] = 1;
        } else {
            out.remove(axis);
        }
        let op = Op::Affine { x, tokens: width / len, weights: vec![each; len], bias: vec![0.0] };
        self.push(node, op, out)
    }

    /// A choice by a constant condition between a computed value and a constant, which is a mask or zero.
    fn pick(&mut self, node: &NodeProto) -> Result<(), Error> {
        let Some(condition) = self.constant(node, 0).cloned() else {
            return Err(unsupported(node, "with a computed condition"));
        };
        let (at, constant) = match [self.constant(node, 1), self.constant(node, 2)] {
            [Some(constant), None] => (2, constant.clone()),
            [None, Some(constant)] => (1, constant.clone()),
            _ => return Err(unsupported(node, "between two computed values")),
        };
        let (x, shape) = self.real(node, at)?;
        let (condition, constant) =
            (broadcast(node, &condition, &shape)?, broadcast(node, &constant, &shape)?);
        let replaced: Vec<bool> = condition.iter().map(|chosen| (*chosen != 0.0) == (at == 2)).collect();
        let all = |test: &dyn Fn(f64) -> bool| {
            replaced.iter().zip(&constant).all(|(replaced, number)| !replaced || test(*number))
        };
        if all(&|number| number <= MASKED) {
            return self.set(node, Term::Masked(x, shape, replaced));
        }
        if !all(&|number| number == 0.0) {
            return Err(unsupported(node, "with a constant that is neither a mask nor zero"));
        }
        let index = (0..).zip(&replaced).map(|(at, replaced)| if *replaced { ZERO } else { at }).collect();
        self.push(node, Op::Gather { inputs: vec![x], index }, shape)
    }

    /// Rows of a constant table that the input counts.
    fn embed(&mut self, node: &NodeProto) -> Result<(), Error> {
        let (x, shape) = self.real(node, 1)?;
        let Some(table) = self.take_constant(node, 0) else {
            return Err(unsupported(node, "of two computed values"));
        };
        let &[rows, len] = table.dims.as_slice() else {
            return Err(unsupported(node, "of a constant that is no matrix"));
        };
        if x != 0 || node.int("axis", 0) != 0 || rows == 0 || len == 0 {
            return Err(unsupported(node, "by other than the input"));
        }
        let out = [shape.as_slice(), &[len]].concat();
        self.push(node, Op::Embed { x, table: table.numbers, len }, out)
    }

    /// `x · scale + offset`; folded into the linear map that makes `x` when nobody else reads it.
    fn scale(
        &mut self,
        node: &NodeProto,
        x: Id,
        shape: Vec<usize>,
        scale: Vec<f64>,
        offset: Vec<f64>,
    ) -> Result<(), Error> {
        if scale.iter().chain(&offset).any(|number| !number.is_finite()) {
            return Err(invalid(node, "a number in it is not finite"));
        }
        let alone = node.inputs.iter().any(|name| {
            matches!(self.terms.get(name), Some(Term::Real(id, _)) if *id == x)
                && self.uses.get(name.as_str()) == Some(&1)
        });
        if alone {
            let fold_into = |weights: &mut [f64], bias: &mut [f64], scale: &[f64], offset: &[f64]| {
                let columns = weights.len() / bias.len();
                for (row, weights) in weights.chunks_exact_mut(columns).enumerate() {
                    weights.iter_mut().for_each(|weight| *weight *= scale[row]);
                    bias[row] = bias[row] * scale[row] + offset[row];
                }
            };
            match &mut self.ops[x] {
                Op::Affine { weights, bias, .. } => {
                    let rows = bias.len();
                    let shared = |list: &[f64]| list.iter().enumerate().all(|(at, x)| *x == list[at % rows]);
                    if shared(&scale) && shared(&offset) {
                        fold_into(weights, bias, &scale[..rows], &offset[..rows]);
                        return self.set(node, Term::Real(x, shape));
                    }
                }
                Op::Conv { weights, bias, .. } => {
                    let plane = scale.len() / bias.len();
                    let uniform = |list: &[f64]| {
                        list.chunks_exact(plane).all(|plane| plane.iter().all(|x| *x == plane[0]))
                    };
                    if uniform(&scale) && uniform(&offset) {
                        let first = |list: &[f64]| list.iter().step_by(plane).copied().collect::<Vec<_>>();
                        fold_into(weights, bias, &first(&scale), &first(&offset));
                        return self.set(node, Term::Real(x, shape));
                    }
                }
                _ => {}
            }
        }
        self.push(node, Op::Scale { x, scale, offset }, shape)
    }

    fn batch_norm(&mut self, node: &NodeProto) -> Result<(), Error> {
        let (x, shape) = self.real(node, 0)?;
        let channels = shape.get(1).copied().unwrap_or(0);
        let list = |at: usize| match self.constant(node, at) {
            Some(constant) if channels > 0 && constant.numbers.len() == channels => {
                Ok(constant.numbers.clone())
            }
            _ => Err(invalid(node, "its statistics do not fit its channels")),
        };
        let (gamma, beta, mean, variance) = (list(1)?, list(2)?, list(3)?, list(4)?);
        let epsilon = node.float("epsilon", 1e-5);
        let plane = self.widths[x] / channels;
        let (mut scale, mut offset) = (Vec::new(), Vec::new());
        for channel in 0..channels {
            let factor = gamma[channel] / libm::sqrt(variance[channel] + epsilon);
            scale.extend(std::iter::repeat_n(factor, plane));
            offset.extend(std::iter::repeat_n(beta[channel] - mean[channel] * factor, plane));
        }
        self.scale(node, x, shape, scale, offset)
    }

    fn conv(&mut self, node: &NodeProto) -> Result<(), Error> {
        let (x, shape) = self.real(node, 0)?;
        let Some(filters) = self.take_constant(node, 1) else {
            return Err(unsupported(node, "with computed filters"));
        };
        let ([1, channels, height, width], [count, _, kh, kw]) = (shape.as_slice(), filters.dims.as_slice())
        else {
            return Err(unsupported(node, "in other than two dimensions"));
        };
        let groups = usize::try_from(node.int("group", 1)).unwrap_or(0);
        let window = self.window(node, [*channels, *height, *width], *count, groups, [*kh, *kw])?;
        if window.weights_len() != filters.numbers.len() {
            return Err(invalid(node, "its filters do not fit its channels"));
        }
        let bias = match self.constant(node, 2) {
            Some(bias) if bias.numbers.len() == *count => bias.numbers.clone(),
            None if node.input(2).is_none() => vec![0.0; *count],
            _ => return Err(invalid(node, "its bias does not fit its filters")),
        };
        let shape = vec![1, *count, window.output[0] as usize, window.output[1] as usize];
        self.push(node, Op::Conv { x, window, weights: filters.numbers, bias }, shape)
    }

    fn pool(&mut self, node: &NodeProto) -> Result<(), Error> {
        let (x, shape) = self.real(node, 0)?;
        let [1, channels, height, width] = *shape.as_slice() else {
            return Err(unsupported(node, "in other than two dimensions"));
        };
        let kernel = match node.attribute("kernel_shape").map(|attribute| attribute.ints.as_slice()) {
            _ if node.operator.starts_with("Global") => [height, width],
            Some(&[h, w]) => [usize::try_from(h).unwrap_or(0), usize::try_from(w).unwrap_or(0)],
            _ => return Err(unsupported(node, "in other than two dimensions")),
        };
        // Each channel for itself: as a convolution with as many groups as channels.
        let window = self.window(node, [channels, height, width], channels, channels, kernel)?;
        let shape = vec![1, channels, window.output[0] as usize, window.output[1] as usize];
        let counts: Vec<usize> = crate::real::pooled(&window).iter().map(Vec::len).collect();
        if counts.contains(&0) {
            return Err(invalid(node, "a window lies outside the input"));
        }
        if node.operator.ends_with("MaxPool") {
            return self.push(node, Op::MaxPool { x, window }, shape);
        }
        let area = kernel[0] * kernel[1];
        if counts.iter().any(|count| *count != area) && node.int("count_include_pad", 0) == 0 {
            return Err(unsupported(node, "with padding that does not count"));
        }
        let weights = vec![1.0 / area as f64; channels * area];
        self.push(node, Op::Conv { x, window, weights, bias: vec![0.0; channels] }, shape)
    }

    fn window(
        &self,
        node: &NodeProto,
        [channels, height, width]: [usize; 3],
        filters: usize,
        groups: usize,
        kernel: [usize; 2],
    ) -> Result<Window, Error> {
        let list = |name: &str, default: i64, len: usize| match node.attribute(name) {
            Some(attribute) if attribute.ints.len() == len => Ok(attribute.ints.clone()),
            None => Ok(vec![default; len]),
            Some(_) => Err(invalid(node, format!("its {name} have not {len} numbers"))),
        };
        let (strides, dilations, mut pads) =
            (list("strides", 1, 2)?, list("dilations", 1, 2)?, list("pads", 0, 4)?);
        if node.int("ceil_mode", 0) != 0 {
            return Err(unsupported(node, "with ceil_mode"));
        }
        let small = |n: i64, low: i64| u32::try_from(n).ok().filter(|_| (low..1 << 14).contains(&n));
        let sizes = [height, width].map(|n| i64::try_from(n).unwrap_or(i64::MAX).min(1 << 14));
        let kernels = kernel.map(|n| i64::try_from(n).unwrap_or(i64::MAX).min(1 << 14));
        let mut output = [0; 2];
        for axis in 0..2 {
            let (stride, reach) =
                (strides[axis], dilations[axis].saturating_mul(kernels[axis] - 1).saturating_add(1));
            if small(stride, 1).is_none()
                || small(reach, 1).is_none()
                || pads.iter().any(|pad| small(*pad, 0).is_none())
            {
                return Err(invalid(node, "its window is too large or not positive"));
            }
            match node.string("auto_pad") {
                "" | "NOTSET" => {}
                "VALID" => (pads[axis], pads[axis + 2]) = (0, 0),
                mode @ ("SAME_UPPER" | "SAME_LOWER") => {
                    let out = (sizes[axis] + stride - 1) / stride;
                    let total = ((out - 1) * stride + reach - sizes[axis]).max(0);
                    let less = total / 2;
                    let (first, last) =
                        if mode == "SAME_UPPER" { (less, total - less) } else { (total - less, less) };
                    (pads[axis], pads[axis + 2]) = (first, last);
                }
                _ => return Err(invalid(node, "its auto_pad is unknown")),
            }
            let room = sizes[axis] + pads[axis] + pads[axis + 2] - reach;
            output[axis] = if room < 0 { 0 } else { room / stride + 1 };
        }
        let all = [channels, height, width, filters, groups, kernel[0], kernel[1]];
        let fits = all.iter().all(|n| (1..1 << 14).contains(n))
            && output.iter().all(|n| (1..1 << 14).contains(n))
            && channels.is_multiple_of(groups)
            && filters.is_multiple_of(groups)
            && filters.saturating_mul((output[0] * output[1]) as usize) <= WIDTH_MAX;
        if !fits {
            return Err(invalid(node, "its window does not fit its input"));
        }
        // Every number was just found to be small and not negative.
        let pair = |list: &[i64]| [list[0] as u32, list[1] as u32];
        Ok(Window {
            channels: channels as u32,
            size: [height as u32, width as u32],
            filters: filters as u32,
            groups: groups as u32,
            kernel: [kernel[0] as u32, kernel[1] as u32],
            stride: pair(&strides),
            dilation: pair(&dilations),
            pad: pair(&pads),
            output: pair(&output),
        })
    }

    /// Reshapes, transposes, slices and the like.
    fn move_values(&mut self, node: &NodeProto) -> Result<(), Error> {
        let (x, shape) = self.real(node, 0)?;
        let parts = moved(node, &shape, &|at| self.constant(node, at), Some(self.batch))
            .ok_or_else(|| unsupported(node, "with computed places"))?
            .map_err(|reason| unsupported(node, reason))?;
        for (name, part) in node.outputs.iter().zip(parts) {
            let width = product(&part.shape).filter(|width| (1..=WIDTH_MAX).contains(width));
            let width = width.ok_or_else(|| invalid(node, "its result is empty or too large"))?;
            let id = match part.index {
                None => x,
                Some(index) => self.add(node, Op::Gather { inputs: vec![x], index }, width)?,
            };
            self.terms.insert(name.clone(), Term::Real(id, part.shape));
        }
        Ok(())
    }

    fn concat(&mut self, node: &NodeProto) -> Result<(), Error> {
        let parts = (0..node.inputs.len()).map(|at| self.real(node, at)).collect::<Result<Vec<_>, _>>()?;
        let rank = parts.first().map_or(0, |(_, shape)| shape.len());
        let axis = node.int("axis", 1);
        let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).unwrap_or(0);
        let fits = |(_, shape): &(Id, Vec<usize>)| {
            shape.len() == rank && (0..rank).all(|i| i == axis || shape[i] == parts[0].1[i])
        };
        if axis == 0 || axis >= rank || !parts.iter().all(fits) {
            return Err(unsupported(node, "across the batch or of parts that do not fit"));
        }
        let mut out = parts[0].1.clone();
        out[axis] = parts.iter().map(|(_, shape)| shape[axis]).sum();
        let outer: usize = out[..axis].iter().product();
        let mut index = Vec::new();
        for block in 0..outer {
            let mut first = 0;
            for (id, _) in &parts {
                let len = self.widths[*id] / outer;
                index.extend((0..len).map(|i| (first + block * len + i) as u32));
                first += self.widths[*id];
            }
        }
        debug_assert!(!index.contains(&ZERO));
        self.push(node, Op::Gather { inputs: parts.into_iter().map(|(id, _)| id).collect(), index }, out)
    }
}

/// What only presents scores.
const AFTER: &[&str] = &[
    "Cast",
    "Identity",
    "ArgMax",
    "ArrayFeatureExtractor",
    "ZipMap",
    "Normalizer",
    "Sub",
    "Concat",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
];

/// A constant at the dimensions of an example, by NumPy's rules.
fn broadcast(node: &NodeProto, constant: &Constant, shape: &[usize]) -> Result<Vec<f64>, Error> {
    let index = broadcast_index(&constant.dims, shape).ok_or_else(|| {
        invalid(node, format!("a constant of dimensions {:?} meets {shape:?}", constant.dims))
    })?;
    Ok(index.into_iter().map(|at| constant.numbers[at as usize]).collect())
}
