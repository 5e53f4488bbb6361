//! Dimensions: what operators that only move values do to them, and NumPy's broadcasting.
//!
//! The first dimension of a computed value is that of the batch times a factor, which is nearly always one: the dimensions here
//! describe one example, and nothing may move values across examples.

use crate::proto::{Constant, NodeProto};

/// The most values that one tensor may have.
pub(crate) const WIDTH_MAX: usize = assay_graph::limits::WIDTH;

/// One output of a node that only moves values.
pub(crate) struct Moved {
    pub(crate) shape: Vec<usize>,
    /// For each value, which one of the input it is; `None` when all stay in their order.
    pub(crate) index: Option<Vec<u32>>,
}

/// Why values cannot be moved like that.
pub(crate) type Reason = &'static str;

const BATCH: Reason = "across the batch";
const SIZES: Reason = "with sizes that do not fit its input";

/// The number of values, `None` when it overflows.
pub(crate) fn product(dims: &[usize]) -> Option<usize> {
    dims.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim))
}

fn strides(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect()
}

/// All sums of one offset an axis, the last axis innermost; the number of values is bounded by the caller.
fn sums(offsets: &[Vec<usize>]) -> Vec<u32> {
    let mut out = vec![0u32];
    for axis in offsets {
        out = out.iter().flat_map(|first| axis.iter().map(move |offset| first + *offset as u32)).collect();
    }
    out
}

/// The dimensions that two tensors have in common, by NumPy's rules.
pub(crate) fn broadcast_shape(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |dims: &[usize], axis: usize| (axis + dims.len()).checked_sub(rank).map_or(1, |axis| dims[axis]);
    (0..rank)
        .map(|axis| match (at(a, axis), at(b, axis)) {
            (a, b) if a == b || b == 1 => Some(a),
            (1, b) => Some(b),
            _ => None,
        })
        .collect()
}

/// For each value of a tensor of the dimensions `to`, which value of one of the dimensions `from` it is.
pub(crate) fn broadcast_index(from: &[usize], to: &[usize]) -> Option<Vec<u32>> {
    if product(to)? > WIDTH_MAX {
        return None;
    }
    let skip = to.len().checked_sub(from.len())?;
    let strides = strides(from);
    let offsets = (0..to.len()).map(|axis| match axis.checked_sub(skip) {
        None => Some(vec![0; to[axis]]),
        Some(own) if from[own] == to[axis] => Some((0..to[axis]).map(|i| i * strides[own]).collect()),
        Some(own) if from[own] == 1 => Some(vec![0; to[axis]]),
        Some(_) => None,
    });
    Some(sums(&offsets.collect::<Option<Vec<_>>>()?))
}

/// The integers of a list.
pub(crate) fn integers(constant: &Constant) -> Vec<i64> {
    constant.numbers.iter().map(|n| *n as i64).collect()
}

/// An axis that may count from the end.
fn axis_of(axis: i64, rank: usize) -> Result<usize, Reason> {
    let axis = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
    usize::try_from(axis).ok().filter(|axis| *axis < rank).ok_or("along an axis that is not there")
}

/// A list that older versions have as an attribute and newer ones as an input.
pub(crate) fn list(node: &NodeProto, name: &str, input: Option<&Constant>) -> Option<Vec<i64>> {
    input.map(integers).or_else(|| node.attribute(name).map(|attribute| attribute.ints.clone()))
}

/// What a node that only moves values makes of a tensor of these dimensions; `None` for other operators. `argument` gives the
/// constants among its inputs. `batch` is the size of the file's batch, 1 when it is not fixed, for a computed value, and `None`
/// for a constant, which has no batch.
pub(crate) fn moved<'a>(
    node: &NodeProto,
    shape: &[usize],
    argument: &dyn Fn(usize) -> Option<&'a Constant>,
    batch: Option<usize>,
) -> Option<Result<Vec<Moved>, Reason>> {
    let one = |moved: Result<Moved, Reason>| Some(moved.map(|moved| vec![moved]));
    match node.operator.as_str() {
        "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" => {
            one(reshaped(node, shape, argument, batch).map(|shape| Moved { shape, index: None }))
        }
        "Transpose" => one(transposed(node, shape, batch)),
        "Slice" => one(sliced(node, shape, argument, batch)),
        "Expand" => {
            let target = argument(1).map(integers);
            let target =
                target.and_then(|dims| dims.into_iter().map(|dim| usize::try_from(dim).ok()).collect());
            let expand = |target: Vec<usize>| {
                let shape_out = broadcast_shape(shape, &target)?;
                let index = broadcast_index(shape, &shape_out)?;
                Some(Moved { shape: shape_out, index: Some(index) })
            };
            let found = target.and_then(expand).ok_or(SIZES);
            one(found.and_then(|moved| {
                let first = moved.shape.first() == shape.first() && moved.shape.len() == shape.len();
                if batch.is_some() && !first { Err(BATCH) } else { Ok(moved) }
            }))
        }
        "Gather" => argument(1).map(|places| gathered(node, shape, places, batch).map(|moved| vec![moved])),
        "Split" => Some(split(node, shape, argument, batch)),
        _ => None,
    }
}

fn reshaped<'a>(
    node: &NodeProto,
    shape: &[usize],
    argument: &dyn Fn(usize) -> Option<&'a Constant>,
    batch: Option<usize>,
) -> Result<Vec<usize>, Reason> {
    let width = product(shape).ok_or(SIZES)?;
    let axes = || list(node, "axes", argument(1));
    match node.operator.as_str() {
        "Flatten" => {
            let axis = node.int("axis", 1);
            let axis = if axis == shape.len() as i64 { shape.len() } else { axis_of(axis, shape.len())? };
            if axis == 0 && batch.is_some() {
                return Err(BATCH);
            }
            let first = product(&shape[..axis]).ok_or(SIZES)?;
            Ok(vec![first, width / first.max(1)])
        }
        "Squeeze" => {
            let drop = match axes() {
                Some(axes) => {
                    axes.iter().map(|axis| axis_of(*axis, shape.len())).collect::<Result<Vec<_>, _>>()?
                }
                None => {
                    let first = usize::from(batch.is_some());
                    (first..shape.len()).filter(|axis| shape[*axis] == 1).collect()
                }
            };
            if drop.iter().any(|axis| shape[*axis] != 1) {
                return Err(SIZES);
            }
            if batch.is_some() && drop.contains(&0) {
                return Err(BATCH);
            }
            Ok((0..shape.len()).filter(|axis| !drop.contains(axis)).map(|axis| shape[axis]).collect())
        }
        "Unsqueeze" => {
            let axes = axes().ok_or("without axes")?;
            let rank = shape.len() + axes.len();
            let axes = axes.iter().map(|axis| axis_of(*axis, rank)).collect::<Result<Vec<_>, _>>()?;
            if batch.is_some() && axes.contains(&0) {
                return Err(BATCH);
            }
            let mut rest = shape.iter().copied();
            (0..rank)
                .map(|axis| if axes.contains(&axis) { Some(1) } else { rest.next() })
                .collect::<Option<Vec<_>>>()
                .ok_or(SIZES)
        }
        _ => {
            let target = argument(1).map(integers).ok_or("to a computed shape")?;
            let copies = node.int("allowzero", 0) == 0;
            let mut out: Vec<Option<usize>> = Vec::with_capacity(target.len());
            for (axis, dim) in target.iter().enumerate() {
                out.push(match dim {
                    0 if copies => Some(*shape.get(axis).ok_or(SIZES)?),
                    -1 => None,
                    // The batch as the file has it is no factor of an example.
                    dim if axis == 0 && batch.is_some_and(|batch| *dim == batch as i64) => Some(1),
                    dim => Some(usize::try_from(*dim).map_err(|_| SIZES)?),
                });
            }
            let known: Vec<usize> = out.iter().flatten().copied().collect();
            let known_product = product(&known).ok_or(SIZES)?;
            let free = width.checked_div(known_product).unwrap_or(0);
            let dims: Vec<usize> = out.into_iter().map(|dim| dim.unwrap_or(free)).collect();
            match (product(&dims) == Some(width), batch) {
                (true, _) => Ok(dims),
                (false, Some(_)) => Err(BATCH),
                (false, None) => Err(SIZES),
            }
        }
    }
}

fn transposed(node: &NodeProto, shape: &[usize], batch: Option<usize>) -> Result<Moved, Reason> {
    let order: Vec<usize> = match node.attribute("perm") {
        Some(attribute) => {
            attribute.ints.iter().map(|axis| usize::try_from(*axis).unwrap_or(usize::MAX)).collect()
        }
        None => (0..shape.len()).rev().collect(),
    };
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if sorted != (0..shape.len()).collect::<Vec<_>>() {
        return Err(SIZES);
    }
    if batch.is_some() && order.first() != Some(&0) {
        return Err(BATCH);
    }
    let strides = strides(shape);
    let offsets: Vec<Vec<usize>> =
        order.iter().map(|axis| (0..shape[*axis]).map(|i| i * strides[*axis]).collect()).collect();
    Ok(Moved { shape: order.iter().map(|axis| shape[*axis]).collect(), index: Some(sums(&offsets)) })
}

fn sliced<'a>(
    node: &NodeProto,
    shape: &[usize],
    argument: &dyn Fn(usize) -> Option<&'a Constant>,
    batch: Option<usize>,
) -> Result<Moved, Reason> {
    const COMPUTED: Reason = "with computed bounds";
    let starts = list(node, "starts", argument(1)).ok_or(COMPUTED)?;
    let ends = list(node, "ends", argument(2)).ok_or(COMPUTED)?;
    let axes = list(node, "axes", argument(3)).unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = argument(4).map_or_else(|| vec![1; starts.len()], integers);
    if [ends.len(), axes.len(), steps.len()].iter().any(|len| *len != starts.len()) {
        return Err(SIZES);
    }
    let strides = strides(shape);
    let mut offsets: Vec<Vec<usize>> =
        (0..shape.len()).map(|axis| (0..shape[axis]).map(|i| i * strides[axis]).collect()).collect();
    for (((start, end), axis), step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
        let axis = axis_of(*axis, shape.len())?;
        if *step <= 0 {
            return Err("backwards");
        }
        let size = shape[axis] as i64;
        let bound = |at: i64| if at < 0 { at.saturating_add(size).max(0) } else { at.min(size) };
        let step = usize::try_from(*step).unwrap_or(usize::MAX);
        // Both bounds lie in 0..=size.
        let places = (bound(*start)..bound(*end)).step_by(step);
        let kept: Vec<usize> = places.map(|i| i as usize * strides[axis]).collect();
        if axis == 0 && batch.is_some() && kept.len() != shape[0] {
            return Err(BATCH);
        }
        offsets[axis] = kept;
    }
    Ok(Moved { shape: offsets.iter().map(Vec::len).collect(), index: Some(sums(&offsets)) })
}

fn gathered(
    node: &NodeProto,
    shape: &[usize],
    places: &Constant,
    batch: Option<usize>,
) -> Result<Moved, Reason> {
    let axis = axis_of(node.int("axis", 0), shape.len())?;
    if axis == 0 && batch.is_some() {
        return Err(BATCH);
    }
    let (strides, size) = (strides(shape), shape[axis] as i64);
    let place = |at: i64| {
        let at = if at < 0 { at.saturating_add(size) } else { at };
        if (0..size).contains(&at) { Ok(at as usize * strides[axis]) } else { Err(SIZES) }
    };
    let kept = integers(places).into_iter().map(place).collect::<Result<Vec<_>, _>>()?;
    let mut offsets: Vec<Vec<usize>> =
        (0..shape.len()).map(|axis| (0..shape[axis]).map(|i| i * strides[axis]).collect()).collect();
    offsets[axis] = kept;
    let lens: Vec<usize> = offsets.iter().map(Vec::len).collect();
    if product(&lens).is_none_or(|width| width > WIDTH_MAX) {
        return Err(SIZES);
    }
    let out = [&shape[..axis], &places.dims, &shape[axis + 1..]].concat();
    Ok(Moved { shape: out, index: Some(sums(&offsets)) })
}

fn split<'a>(
    node: &NodeProto,
    shape: &[usize],
    argument: &dyn Fn(usize) -> Option<&'a Constant>,
    batch: Option<usize>,
) -> Result<Vec<Moved>, Reason> {
    let axis = axis_of(node.int("axis", 0), shape.len())?;
    let count = node.outputs.len().max(1);
    let parts: Vec<usize> = match list(node, "split", argument(1)) {
        Some(parts) => {
            parts.iter().map(|part| usize::try_from(*part).map_err(|_| SIZES)).collect::<Result<_, _>>()?
        }
        None => {
            let each = shape[axis].div_ceil(count);
            (0..count).map(|i| shape[axis].saturating_sub(i * each).min(each)).collect()
        }
    };
    let total = parts.iter().try_fold(0usize, |sum, part| sum.checked_add(*part));
    if parts.len() != count || total != Some(shape[axis]) || parts.contains(&0) {
        return Err(SIZES);
    }
    if axis == 0 && batch.is_some() {
        return Err(BATCH);
    }
    let strides = strides(shape);
    let mut first = 0;
    let part = |len: usize| {
        let offsets: Vec<Vec<usize>> = (0..shape.len())
            .map(|own| match own == axis {
                true => (first..first + len).map(|i| i * strides[own]).collect(),
                false => (0..shape[own]).map(|i| i * strides[own]).collect(),
            })
            .collect();
        first += len;
        Moved { shape: offsets.iter().map(Vec::len).collect(), index: Some(sums(&offsets)) }
    };
    Ok(parts.into_iter().map(part).collect())
}
