//! Bounds the memory of a rendering template.
//!
//! The template engine counts instructions, but one instruction can make a value of any size: `s ~ s` in a loop doubles
//! a string each time. So before a template runs, its instructions are [rewritten](rewrite): in front of every one that
//! can make something larger than itself goes a call that works out an upper bound of the result from the operands and
//! takes it out of the rendering's [`Budget`], and text that is written is taken out as well. Nothing is ever given
//! back, so that what lives at one time is within the budget too.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::machinery::{Instruction, Instructions, Token, WhitespaceConfig, tokenize};
use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};

/// Most bytes of values and text that one rendering may make, in all: 64 times the longest prompt.
pub const MAX_TEMPLATE_MEMORY: usize = 64 << 20;

/// What an element of a list takes.
const ELEMENT: usize = 32;

/// Deepest nesting of a list or dictionary that is made into text.
const DEPTH: usize = 128;

/// Names that no template can write, for the calls that are put between its instructions.
const BEFORE: &str = " before";
const AFTER: &str = " after";

/// What is left for one rendering.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Arc<AtomicUsize>);

impl Budget {
    pub(crate) fn new() -> Budget {
        Budget(Arc::new(AtomicUsize::new(MAX_TEMPLATE_MEMORY)))
    }

    /// Whether something did not fit, after which everything is refused.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    /// Takes `bytes` out.
    pub(crate) fn take(&self, bytes: usize) -> Result<(), Error> {
        let left = self.0.load(Ordering::Relaxed);
        let rest = left.checked_sub(bytes).filter(|rest| *rest > 0);
        self.0.store(rest.unwrap_or(0), Ordering::Relaxed); // one rendering runs on one thread
        match rest {
            Some(_) => Ok(()),
            None => Err(Error::new(ErrorKind::InvalidOperation, "the template needs too much memory")),
        }
    }

    fn left(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes out what a value that exists now holds by itself.
    fn take_result(&self, value: &Value) -> Result<(), Error> {
        self.take(shallow(value))
    }

    /// Takes out what writing a value adds to the text.
    pub(crate) fn take_text(&self, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
        let escaped = if matches!(state.auto_escape(), AutoEscape::None) { 1 } else { 6 };
        self.take(printed(value, self.left()).saturating_mul(escaped))
    }
}

/// Adds the calls that [`rewrite`] puts in, and takes away filters that no template for chats needs and that make much
/// of little.
pub(crate) fn install(environment: &mut Environment<'_>, budget: &Budget) {
    for filter in ["batch", "slice", "pprint", "urlencode"] {
        environment.remove_filter(filter);
    }
    let own = budget.clone();
    environment.add_function(BEFORE, move |operands: Value, name: String| -> Result<Value, Error> {
        let operands: Vec<Value> = operands.try_iter()?.collect();
        own.take(estimate(&name, &operands, own.left())?)?;
        // They are unpacked in the other order.
        Ok(operands.into_iter().rev().collect())
    });
    let own = budget.clone();
    environment.add_function(AFTER, move |value: Value, _: Rest<Value>| -> Result<Value, Error> {
        own.take_result(&value)?;
        Ok(value)
    });
}

/// The bytes that a value holds itself, without what its elements hold.
fn shallow(value: &Value) -> usize {
    match value.kind() {
        ValueKind::String | ValueKind::Bytes => value.as_str().map_or(0, str::len),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => {
            value.len().unwrap_or(0).saturating_mul(ELEMENT)
        }
        _ => 0,
    }
}

/// At least the bytes that a value has as text, or something over `limit`. Lists may share their elements, so that a
/// small one can be endless as text: the count stops at the limit.
fn printed(value: &Value, limit: usize) -> usize {
    fn count(value: &Value, depth: usize, limit: usize, sum: &mut usize) {
        if *sum > limit {
            return;
        }
        if depth > DEPTH {
            *sum = usize::MAX;
            return;
        }
        match value.kind() {
            // A character takes at most six times its bytes when it is quoted.
            ValueKind::String if depth > 0 => {
                let text = value.as_str().unwrap_or_default();
                let plain =
                    text.bytes().filter(|byte| !matches!(byte, 0..=31 | b'"' | b'\'' | b'\\' | 127)).count();
                *sum = sum.saturating_add(plain + 6 * (text.len() - plain) + 4);
            }
            ValueKind::String => *sum = sum.saturating_add(value.as_str().map_or(0, str::len)),
            ValueKind::Seq | ValueKind::Iterable => {
                *sum = sum.saturating_add(2);
                for item in value.try_iter().into_iter().flatten() {
                    *sum = sum.saturating_add(2);
                    count(&item, depth + 1, limit, sum);
                    if *sum > limit {
                        return;
                    }
                }
            }
            ValueKind::Map => {
                *sum = sum.saturating_add(2);
                for key in value.try_iter().into_iter().flatten() {
                    *sum = sum.saturating_add(4);
                    count(&key, depth + 1, limit, sum);
                    count(&value.get_item(&key).unwrap_or_default(), depth + 1, limit, sum);
                    if *sum > limit {
                        return;
                    }
                }
            }
            _ => *sum = sum.saturating_add(64), // numbers, constants, names of functions
        }
    }
    let mut sum = 0;
    count(value, 0, limit, &mut sum);
    sum
}

/// An upper bound of what an operation, a filter or a method makes of its operands, the first of which is the value that
/// it is applied to.
fn estimate(name: &str, operands: &[Value], left: usize) -> Result<usize, Error> {
    let refused =
        |what: &str| Err(Error::new(ErrorKind::InvalidOperation, format!("{what} is not supported")));
    let text = |index: usize| operands.get(index).and_then(Value::as_str);
    let all = || operands.iter().fold(0_usize, |sum, value| sum.saturating_add(printed(value, left)));
    let number = |value: &Value| usize::try_from(value.clone()).unwrap_or(0);
    // Numbers among the operands, by name or not.
    let largest = || {
        let of = |value: &Value| match value.kind() {
            ValueKind::Map => {
                let values = value.try_iter().into_iter().flatten().map(|key| value.get_item(&key));
                values.map(|value| number(&value.unwrap_or_default())).max().unwrap_or(0)
            }
            _ => number(value),
        };
        operands[1..].iter().map(of).max().unwrap_or(0)
    };
    let pieces = |count: usize| text(0).map_or(0, str::len).saturating_add(count.saturating_mul(ELEMENT));
    Ok(match name {
        "~" => all(),
        "+" => operands.iter().fold(0, |sum: usize, value| sum.saturating_add(shallow(value))),
        "*" => match (operands, text(0).or(text(1))) {
            ([a, b], Some(repeated)) => repeated.len().saturating_mul(number(a).max(number(b))),
            ([a, b], None) => {
                let length = |value: &Value| if value.is_number() { None } else { value.len() };
                let count = length(a).or(length(b)).unwrap_or(0);
                count.saturating_mul(number(a).max(number(b))).saturating_mul(ELEMENT)
            }
            _ => 0,
        },
        "replace" => match (text(0), text(1), text(2)) {
            (Some(whole), Some(from), Some(to)) => {
                let count = whole.matches(from).count();
                whole.len().saturating_add(count.saturating_mul(to.len()))
            }
            _ => all(),
        },
        // As a method of the separator, or as a filter of the list.
        "join" => {
            let (list, separator) =
                match text(0).filter(|_| operands.get(1).is_some_and(|it| it.kind() != ValueKind::String)) {
                    Some(separator) => (operands.get(1), separator),
                    None => (operands.first(), text(1).unwrap_or_default()),
                };
            let Some(list) = list else { return Ok(0) };
            let count = list.try_iter().into_iter().flatten().take(left / ELEMENT + 1).count();
            printed(list, left).saturating_add(count.saturating_mul(separator.len()))
        }
        "indent" => {
            let lines = text(0).map_or(1, |text| text.matches('\n').count() + 1);
            all().saturating_add(lines.saturating_mul(largest()))
        }
        "format" => {
            // Widths and precisions are written in the format.
            let format = text(0).unwrap_or_default();
            let digits = format.split(|character: char| !character.is_ascii_digit());
            let widest = digits.map(|digits| match digits {
                "" => 0,
                digits => digits.parse::<usize>().unwrap_or(usize::MAX),
            });
            let places = format.matches(['%', '{']).count();
            let one = all().saturating_add(widest.max().unwrap_or(0)).saturating_add(largest());
            one.saturating_mul(places.max(1))
        }
        "split" | "rsplit" => pieces(match text(1) {
            Some(separator) if !separator.is_empty() => {
                text(0).map_or(0, |text| text.matches(separator).count() + 1)
            }
            _ => text(0).map_or(0, |text| text.split_whitespace().count() + 1),
        }),
        "lines" | "splitlines" => pieces(text(0).map_or(0, |text| text.lines().count())),
        "list" | "sort" | "unique" | "reverse" if text(0).is_some() => {
            text(0).map_or(0, str::len).saturating_mul(ELEMENT)
        }
        "map" => match text(1) {
            None => shallow(&operands[0]),
            Some(
                "trim" | "upper" | "lower" | "title" | "capitalize" | "string" | "tojson" | "int" | "float"
                | "length" | "first" | "last" | "list" | "safe" | "bool",
            ) => all().saturating_mul(4),
            Some(other) => return refused(&format!("`map` with the filter `{other}`")),
        },
        "tojson" | "string" | "e" | "escape" => all().saturating_mul(6),
        "upper" | "lower" | "title" | "capitalize" => all().saturating_mul(3), // `ß` becomes `SS`
        _ => operands.iter().fold(0, |sum: usize, value| sum.saturating_add(shallow(value))),
    })
}

/// Refuses the one thing that grows before there are instructions: the parser works out constants such as `'x' * 10**9`.
///
/// # Errors
/// That such a constant is there, in words.
pub(crate) fn check_constants(source: &str) -> Result<(), String> {
    let tokens = tokenize(source, false, Default::default(), WhitespaceConfig::default());
    let mut before = None;
    let mut after_product = false;
    for token in tokens.map_while(Result::ok).map(|(token, _)| token) {
        let text = matches!(token, Token::Str(_) | Token::String(_));
        let begins = text || matches!(token, Token::BracketOpen | Token::ParenOpen | Token::Minus);
        let is_product = matches!(token, Token::Mul) && before.is_some();
        // Before a product stands a value; a `*` after anything else unpacks arguments.
        if (after_product && begins) || (is_product && before == Some(true)) {
            return Err("multiplying texts, lists and brackets is not supported; write them out".into());
        }
        after_product = is_product;
        before = match token {
            Token::Ident(_) | Token::Int(_) | Token::Int128(_) | Token::Float(_) => Some(false),
            Token::BracketClose | Token::ParenClose => Some(true),
            _ if text => Some(true),
            _ => None,
        };
    }
    Ok(())
}

/// The instructions with the calls between them.
///
/// # Errors
/// What the template uses that is not supported, in words.
pub(crate) fn rewrite<'a>(from: &Instructions<'a>) -> Result<Instructions<'a>, String> {
    let mut to = Instructions::new(from.name(), from.source());
    let mut places = Vec::with_capacity(from.len() + 1);
    for index in 0..from.len() as u32 {
        places.push(to.len() as u32);
        let Some(instruction) = from.get(index) else { break };
        let line = from.get_line(index).and_then(|line| u16::try_from(line).ok());
        let mut add = |instruction| match line {
            Some(line) => _ = to.add_with_line(instruction, line),
            None => _ = to.add(instruction),
        };
        let mut before = |name: &str, count: u16| {
            add(Instruction::BuildList(Some(count.into())));
            add(Instruction::LoadConst(Value::from(name)));
            add(Instruction::CallFunction(BEFORE, Some(2)));
            add(Instruction::UnpackList(count.into()));
        };
        let mut after = false;
        match instruction {
            Instruction::Add => before("+", 2),
            Instruction::Mul => before("*", 2),
            Instruction::StringConcat => before("~", 2),
            Instruction::ApplyFilter(name, Some(count), _) | Instruction::CallMethod(name, Some(count)) => {
                before(name, *count);
                after = true;
            }
            Instruction::CallFunction(_, Some(_)) | Instruction::CallObject(Some(_)) | Instruction::Slice => {
                after = true;
            }
            // Written like a value, so that it is counted.
            Instruction::EmitRaw(text) => {
                add(Instruction::LoadConst(Value::from_safe_string((*text).to_owned())));
                add(Instruction::Emit);
                continue;
            }
            Instruction::ApplyFilter(_, None, _)
            | Instruction::CallMethod(_, None)
            | Instruction::CallFunction(_, None)
            | Instruction::CallObject(None) => {
                return Err("unpacked arguments (`*` or `**`) are not supported".into());
            }
            Instruction::Include(_) | Instruction::LoadBlocks => {
                return Err("a chat template cannot include or extend others".into());
            }
            _ => {}
        }
        add(instruction.clone());
        if after {
            add(Instruction::CallFunction(AFTER, Some(1)));
        }
    }
    places.push(to.len() as u32);
    for index in 0..to.len() as u32 {
        if let Some(
            Instruction::Iterate(target)
            | Instruction::Jump(target)
            | Instruction::JumpIfFalse(target)
            | Instruction::JumpIfFalseOrPop(target)
            | Instruction::JumpIfTrueOrPop(target)
            | Instruction::BuildMacro(_, target, _),
        ) = to.get_mut(index)
        {
            *target = *places.get(*target as usize).ok_or("the template's instructions are damaged")?;
        }
    }
    Ok(to)
}
