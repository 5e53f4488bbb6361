//! Chat templates: messages to the prompt that a model was trained with.
//!
//! [`ChatTemplate`] renders the Jinja template of a model the way the `transformers` library does (block trimming,
//! Python methods on strings and dictionaries, `tojson` in Python's notation, `raise_exception`, `strftime_now`,
//! loop controls) but bounded in instructions and in memory: a template comes with the model and may be hostile. It has no access to files, to
//! other templates, to the clock (the date is an argument) or to randomness, so the same input renders to the same
//! text everywhere.
//!
//! It does not tokenise; see [`crate::tokenizer`] for how control tokens typed by users are kept from taking effect.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use minijinja::machinery::{Vm, get_compiled_template, make_string_output};
use minijinja::value::{Kwargs, Value as JinjaValue, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};
use serde_json::Value;
use thiserror::Error;

pub use crate::budget::MAX_TEMPLATE_MEMORY;
use crate::budget::{Budget, check_constants, install, rewrite};
use crate::tokenizer::MAX_TEXT_BYTES;

/// Longest template source, in bytes. Published templates stay under 32 KiB.
pub const MAX_TEMPLATE_BYTES: usize = 256 << 10;

/// Longest rendered prompt, in bytes: what the tokenizer accepts.
pub const MAX_RENDERED_BYTES: usize = MAX_TEXT_BYTES;

/// Template instructions that may be executed whatever the input: some ten times what the longest published template
/// needs around its messages. Checks of memory count as instructions.
pub const BASE_FUEL: u64 = 200_000;

/// Further instructions allowed per message and per tool. Published templates need under 300.
pub const FUEL_PER_ITEM: u64 = 6_000;

/// Deepest nesting of macro calls and recursive loops. Published templates stay under 10.
pub const MAX_RECURSION: usize = 64;

/// Most messages, and most tools, that are rendered.
pub const MAX_ITEMS: usize = 4_096;

/// Why a template cannot be used or a conversation cannot be rendered.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template is longer than [`MAX_TEMPLATE_BYTES`].
    #[error(
        "the chat template has {0} bytes, more than {MAX_TEMPLATE_BYTES}; import the model with a shorter one"
    )]
    TooLong(usize),
    /// The template does not parse.
    #[error("the chat template does not parse ({0}); import the model with a corrected one")]
    Syntax(String),
    /// The template itself refused the conversation, through `raise_exception`.
    #[error("the model's chat template refuses this conversation: {0}; change the messages accordingly")]
    Raised(String),
    /// Rendering failed.
    #[error("the chat template fails on this conversation ({0}); send only roles and fields that it knows")]
    Failed(String),
    /// Rendering took more instructions than allowed.
    #[error("the chat template needs more than {0} instructions; send fewer messages")]
    OutOfFuel(u64),
    /// The rendered text exceeds [`MAX_RENDERED_BYTES`].
    #[error("the rendered conversation exceeds {MAX_RENDERED_BYTES} bytes; send less text")]
    TooMuchOutput,
    /// Rendering made more values and text than [`MAX_TEMPLATE_MEMORY`].
    #[error(
        "the chat template makes more than {MAX_TEMPLATE_MEMORY} bytes of text and lists; send less text"
    )]
    TooMuchMemory,
    /// More than [`MAX_ITEMS`] messages or tools.
    #[error("the conversation has {0} messages or tools, more than {MAX_ITEMS}; send fewer")]
    TooManyItems(usize),
}

/// What a template is applied to.
#[derive(Clone, Debug)]
pub struct Conversation<'a> {
    /// Messages, each an object with at least `role` and `content`.
    pub messages: &'a [Value],
    /// Tool definitions in OpenAI form, if the template is to describe them.
    pub tools: Option<&'a [Value]>,
    /// Whether to open the assistant's turn at the end.
    pub add_generation_prompt: bool,
    /// What `strftime_now` shows, in seconds since 1970, UTC.
    pub now_unix_s: u64,
}

/// A parsed chat template.
///
/// ```
/// use assay_model::template::{ChatTemplate, Conversation};
/// let template = ChatTemplate::new("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}", "", "")?;
/// let messages = [serde_json::json!({"role": "user", "content": "Hi"})];
/// let text = template.render(&Conversation {
///     messages: &messages, tools: None, add_generation_prompt: true, now_unix_s: 0,
/// })?;
/// assert_eq!(text, "<user>Hi");
/// # Ok::<(), assay_model::template::TemplateError>(())
/// ```
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    handles_tools: bool,
}

/// The name under which the only template is registered.
const NAME: &str = "chat";

/// Marks errors raised by the template, among other failures.
const RAISED: &str = "raise_exception: ";

impl ChatTemplate {
    /// Parses a template; `bos` and `eos` are what it sees as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`TemplateError::TooLong`] and [`TemplateError::Syntax`].
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(TemplateError::TooLong(source.len()));
        }
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_debug(false);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
        });
        let source = without_generation_tags(source);
        check_constants(&source).map_err(TemplateError::Syntax)?;
        environment
            .add_template_owned(NAME, source)
            .map_err(|error| TemplateError::Syntax(describe(&error)))?;
        let handles_tools = environment
            .get_template(NAME)
            .map_err(|error| TemplateError::Syntax(describe(&error)))?
            .undeclared_variables(false)
            .contains("tools");
        let parsed =
            environment.get_template(NAME).map_err(|error| TemplateError::Syntax(describe(&error)))?;
        let compiled = get_compiled_template(&parsed);
        for part in std::iter::once(&compiled.instructions).chain(compiled.blocks.values()) {
            rewrite(part).map_err(TemplateError::Syntax)?;
        }
        drop(parsed);
        Ok(Self { environment, bos: bos.to_owned(), eos: eos.to_owned(), handles_tools })
    }

    /// Whether the template reads `tools`, that is, describes them to the model in the way it was trained on.
    pub fn handles_tools(&self) -> bool {
        self.handles_tools
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`TemplateError::Raised`] when the template refuses it, [`TemplateError::Failed`] when it fails, and the
    /// errors of the limits.
    pub fn render(&self, conversation: &Conversation<'_>) -> Result<String, TemplateError> {
        let tools = conversation.tools.unwrap_or_default();
        let items = conversation.messages.len().max(tools.len());
        if items > MAX_ITEMS {
            return Err(TemplateError::TooManyItems(items));
        }
        let fuel = BASE_FUEL + FUEL_PER_ITEM * (conversation.messages.len() + tools.len()) as u64;
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let budget = Budget::new();
        install(&mut environment, &budget);
        let own = budget.clone();
        environment.set_formatter(move |out, state, value| {
            own.take_text(state, value)?;
            if !value.is_safe()
                && matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
            {
                let mut text = String::new();
                python_repr(value, 0, &mut text);
                return out.write_str(&text).map_err(minijinja::Error::from);
            }
            minijinja::escape_formatter(out, state, value)
        });
        let template =
            environment.get_template(NAME).map_err(|error| TemplateError::Syntax(describe(&error)))?;
        let compiled = get_compiled_template(&template);
        let instructions = rewrite(&compiled.instructions).map_err(TemplateError::Syntax)?;
        let mut blocks = BTreeMap::new();
        for (name, block) in &compiled.blocks {
            blocks.insert(*name, rewrite(block).map_err(TemplateError::Syntax)?);
        }
        let now = conversation.now_unix_s;
        let strftime = JinjaValue::from_function(move |format: String| strftime(&format, now));
        let context = minijinja::context! {
            messages => conversation.messages,
            add_generation_prompt => conversation.add_generation_prompt,
            bos_token => self.bos,
            eos_token => self.eos,
            strftime_now => strftime,
            ..match conversation.tools {
                Some(tools) => minijinja::context! { tools },
                // As in `transformers`, `tools` is always defined.
                None => minijinja::context! { tools => () },
            }
        };
        let mut text = String::new();
        let mut output = make_string_output(&mut text);
        let result = Vm::new(&environment)
            .eval(&instructions, context, &blocks, &mut output, AutoEscape::None)
            .map(|_| ());
        drop(output);
        match result {
            Err(_) if budget.is_exceeded() => Err(TemplateError::TooMuchMemory),
            Err(error) => Err(classify(&error, fuel)),
            Ok(()) if text.len() > MAX_RENDERED_BYTES => Err(TemplateError::TooMuchOutput),
            Ok(()) => Ok(text),
        }
    }
}

/// The kind, detail and line of an error, without the template's source.
fn describe(error: &minijinja::Error) -> String {
    let mut text = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    if let Some(line) = error.line() {
        let _ = write!(text, ", line {line}"); // writing to a String cannot fail
    }
    text
}

fn classify(error: &minijinja::Error, fuel: u64) -> TemplateError {
    // Errors inside macros and included blocks are wrapped; the cause is the innermost one.
    let mut cause = error;
    loop {
        if cause.kind() == ErrorKind::OutOfFuel {
            return TemplateError::OutOfFuel(fuel);
        }
        if let Some(message) = cause.detail().and_then(|detail| detail.strip_prefix(RAISED)) {
            return TemplateError::Raised(message.to_owned());
        }
        match std::error::Error::source(cause).and_then(|source| source.downcast_ref::<minijinja::Error>()) {
            Some(source) => cause = source,
            None => return TemplateError::Failed(describe(cause)),
        }
    }
}

/// `transformers` marks the assistant's text with `{% generation %}` blocks, which do not change the rendering; they
/// become blocks that are always taken.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + 2);
        let inner = tag[2..end].trim_start_matches(['-', '+']).trim_end_matches(['-', '+']);
        match inner.trim() {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// `tojson` in the notation of Python's `json.dumps(ensure_ascii=False)`, with its `indent` and `sort_keys`.
fn tojson(
    value: &JinjaValue,
    indent: Option<JinjaValue>,
    options: Kwargs,
) -> Result<JinjaValue, minijinja::Error> {
    let named: Option<usize> = options.get("indent")?;
    let indent = match indent {
        Some(value) if !value.is_none() && !value.is_undefined() => Some(usize::try_from(value)?),
        _ => named,
    };
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    // Always so here; accepted because templates pass it.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    if indent.is_some_and(|indent| indent > 16) {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "tojson: indent above 16"));
    }
    let value = serde_json::to_value(value)
        .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let mut out = String::new();
    dump(&value, indent, sort_keys, 0, &mut out);
    if out.len() > MAX_RENDERED_BYTES {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "tojson: the text is too long"));
    }
    Ok(JinjaValue::from_safe_string(out))
}

/// Appends `value` in Python's JSON notation: `, ` and `: ` as separators, or one entry a line with `indent`.
pub fn python_json(value: &Value) -> String {
    let mut out = String::new();
    dump(value, None, false, 0, &mut out);
    out
}

fn dump(value: &Value, indent: Option<usize>, sort: bool, level: usize, out: &mut String) {
    let newline = |level: usize, out: &mut String| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * level));
        }
    };
    let separator = if indent.is_some() { "," } else { ", " };
    match value {
        Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if out.len() > MAX_RENDERED_BYTES {
                    return; // more than may be shown; indentation can be longer than what it indents
                }
                if index > 0 {
                    out.push_str(separator);
                }
                newline(level + 1, out);
                dump(item, indent, sort, level + 1, out);
            }
            newline(level, out);
            out.push(']');
        }
        Value::Object(map) if !map.is_empty() => {
            out.push('{');
            let mut entries: Vec<_> = map.iter().collect();
            if sort {
                entries.sort_by_key(|entry| entry.0);
            }
            for (index, (key, item)) in entries.into_iter().enumerate() {
                if out.len() > MAX_RENDERED_BYTES {
                    return; // as above
                }
                if index > 0 {
                    out.push_str(separator);
                }
                newline(level + 1, out);
                out.push_str(&Value::String(key.clone()).to_string());
                out.push_str(": ");
                dump(item, indent, sort, level + 1, out);
            }
            newline(level, out);
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

/// Shows the items of a list, or the keys of a dictionary, with commas between.
fn each_item(value: &JinjaValue, out: &mut String, mut show: impl FnMut(&JinjaValue, &mut String)) {
    for (index, item) in value.try_iter().into_iter().flatten().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        if out.len() > MAX_RENDERED_BYTES {
            break; // more than may be shown: the output limit ends the rendering
        }
        show(&item, out);
    }
}

/// How Python shows a list or dictionary that a template prints as it is. Nesting is bounded by that of the input,
/// and cut off at [`MAX_RECURSION`].
fn python_repr(value: &JinjaValue, level: usize, out: &mut String) {
    if level > MAX_RECURSION || out.len() > MAX_RENDERED_BYTES {
        out.push_str("...");
        return;
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            each_item(value, out, |item, out| python_repr(item, level + 1, out));
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            each_item(value, out, |key, out| {
                python_repr(key, level + 1, out);
                out.push_str(": ");
                python_repr(&value.get_item(key).unwrap_or_default(), level + 1, out);
            });
            out.push('}');
        }
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
            out.push(quote);
            for character in text.chars() {
                // Writing to a String cannot fail.
                let _ = match character {
                    '\n' => out.write_str("\\n"),
                    '\r' => out.write_str("\\r"),
                    '\t' => out.write_str("\\t"),
                    '\\' => out.write_str("\\\\"),
                    character if character == quote => write!(out, "\\{quote}"),
                    character if character.is_control() => write!(out, "\\x{:02x}", u32::from(character)),
                    character => out.write_char(character),
                };
            }
            out.push(quote);
        }
        _ => {
            let _ = write!(out, "{value}");
        }
    }
}

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Formats a time as C's `strftime` does in UTC and the C locale, for the directives that templates use.
fn strftime(format: &str, unix_s: u64) -> Result<String, minijinja::Error> {
    let failed = |what: String| minijinja::Error::new(ErrorKind::InvalidOperation, what);
    // Year 9999, the last that four digits can show.
    if unix_s > 253_402_300_799 {
        return Err(failed("strftime_now: the time is after the year 9999".into()));
    }
    let days = (unix_s / 86_400) as i64;
    let second = unix_s % 86_400;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    let (year, month, day) = civil(days);
    let weekday = ((days + 3) % 7) as usize; // 1 January 1970 was a Thursday
    let month_name = MONTHS[month as usize - 1];
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let mut directive = characters.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = characters.next();
        }
        let width = if unpadded { 1 } else { 2 };
        let hour12 = (hour + 11) % 12 + 1;
        // Writing to a String cannot fail.
        let _ = match directive {
            Some('Y') => write!(out, "{year}"),
            Some('y') => write!(out, "{:0width$}", year % 100),
            Some('m') => write!(out, "{month:0width$}"),
            Some('d') => write!(out, "{day:0width$}"),
            Some('e') => write!(out, "{day:2}"),
            Some('H') => write!(out, "{hour:0width$}"),
            Some('I') => write!(out, "{hour12:0width$}"),
            Some('M') => write!(out, "{minute:0width$}"),
            Some('S') => write!(out, "{second:0width$}"),
            Some('p') => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
            Some('B') => write!(out, "{month_name}"),
            Some('b' | 'h') => write!(out, "{}", &month_name[..3]),
            Some('A') => write!(out, "{}", DAYS[weekday]),
            Some('a') => write!(out, "{}", &DAYS[weekday][..3]),
            Some('F') => write!(out, "{year}-{month:02}-{day:02}"),
            Some('T') => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            Some('%') => write!(out, "%"),
            other => return Err(failed(format!("strftime_now: the directive {other:?} is not known"))),
        };
    }
    Ok(out)
}

/// Year, month 1 to 12 and day 1 to 31 of a day counted from 1 January 1970, in the Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    // Count from 1 March of year 0, so that leap days end years and 400-year eras have equal lengths.
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}
