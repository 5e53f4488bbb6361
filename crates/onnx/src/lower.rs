//! From the nodes of an ONNX file to a real-valued network or a forest.

use std::collections::HashMap;

use assay_graph::{Task, Window, ZERO};

use crate::Error;
use crate::proto::{Attribute, Constant, Model, NodeProto};
use crate::real::{Function, Id, Network, Op};
use crate::trees::Forest;

/// What was found in a file.
pub(crate) struct Lowered {
    /// Values of an input.
    pub(crate) width: usize,
    /// Whether inputs have more than one dimension, as images do: all their values then share one scale.
    pub(crate) image: bool,
    pub(crate) task: Task,
    pub(crate) labels: Vec<String>,
    pub(crate) body: Body,
}

pub(crate) enum Body {
    Network(Network),
    Trees(Forest),
}

/// The most values that one tensor of an example may have.
const WIDTH_MAX: usize = assay_graph::limits::WIDTH;

/// What a name stands for.
#[derive(Clone)]
enum Term {
    /// A value of the network with its dimensions, without the batch.
    Real(Id, Vec<usize>),
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
pub(crate) fn lower(model: &Model) -> Result<Lowered, Error> {
    let [(name, dims)] = model.inputs.as_slice() else {
        return Err(Error::Unsupported(format!("{} inputs", model.inputs.len())));
    };
    let shape = dims.get(1..).unwrap_or_default().to_vec();
    let width = product(&shape).filter(|width| *width > 0 && !shape.is_empty());
    let Some(width) = width.filter(|width| *width <= WIDTH_MAX) else {
        return Err(Error::Unsupported("an input without fixed dimensions behind the batch".into()));
    };
    let image = shape.len() > 1;
    let mut uses: HashMap<&str, usize> = HashMap::new();
    for name in model.nodes.iter().flat_map(|node| &node.inputs).chain(&model.outputs) {
        *uses.entry(name).or_default() += 1;
    }
    let mut this = Lowering {
        model,
        constants: model.constants.clone(),
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
    Ok(Lowered { width, image, task, labels, body })
}

fn product(dims: &[usize]) -> Option<usize> {
    dims.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim))
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

    fn int(&self, name: &str, default: i64) -> i64 {
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
        let width = product(&shape).filter(|width| (1..=WIDTH_MAX).contains(width));
        let width = width.ok_or_else(|| invalid(node, "its result is empty or too large"))?;
        self.ops.push(op);
        self.widths.push(width);
        self.set(node, Term::Real(self.ops.len() - 1, shape))
    }

    fn set(&mut self, node: &NodeProto, term: Term) -> Result<(), Error> {
        let name = node.outputs.first().ok_or_else(|| invalid(node, "it has no output"))?;
        self.terms.insert(name.clone(), term);
        Ok(())
    }

    fn constant(&self, node: &NodeProto, at: usize) -> Option<&Constant> {
        self.constants.get(node.input(at)?)
    }

    fn real(&self, node: &NodeProto, at: usize) -> Result<(Id, Vec<usize>), Error> {
        match node.input(at).and_then(|name| self.terms.get(name)) {
            Some(Term::Real(id, shape)) => Ok((*id, shape.clone())),
            Some(Term::After) => Err(unsupported(node, "behind a softmax or a label")),
            None => Err(invalid(node, format!("its input {at} is not there"))),
        }
    }

    fn node(&mut self, node: &NodeProto) -> Result<(), Error> {
        let is_after = |name: &String| matches!(self.terms.get(name), Some(Term::After));
        if node.inputs.iter().any(is_after) {
            return self.after(node);
        }
        match (node.domain.as_str(), node.operator.as_str()) {
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
                if node.operator == "Cast" && ![1, 10, 11, 16].contains(&node.int("to", 1)) {
                    return Err(unsupported(node, "to a type that is no floating-point number"));
                }
                let (id, shape) = self.real(node, 0)?;
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
            ("", "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze") => self.reshape(node),
            ("", "Transpose") => self.transpose(node),
            ("", "Concat") => self.concat(node),
            ("", "Softmax" | "LogSoftmax" | "ArgMax") => {
                let (id, shape) = self.real(node, 0)?;
                if shape.len() != 1 {
                    return Err(unsupported(node, "over more than the classes of an example"));
                }
                self.score(node, id, Task::Classes)
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
                    "Gelu" if node.string("approximate") != "tanh" => Function::Gelu,
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
                if function == Function::Sigmoid && classifies && shape.len() == 1 {
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
        let Some(matrix) = self.constant(node, 1).cloned() else {
            return Err(unsupported(node, "of two computed values"));
        };
        if node.int("transA", 0) != 0 {
            return Err(unsupported(node, "with transA"));
        }
        let ([rows, columns], transposed) = match (matrix.dims.as_slice(), node.int("transB", 0) != 0) {
            ([k, n], false) => ([*n, *k], true),
            ([n, k], true) => ([*n, *k], false),
            _ => return Err(unsupported(node, "with a constant that is no matrix")),
        };
        if shape != [columns] || rows == 0 {
            return Err(invalid(
                node,
                format!("a matrix for {columns} values meets the dimensions {shape:?}"),
            ));
        }
        let (alpha, beta) = (node.float("alpha", 1.0), node.float("beta", 1.0));
        let numbers = &matrix.numbers;
        let weights = (0..rows * columns)
            .map(|i| alpha * if transposed { numbers[i % columns * rows + i / columns] } else { numbers[i] })
            .collect();
        let bias = match (node.operator.as_str(), self.constant(node, 2)) {
            ("Gemm", Some(bias)) => broadcast(node, bias, &[rows])?.iter().map(|b| beta * b).collect(),
            ("Gemm", None) if node.input(2).is_some() => {
                return Err(unsupported(node, "with a computed bias"));
            }
            _ => vec![0.0; rows],
        };
        self.push(node, Op::Affine { x, weights, bias }, vec![rows])
    }

    fn linear(&mut self, node: &NodeProto) -> Result<(), Error> {
        let (x, shape) = self.real(node, 0)?;
        let columns = self.widths[x];
        let list = |name: &str| node.attribute(name).map_or(Vec::new(), |attribute| attribute.floats.clone());
        let (weights, mut bias) = (list("coefficients"), list("intercepts"));
        if shape.len() != 1 || weights.is_empty() || !weights.len().is_multiple_of(columns) {
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
        self.push(node, Op::Affine { x, weights, bias }, vec![rows])?;
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
        let constant = [self.constant(node, 0).cloned(), self.constant(node, 1).cloned()];
        match constant {
            [None, None] => {
                let ((a, shape), (b, other)) = (self.real(node, 0)?, self.real(node, 1)?);
                let sign = match operator {
                    "Add" => 1.0,
                    "Sub" => -1.0,
                    _ => return Err(unsupported(node, "of two computed values")),
                };
                if shape != other {
                    return Err(unsupported(node, "of two computed values with different dimensions"));
                }
                self.push(node, Op::Add { terms: vec![(a, 1.0), (b, sign)] }, shape)
            }
            [None, Some(constant)] => {
                let (x, shape) = self.real(node, 0)?;
                let list = broadcast(node, &constant, &shape)?;
                let ones = vec![1.0; list.len()];
                let zeros = vec![0.0; list.len()];
                let (scale, offset) = match operator {
                    "Add" => (ones, list),
                    "Sub" => (ones, list.iter().map(|x| -x).collect()),
                    "Mul" => (list, zeros),
                    _ => (list.iter().map(|x| 1.0 / x).collect(), zeros),
                };
                self.scale(node, x, shape, scale, offset)
            }
            [Some(constant), None] => {
                let (x, shape) = self.real(node, 1)?;
                let list = broadcast(node, &constant, &shape)?;
                let len = list.len();
                let (scale, offset) = match operator {
                    "Add" => (vec![1.0; len], list),
                    "Sub" => (vec![-1.0; len], list),
                    "Mul" => (list, vec![0.0; len]),
                    _ => return Err(unsupported(node, "by a computed value")),
                };
                self.scale(node, x, shape, scale, offset)
            }
            [Some(_), Some(_)] => Err(unsupported(node, "of two constants; fold them at the export")),
        }
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
            let fold = |weights: &mut [f64], bias: &mut [f64], scale: &[f64], offset: &[f64]| {
                let columns = weights.len() / bias.len();
                for (row, weights) in weights.chunks_exact_mut(columns).enumerate() {
                    weights.iter_mut().for_each(|weight| *weight *= scale[row]);
                    bias[row] = bias[row] * scale[row] + offset[row];
                }
            };
            match &mut self.ops[x] {
                Op::Affine { weights, bias, .. } => {
                    fold(weights, bias, &scale, &offset);
                    return self.set(node, Term::Real(x, shape));
                }
                Op::Conv { weights, bias, .. } => {
                    let plane = scale.len() / bias.len();
                    let uniform = |list: &[f64]| {
                        list.chunks_exact(plane).all(|plane| plane.iter().all(|x| *x == plane[0]))
                    };
                    if uniform(&scale) && uniform(&offset) {
                        let first = |list: &[f64]| list.iter().step_by(plane).copied().collect::<Vec<_>>();
                        fold(weights, bias, &first(&scale), &first(&offset));
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
        let channels = shape_at(&shape, 0);
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
        let Some(filters) = self.constant(node, 1).cloned() else {
            return Err(unsupported(node, "with computed filters"));
        };
        let ([channels, height, width], [count, _, kh, kw]) = (shape.as_slice(), filters.dims.as_slice())
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
        let shape = vec![*count, window.output[0] as usize, window.output[1] as usize];
        self.push(node, Op::Conv { x, window, weights: filters.numbers, bias }, shape)
    }

    fn pool(&mut self, node: &NodeProto) -> Result<(), Error> {
        let (x, shape) = self.real(node, 0)?;
        let [channels, height, width] = *shape.as_slice() else {
            return Err(unsupported(node, "in other than two dimensions"));
        };
        let kernel = match node.attribute("kernel_shape").map(|attribute| attribute.ints.as_slice()) {
            _ if node.operator.starts_with("Global") => [height, width],
            Some(&[h, w]) => [usize::try_from(h).unwrap_or(0), usize::try_from(w).unwrap_or(0)],
            _ => return Err(unsupported(node, "in other than two dimensions")),
        };
        // Each channel for itself: as a convolution with as many groups as channels.
        let window = self.window(node, [channels, height, width], channels, channels, kernel)?;
        let shape = vec![channels, window.output[0] as usize, window.output[1] as usize];
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

    /// Reshapes keep the order of values, so only the dimensions change.
    fn reshape(&mut self, node: &NodeProto) -> Result<(), Error> {
        let (x, shape) = self.real(node, 0)?;
        let width = self.widths[x];
        let shape = match node.operator.as_str() {
            "Flatten" if node.int("axis", 1) == 1 => vec![width],
            "Flatten" => return Err(unsupported(node, "across the batch")),
            "Reshape" => {
                let Some(target) = self.constant(node, 1) else {
                    return Err(unsupported(node, "to a computed shape"));
                };
                let dims: Vec<i64> = target.numbers.iter().map(|n| *n as i64).collect();
                // The first dimension is the batch, however it is written; a lone one means one number an example.
                let rest = if dims.len() < 2 { &[1][..] } else { &dims[1..] };
                let mut known = 1usize;
                let mut shape = Vec::new();
                for (axis, dim) in rest.iter().enumerate() {
                    let size = match dim {
                        0 => shape_at(&self.real(node, 0)?.1, axis),
                        -1 => 0,
                        dim => usize::try_from(*dim).unwrap_or(0),
                    };
                    known = known.saturating_mul(size.max(1));
                    shape.push(size);
                }
                if let Some(free) = shape.iter_mut().find(|size| **size == 0) {
                    *free = width / known;
                }
                if product(&shape) != Some(width) {
                    return Err(unsupported(node, "across the batch"));
                }
                shape
            }
            _ => {
                // Dimensions of one come and go; the batch stays first.
                let mut kept: Vec<usize> = shape.iter().copied().filter(|dim| *dim != 1).collect();
                if kept.is_empty() {
                    kept.push(1);
                }
                kept
            }
        };
        self.set(node, Term::Real(x, shape))
    }

    fn transpose(&mut self, node: &NodeProto) -> Result<(), Error> {
        let (x, shape) = self.real(node, 0)?;
        let order: Vec<usize> = match node.attribute("perm") {
            Some(attribute) => {
                attribute.ints.iter().map(|axis| usize::try_from(*axis).unwrap_or(usize::MAX)).collect()
            }
            None => return Err(unsupported(node, "across the batch")),
        };
        let mut sorted = order.clone();
        sorted.sort_unstable();
        if order.first() != Some(&0) || sorted != (0..=shape.len()).collect::<Vec<_>>() {
            return Err(unsupported(node, "across the batch"));
        }
        let order: Vec<usize> = order[1..].iter().map(|axis| axis - 1).collect();
        let out: Vec<usize> = order.iter().map(|axis| shape[*axis]).collect();
        let strides: Vec<usize> = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
        let index = (0..self.widths[x])
            .map(|mut at| {
                let mut from = 0;
                for (axis, size) in order.iter().zip(&out).rev() {
                    from += at % size * strides[*axis];
                    at /= size;
                }
                from as u32
            })
            .collect();
        self.push(node, Op::Gather { inputs: vec![x], index }, out)
    }

    fn concat(&mut self, node: &NodeProto) -> Result<(), Error> {
        let parts = (0..node.inputs.len()).map(|at| self.real(node, at)).collect::<Result<Vec<_>, _>>()?;
        let rank = parts.first().map_or(0, |(_, shape)| shape.len());
        let axis = node.int("axis", 1);
        let axis = usize::try_from(if axis < 0 { axis + rank as i64 + 1 } else { axis }).unwrap_or(0);
        let fits = |(_, shape): &(Id, Vec<usize>)| {
            shape.len() == rank && (0..rank).all(|i| i + 1 == axis || shape[i] == parts[0].1[i])
        };
        if axis == 0 || axis > rank || !parts.iter().all(fits) {
            return Err(unsupported(node, "across the batch or of parts that do not fit"));
        }
        let mut out = parts[0].1.clone();
        out[axis - 1] = parts.iter().map(|(_, shape)| shape[axis - 1]).sum();
        let outer: usize = out[..axis - 1].iter().product();
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

fn shape_at(shape: &[usize], axis: usize) -> usize {
    shape.get(axis).copied().unwrap_or(0)
}

/// A constant at the dimensions of an example, by NumPy's rules.
fn broadcast(node: &NodeProto, constant: &Constant, shape: &[usize]) -> Result<Vec<f64>, Error> {
    let dims: Vec<usize> = constant.dims.clone();
    // A constant may also have the batch's dimension, which must be one.
    let dims = if dims.len() == shape.len() + 1 && dims[0] == 1 { dims[1..].to_vec() } else { dims };
    let skip = shape.len().checked_sub(dims.len());
    let fits =
        skip.is_some_and(|skip| dims.iter().zip(&shape[skip..]).all(|(dim, size)| dim == size || *dim == 1));
    let (Some(skip), true) = (skip, fits) else {
        return Err(invalid(node, format!("a constant of dimensions {dims:?} meets {shape:?}")));
    };
    let width: usize = shape.iter().product();
    Ok((0..width)
        .map(|mut at| {
            let (mut from, mut stride) = (0, 1);
            for axis in (0..shape.len()).rev() {
                let here = at % shape[axis];
                at /= shape[axis];
                if axis >= skip {
                    let dim = dims[axis - skip];
                    from += if dim == 1 { 0 } else { here * stride };
                    stride *= dim;
                }
            }
            constant.numbers[from]
        })
        .collect())
}
