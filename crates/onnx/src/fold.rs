//! Operators on constants alone: exporters compute shapes, positions and masks with them.

use crate::proto::{Constant, NodeProto};
use crate::shape::{WIDTH_MAX, broadcast_index, broadcast_shape, integers, moved, product};

/// The outputs of a node whose inputs are all constants; `None` when it is not one of those that are known, or does not fit.
pub(crate) fn fold(node: &NodeProto, inputs: &[&Constant]) -> Option<Vec<Constant>> {
    let one =
        |dims: Vec<usize>, numbers: Vec<f64>| Some(vec![Constant { dims, numbers, strings: Vec::new() }]);
    let first = *inputs.first()?;
    if let Some(parts) = moved(node, &first.dims, &|at| inputs.get(at).copied(), None) {
        let part = |moved: crate::shape::Moved| {
            let numbers = match moved.index {
                None => first.numbers.clone(),
                Some(index) => index.iter().map(|at| first.numbers[*at as usize]).collect(),
            };
            Constant { dims: moved.shape, numbers, strings: Vec::new() }
        };
        return Some(parts.ok()?.into_iter().map(part).collect());
    }
    let unary =
        |f: &dyn Fn(f64) -> f64| one(first.dims.clone(), first.numbers.iter().map(|x| f(*x)).collect());
    let binary = |f: &dyn Fn(f64, f64) -> f64| {
        let second = *inputs.get(1)?;
        let dims = broadcast_shape(&first.dims, &second.dims)?;
        let (a, b) = (broadcast_index(&first.dims, &dims)?, broadcast_index(&second.dims, &dims)?);
        let numbers =
            a.iter().zip(&b).map(|(a, b)| f(first.numbers[*a as usize], second.numbers[*b as usize]));
        one(dims, numbers.collect())
    };
    let truth = |value: bool| f64::from(u8::from(value));
    let filled = |dims: &Constant, value: f64| {
        let dims: Vec<usize> =
            integers(dims).into_iter().map(|dim| usize::try_from(dim).ok()).collect::<Option<_>>()?;
        let width = product(&dims).filter(|width| *width <= WIDTH_MAX)?;
        one(dims, vec![value; width])
    };
    match node.operator.as_str() {
        "Cast" if matches!(node.int("to", 1), 6 | 7 | 9) => {
            let boolean = node.int("to", 1) == 9;
            unary(&|x| if boolean { truth(x != 0.0) } else { x.trunc() })
        }
        "Identity" | "Cast" => unary(&|x| x),
        "Add" => binary(&|a, b| a + b),
        "Sub" => binary(&|a, b| a - b),
        "Mul" => binary(&|a, b| a * b),
        // Shapes are divided as integers, and come out whole.
        "Div" => binary(&|a, b| if a % b == 0.0 { (a / b).trunc() } else { a / b }),
        "Pow" => binary(&libm::pow),
        "Equal" => binary(&|a, b| truth(a == b)),
        "Less" => binary(&|a, b| truth(a < b)),
        "LessOrEqual" => binary(&|a, b| truth(a <= b)),
        "Greater" => binary(&|a, b| truth(a > b)),
        "GreaterOrEqual" => binary(&|a, b| truth(a >= b)),
        "And" => binary(&|a, b| truth(a != 0.0 && b != 0.0)),
        "Or" => binary(&|a, b| truth(a != 0.0 || b != 0.0)),
        "Not" => unary(&|x| truth(x == 0.0)),
        "Neg" => unary(&|x| -x),
        "Sqrt" => unary(&libm::sqrt),
        "Reciprocal" => unary(&|x| 1.0 / x),
        "Where" => {
            let [condition, yes, no] = *inputs else { return None };
            let dims = broadcast_shape(&broadcast_shape(&condition.dims, &yes.dims)?, &no.dims)?;
            let at = |constant: &Constant| {
                let index = broadcast_index(&constant.dims, &dims)?;
                Some(index.iter().map(|at| constant.numbers[*at as usize]).collect::<Vec<_>>())
            };
            let (condition, yes, no) = (at(condition)?, at(yes)?, at(no)?);
            let pick = |((condition, yes), no): ((f64, f64), f64)| if condition != 0.0 { yes } else { no };
            one(dims, condition.into_iter().zip(yes).zip(no).map(pick).collect())
        }
        "ConstantOfShape" => {
            let value = node.attribute("value").and_then(|attribute| attribute.tensor.as_ref());
            filled(first, value.and_then(|tensor| tensor.numbers.first().copied()).unwrap_or(0.0))
        }
        "Range" => {
            let [start, limit, step] = [0, 1, 2].map(|at| inputs.get(at)?.numbers.first().copied());
            let (start, step) = (start?, step?);
            let count = ((limit? - start) / step).ceil();
            if !(0.0..=WIDTH_MAX as f64).contains(&count) {
                return None;
            }
            one(vec![count as usize], (0..count as usize).map(|i| start + i as f64 * step).collect())
        }
        "Concat" => {
            let rank = first.dims.len();
            let axis = node.int("axis", 0);
            let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok()?;
            let fits = |part: &&Constant| {
                part.dims.len() == rank && (0..rank).all(|i| i == axis || part.dims[i] == first.dims[i])
            };
            if axis >= rank || !inputs.iter().all(fits) {
                return None;
            }
            let mut dims = first.dims.clone();
            dims[axis] = inputs.iter().map(|part| part.dims[axis]).sum();
            let outer: usize = dims[..axis].iter().product();
            let mut numbers = Vec::new();
            for block in 0..outer {
                for part in inputs {
                    let len = part.numbers.len() / outer;
                    numbers.extend_from_slice(&part.numbers[block * len..(block + 1) * len]);
                }
            }
            one(dims, numbers)
        }
        "Trilu" => {
            let [.., rows, columns] = *first.dims.as_slice() else { return None };
            let by = inputs.get(1).and_then(|by| by.numbers.first().copied()).unwrap_or(0.0) as i64;
            let upper = node.int("upper", 1) != 0;
            let keep = |at: usize| {
                let (row, column) = ((at / columns % rows) as i64, (at % columns) as i64);
                if upper { column >= row.saturating_add(by) } else { column <= row.saturating_add(by) }
            };
            let numbers = first.numbers.iter().enumerate().map(|(at, x)| if keep(at) { *x } else { 0.0 });
            one(first.dims.clone(), numbers.collect())
        }
        _ => None,
    }
}
