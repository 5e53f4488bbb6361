//! The edges of a graph to real numbers. They are part of its id, but no part of what a proof is about: a proof speaks of
//! integers in and integers out, and whoever checks it makes the one from the other with this code.

use std::collections::HashMap;

use crate::{Error, Graph, Range, limits};

/// How the integers of an input are made from real numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Encoding {
    /// `round((x - offset) · scale)`, ties away from zero, clamped to the input's range; one pair for all values or one each.
    Affine {
        /// What is subtracted.
        offset: Vec<f64>,
        /// What multiplies the difference.
        scale: Vec<f64>,
    },
    /// How many of these thresholds, in ascending order, lie below `x`: exact for trees, which only compare.
    Rank {
        /// One list a value.
        thresholds: Vec<Vec<f32>>,
    },
    /// Row `x` of a table, for each number `x` one after the other: an example has fewer numbers than the graph has inputs. So
    /// words of a large vocabulary cost a proof nothing, since whoever checks it takes their rows from the table.
    Rows {
        /// Values of a row, at least one; the inputs of an example are as many rows as fit.
        len: u32,
        /// The table, row by row.
        values: Vec<i16>,
    },
}

/// What the outputs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Numbers.
    Numbers,
    /// Scores of classes: the largest wins, the first of equals.
    Classes,
    /// One score of two classes: the second wins when it is positive.
    Binary,
}

/// How inputs are made from real numbers and what outputs mean.
#[derive(Clone, Debug, PartialEq)]
pub struct Interface {
    /// From real numbers to inputs.
    pub encoding: Encoding,
    /// What the outputs are.
    pub task: Task,
    /// A real output is `integer · scale + offset`.
    pub scale: f64,
    /// One an output.
    pub offset: Vec<f64>,
    /// The names of the classes; none for numbers.
    pub labels: Vec<String>,
}

impl Interface {
    /// Integers in, integers out.
    pub fn plain(outputs: usize) -> Interface {
        Interface {
            encoding: Encoding::Affine { offset: vec![0.0], scale: vec![1.0] },
            task: Task::Numbers,
            scale: 1.0,
            offset: vec![0.0; outputs],
            labels: Vec::new(),
        }
    }

    pub(crate) fn check(&self, inputs: &[Range], outputs: usize) -> Result<(), Error> {
        let one_or_each = |list: &[f64]| {
            (list.len() == 1 || list.len() == inputs.len()) && list.iter().all(|x| x.is_finite())
        };
        let encoding = match &self.encoding {
            Encoding::Affine { offset, scale } => one_or_each(offset) && one_or_each(scale),
            Encoding::Rank { thresholds } => {
                thresholds.len() == inputs.len()
                    && thresholds.iter().all(|list| list.is_sorted() && list.iter().all(|x| x.is_finite()))
            }
            Encoding::Rows { len, values } => {
                let len = *len as usize;
                let whole = len > 0
                    && (1..=limits::WEIGHTS).contains(&values.len())
                    && values.len().is_multiple_of(len)
                    && inputs.len().is_multiple_of(len);
                // Every row may be meant anywhere.
                whole
                    && Range::of_columns(len, values).iter().enumerate().all(|(at, column)| {
                        inputs[at..]
                            .iter()
                            .step_by(len)
                            .all(|range| range.contains(column.low) && range.contains(column.high))
                    })
            }
        };
        let classes = match self.task {
            Task::Numbers => self.labels.is_empty(),
            Task::Classes => self.labels.len() == outputs,
            Task::Binary => self.labels.len() == 2 && outputs == 1,
        };
        let real = self.scale.is_finite()
            && self.offset.len() == outputs
            && self.offset.iter().all(|x| x.is_finite());
        if encoding && classes && real {
            return Ok(());
        }
        Err(Error::invalid("its interface does not fit its inputs and outputs"))
    }
}

impl Graph {
    /// How many numbers an example has for whoever asks: as many as the graph has inputs, or with [`Encoding::Rows`] rows.
    pub fn numbers(&self) -> usize {
        match &self.interface().encoding {
            Encoding::Affine { .. } | Encoding::Rank { .. } => self.inputs().len(),
            Encoding::Rows { len, .. } => self.inputs().len() / *len as usize,
        }
    }

    /// The row numbers that inputs stand for, of equal rows the first, example by example; `None` when the encoding has no rows or the inputs are none of them.
    pub fn row_numbers(&self, inputs: &[i32]) -> Option<Vec<u32>> {
        let Encoding::Rows { len, values } = &self.interface().encoding else { return None };
        let len = *len as usize;
        if !inputs.len().is_multiple_of(len) {
            return None;
        }
        let mut numbers = HashMap::new();
        for (row, number) in values.chunks_exact(len).zip(0u32..) {
            numbers.entry(row).or_insert(number);
        }
        let number = |input: &[i32]| {
            let row: Option<Vec<i16>> = input.iter().map(|value| i16::try_from(*value).ok()).collect();
            numbers.get(row?.as_slice()).copied()
        };
        inputs.chunks_exact(len).map(number).collect()
    }

    /// The integers of real inputs, example by example.
    ///
    /// # Errors
    /// [`Error::Input`] when the number of values is no positive multiple of [`numbers`](Self::numbers), or a value is not finite or not
    /// the number of a row.
    pub fn encode_inputs(&self, reals: &[f64]) -> Result<Vec<i32>, Error> {
        let width = self.numbers();
        if reals.is_empty() || !reals.len().is_multiple_of(width) {
            return Err(Error::Input(format!("{} values, where each example has {width}", reals.len())));
        }
        let pick = |list: &[f64], at: usize| if list.len() == 1 { list[0] } else { list[at] };
        let mut out = Vec::with_capacity(reals.len() / width * self.inputs().len());
        for (index, &x) in reals.iter().enumerate() {
            let at = index % width;
            if !x.is_finite() {
                return Err(Error::Input(format!("value {at} is not a finite number")));
            }
            let Range { low, high } = self.inputs()[at];
            match &self.interface().encoding {
                Encoding::Affine { offset, scale } => {
                    // Clamped as a float first; the conversion is then exact.
                    let scaled = (x - pick(offset, at)) * pick(scale, at);
                    out.push(scaled.round().clamp(low.into(), high.into()) as i32);
                }
                Encoding::Rank { thresholds } => {
                    // Models in ONNX compare 32-bit floats.
                    let rank = thresholds[at].partition_point(|threshold| *threshold < x as f32);
                    out.push((rank as i32).clamp(low, high));
                }
                Encoding::Rows { len, values } => {
                    let len = *len as usize;
                    let rows = values.len() / len;
                    if x < 0.0 || x >= rows as f64 || x.fract() != 0.0 {
                        return Err(Error::Input(format!(
                            "value {at} is {x}, where the model has the words 0 to {}",
                            rows - 1
                        )));
                    }
                    out.extend(values[x as usize * len..][..len].iter().map(|value| i32::from(*value)));
                }
            }
        }
        Ok(out)
    }

    /// The real numbers that outputs stand for, example by example.
    pub fn decode_outputs(&self, outputs: &[i32]) -> Vec<f64> {
        let Interface { scale, offset, .. } = self.interface();
        outputs.iter().enumerate().map(|(i, y)| f64::from(*y) * scale + offset[i % offset.len()]).collect()
    }

    /// The index of the class that one example's outputs choose; `None` when they are numbers.
    pub fn class(&self, outputs: &[i32]) -> Option<usize> {
        match self.interface().task {
            Task::Numbers => None,
            Task::Classes => {
                let real = self.decode_outputs(outputs);
                let mut best = 0;
                for (at, value) in real.iter().enumerate() {
                    if *value > real[best] {
                        best = at;
                    }
                }
                Some(best)
            }
            Task::Binary => {
                Some(usize::from(self.decode_outputs(outputs).first().is_some_and(|score| *score > 0.0)))
            }
        }
    }
}
