//! Text to token ids and back.
//!
//! [`Tokenizer`] reads a `tokenizer.json` (for GGUF files [`tokenizer_json_from_gguf`] builds one) and adds what
//! serving needs on top of the `tokenizers` crate: the exact bytes of every token, a streaming decoder whose
//! deltas concatenate to the text of [`Tokenizer::decode`], and encoding of rendered prompts in which text that a
//! user typed never becomes a control token ([`Tokenizer::guard`]).
//!
//! It does not know chat templates (see [`crate::template`]) and does not normalise what it decodes.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;

/// Longest text, in bytes, that is tokenised at once.
///
/// One MiB is eight bytes a token for a context of 131,072 tokens, and it keeps the backtracking of the
/// pre-tokeniser's regular expressions, which is linear in runs of white space, under their limit.
pub const MAX_TEXT_BYTES: usize = 1 << 20;

/// Largest vocabulary that is accepted, in tokens: four times the largest in common use.
pub const MAX_VOCABULARY: usize = 1 << 20;

/// Largest `tokenizer.json`, in bytes. Published files stay under 40 MiB.
pub const MAX_TOKENIZER_BYTES: usize = 64 << 20;

/// Marks are taken from this private-use plane: no template or tokenizer gives its characters a meaning.
const MARKS: std::ops::RangeInclusive<char> = '\u{100000}'..='\u{10FFFD}';

/// Tags that some vocabularies list as control tokens although they belong to the text of an answer.
const VISIBLE: [&str; 4] = ["<tool_call>", "</tool_call>", "<think>", "</think>"];

/// Why a tokenizer cannot be built or a text cannot be encoded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The `tokenizer.json` is not readable.
    #[error("the tokenizer definition cannot be read ({0}); import the model again from its published files")]
    Malformed(String),
    /// A size limit is exceeded.
    #[error("the {what} has {actual} {unit}, more than the {limit} allowed; shorten it")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        actual: usize,
        /// The limit.
        limit: usize,
        /// The unit of both.
        unit: &'static str,
    },
    /// The decoder of the `tokenizer.json` is not byte-level and not byte-fallback.
    #[error("the tokenizer's decoder `{0}` is not supported; use a byte-level or byte-fallback BPE model")]
    UnsupportedDecoder(String),
    /// The GGUF metadata name a tokenizer model that is not supported.
    #[error("the GGUF tokenizer model `{0}` is not supported; use a file with `gpt2` or `llama`")]
    UnsupportedModel(String),
    /// The GGUF metadata name a pre-tokenizer that is not supported.
    #[error(
        "the GGUF pre-tokenizer `{0}` is not supported; use one of smollm, qwen2, llama-bpe, gpt-2 or import from safetensors"
    )]
    UnsupportedPreTokenizer(String),
    /// The GGUF metadata contradict themselves.
    #[error("the GGUF tokenizer metadata are inconsistent ({0}); obtain the file again from its publisher")]
    Inconsistent(String),
    /// A token id lies outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {size}; send ids below {size}")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Number of ids.
        size: usize,
    },
    /// The text cannot be encoded.
    #[error("the text cannot be encoded ({0}); remove the offending characters")]
    Encode(String),
    /// The texts use every private-use character, so that none is left to mark typed control tokens.
    #[error("the messages use every character of the private-use plane 16; remove some of them")]
    NoMarkLeft,
}

/// How vocabulary entries spell bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    /// Each byte is one printable character (GPT-2's table).
    ByteLevel,
    /// Text with `▁` for a space, single bytes as `<0xHH>`; the flag says whether one leading space of the whole
    /// text is dropped.
    ByteFallback { strip: bool },
    /// Words and, after the prefix `##`, their further pieces. Texts were changed before, so nothing is exact.
    WordPiece,
}

/// A control token: its text and id, and whether it swallows white space before or after itself.
#[derive(Clone, Debug)]
struct Control {
    text: String,
    id: u32,
    left: bool,
    right: bool,
}

/// A tokenizer with the exact bytes of every token.
///
/// ```
/// # use assay_model::tokenizer::{GgufTokenizer, Tokenizer, tokenizer_json_from_gguf};
/// let tokens = ["<|end|>", "a", "b", "ab"].map(String::from).to_vec();
/// let gguf = GgufTokenizer {
///     model: "gpt2".into(),
///     pre: Some("gpt-2".into()),
///     token_types: vec![3, 1, 1, 1],
///     tokens,
///     merges: vec!["a b".into()],
///     eos: Some(0),
///     ..GgufTokenizer::default()
/// };
/// let tokenizer = Tokenizer::from_bytes(&tokenizer_json_from_gguf(&gguf)?)?;
/// assert_eq!(tokenizer.encode("abb<|end|>", true)?, [3, 2, 0]);
/// assert_eq!(tokenizer.decode(&[3, 2, 0])?, "abb");
/// # Ok::<(), assay_model::tokenizer::TokenizerError>(())
/// ```
pub struct Tokenizer {
    /// Reads control tokens in the text.
    full: tokenizers::Tokenizer,
    /// Treats the spelling of a control token as plain text.
    plain: tokenizers::Tokenizer,
    spelling: Spelling,
    /// Bytes of all tokens, one after the other; token `i` is `starts[i]..starts[i + 1]`.
    bytes: Vec<u8>,
    starts: Vec<u32>,
    special: HashSet<u32>,
    /// Grouped by their first byte, longest first.
    controls: HashMap<u8, Vec<Control>>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocabulary", &self.vocabulary())
            .field("special", &self.special.len())
            .field("spelling", &self.spelling)
            .finish_non_exhaustive()
    }
}

/// The parts of a `tokenizer.json` that are read here and not by the `tokenizers` crate.
#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    added_tokens: Vec<AddedOutline>,
    decoder: Option<Value>,
}

#[derive(Deserialize)]
struct AddedOutline {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Malformed`] when it cannot be parsed, [`TokenizerError::UnsupportedDecoder`] when tokens
    /// have no exact bytes, [`TokenizerError::TooLarge`] above [`MAX_TOKENIZER_BYTES`] or [`MAX_VOCABULARY`].
    pub fn from_bytes(json: &[u8]) -> Result<Self, TokenizerError> {
        if json.len() > MAX_TOKENIZER_BYTES {
            return Err(TokenizerError::TooLarge {
                what: "tokenizer definition",
                actual: json.len(),
                limit: MAX_TOKENIZER_BYTES,
                unit: "bytes",
            });
        }
        let outline: Outline =
            serde_json::from_slice(json).map_err(|error| TokenizerError::Malformed(error.to_string()))?;
        let spelling = spelling(outline.decoder.as_ref())?;
        let mut full = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|error| TokenizerError::Malformed(error.to_string()))?;
        // A definition may ask for truncation or padding, which would change prompts silently.
        full.with_truncation(None).map_err(|error| TokenizerError::Malformed(error.to_string()))?;
        full.with_padding(None);
        full.set_encode_special_tokens(false);
        let mut plain = full.clone();
        plain.set_encode_special_tokens(true);

        let mut special = HashSet::new();
        let mut added = HashMap::new();
        let mut controls: HashMap<u8, Vec<Control>> = HashMap::new();
        for token in outline.added_tokens {
            if full.token_to_id(&token.content) != Some(token.id) {
                return Err(TokenizerError::Malformed(format!(
                    "the added token `{}` does not have the id {}",
                    token.content, token.id
                )));
            }
            if token.special && !VISIBLE.contains(&token.content.as_str()) {
                special.insert(token.id);
                if let Some(&first) = token.content.as_bytes().first() {
                    controls.entry(first).or_default().push(Control {
                        text: token.content.clone(),
                        id: token.id,
                        left: token.lstrip,
                        right: token.rstrip,
                    });
                }
            }
            added.insert(token.id, token.content);
        }
        for group in controls.values_mut() {
            group.sort_by(|a, b| b.text.len().cmp(&a.text.len()).then_with(|| a.text.cmp(&b.text)));
        }

        let vocabulary = full.get_vocab(true);
        let size = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
        if size > MAX_VOCABULARY {
            return Err(TokenizerError::TooLarge {
                what: "vocabulary",
                actual: size,
                limit: MAX_VOCABULARY,
                unit: "tokens",
            });
        }
        let mut spelled: Vec<Option<String>> = vec![None; size];
        for (text, id) in vocabulary {
            spelled[id as usize] = Some(text);
        }
        let table = byte_of_char();
        let mut bytes = Vec::new();
        let mut starts = Vec::with_capacity(size + 1);
        for (id, text) in spelled.iter().enumerate() {
            starts.push(offset(&bytes)?);
            let id = id as u32; // below MAX_VOCABULARY
            if special.contains(&id) {
                continue;
            }
            match (added.get(&id), text) {
                (Some(content), _) => bytes.extend_from_slice(content.as_bytes()),
                (None, Some(text)) => spell(text, spelling, &table, &mut bytes),
                (None, None) => {}
            }
        }
        starts.push(offset(&bytes)?);
        Ok(Self { full, plain, spelling, bytes, starts, special, controls })
    }

    /// Number of token ids, from 0 up to the largest in the definition. A model may have more rows than this.
    pub fn vocabulary(&self) -> usize {
        self.starts.len() - 1
    }

    /// The id of a vocabulary entry by its spelling (`<|im_end|>`, `Ġthe`), if there is one.
    pub fn token_id(&self, spelling: &str) -> Option<u32> {
        self.full.token_to_id(spelling)
    }

    /// Whether the id is a control token, which [`Self::decode`] leaves out of the text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The bytes that a token adds to the text: empty for control tokens and for ids outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match (self.starts.get(id), self.starts.get(id + 1)) {
            (Some(&start), Some(&end)) => &self.bytes[start as usize..end as usize],
            _ => &[],
        }
    }

    /// What to show for a token on its own, in lists of log-probabilities: its text, with U+FFFD for broken UTF-8,
    /// and for a control token its spelling.
    pub fn token_text(&self, id: u32) -> String {
        if self.is_special(id) {
            return self.full.id_to_token(id).unwrap_or_default();
        }
        String::from_utf8_lossy(self.token_bytes(id)).into_owned()
    }

    /// Token ids of a text in which the spelling of a control token means that token.
    ///
    /// With `add_special` the beginning and end tokens that the tokenizer asks for are added. Use this for prompts
    /// that the caller wrote as a whole, never for text that somebody else typed.
    ///
    /// # Errors
    /// [`TokenizerError::TooLarge`] above [`MAX_TEXT_BYTES`]; [`TokenizerError::Encode`] when the vocabulary cannot
    /// express the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        encode(&self.full, text, add_special)
    }

    /// Token ids of a text in which the spelling of a control token is just text: no control token comes out.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let ids = encode(&self.plain, text, false)?;
        if !ids.iter().any(|id| self.special.contains(id)) {
            return Ok(ids);
        }
        // A vocabulary may merge ordinary characters into a control token (llama-bpe looks whole words up first).
        // Single characters cannot, unless the control token is that one character.
        let mut out = Vec::with_capacity(text.len());
        let mut buffer = [0; 4];
        for character in text.chars() {
            let ids = encode(&self.plain, character.encode_utf8(&mut buffer), false)?;
            if ids.iter().any(|id| self.special.contains(id)) {
                return Err(TokenizerError::Encode(format!(
                    "{character:?} is a control token of this model"
                )));
            }
            out.extend(ids);
        }
        Ok(out)
    }

    /// Prepares to keep control tokens that appear in `texts` (everything that comes from users) from taking effect.
    ///
    /// A chat template returns one string in which its own control tokens and the users' text are no longer told
    /// apart. Therefore each user string goes through [`Guard::protect`] before rendering: it puts a mark, one
    /// private-use character that occurs in none of the texts, inside every spelling of a control token, so that it
    /// no longer is one, whatever the template does with the string. [`Self::encode_guarded`] then reads the control
    /// tokens that are left, which the template wrote, removes the marks, and encodes everything between as plain
    /// text. Texts without such a spelling are not changed, so that the ids are those of the reference tokenizers.
    ///
    /// Added tokens that are not control tokens (such as `<think>`) keep their meaning: templates look for them.
    ///
    /// The mark does not occur in `template` either, whose own control tokens keep their meaning.
    ///
    /// # Errors
    /// [`TokenizerError::NoMarkLeft`] when the texts use the whole private-use plane 16.
    pub fn guard<'a>(
        &self,
        template: &str,
        texts: impl IntoIterator<Item = &'a str>,
    ) -> Result<Guard<'_>, TokenizerError> {
        let marks = |text: &str| -> Vec<char> {
            text.chars().filter(|character| MARKS.contains(character)).collect()
        };
        let mut used: HashSet<char> = marks(template).into_iter().collect();
        let mut needed = false;
        for text in texts {
            used.extend(marks(text));
            needed = needed || !self.breaks(text).is_empty();
        }
        let mark = if needed {
            Some(MARKS.into_iter().find(|mark| !used.contains(mark)).ok_or(TokenizerError::NoMarkLeft)?)
        } else {
            None
        };
        Ok(Guard { tokenizer: self, mark })
    }

    /// Token ids of a rendered template whose user strings went through `guard`.
    ///
    /// No beginning token is added: a chat template writes its own.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_guarded(&self, rendered: &str, guard: &Guard<'_>) -> Result<Vec<u32>, TokenizerError> {
        let Some(mark) = guard.mark else { return self.encode(rendered, false) };
        check_length(rendered)?;
        let mut out = Vec::new();
        let mut start = 0;
        let mut at = 0;
        while at < rendered.len() {
            let Some(control) = self.control_at(rendered, at) else {
                at += 1;
                continue;
            };
            let mut before = &rendered[start..at];
            if control.left {
                before = before.trim_end();
            }
            if !before.is_empty() {
                out.extend(self.encode_plain(&before.replace(mark, ""))?);
            }
            out.push(control.id);
            at += control.text.len();
            if control.right {
                at = rendered.len() - rendered[at..].trim_start().len();
            }
            start = at;
        }
        if start < rendered.len() {
            out.extend(self.encode_plain(&rendered[start..].replace(mark, ""))?);
        }
        Ok(out)
    }

    /// The text of tokens: control tokens are left out, broken UTF-8 becomes U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownToken`] for an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let mut stream = self.stream();
        let mut text = String::new();
        for &id in ids {
            if id as usize >= self.vocabulary() {
                return Err(TokenizerError::UnknownToken { id, size: self.vocabulary() });
            }
            text.push_str(&stream.push(self.token_bytes(id)));
        }
        text.push_str(&stream.finish());
        Ok(text)
    }

    /// A decoder for one sequence of tokens.
    pub fn stream(&self) -> StreamDecoder {
        StreamDecoder {
            pending: Vec::new(),
            strip: matches!(self.spelling, Spelling::ByteFallback { strip: true } | Spelling::WordPiece),
        }
    }

    /// The longest control token whose spelling starts at byte `at`.
    fn control_at(&self, text: &str, at: usize) -> Option<&Control> {
        let rest = &text.as_bytes()[at..];
        self.controls.get(rest.first()?)?.iter().find(|control| rest.starts_with(control.text.as_bytes()))
    }

    /// Byte positions at which a mark is put: inside every control token, and at an edge where the text could
    /// complete one together with its surroundings.
    fn breaks(&self, text: &str) -> Vec<usize> {
        let head = text.trim_start();
        let tail = text.trim_end();
        let mut at: Vec<usize> = text
            .char_indices()
            .filter_map(|(at, character)| {
                let control = self.control_at(text, at)?;
                (control.text.len() > character.len_utf8()).then_some(at + character.len_utf8())
            })
            .collect();
        for control in self.controls.values().flatten() {
            for cut in proper_boundaries(&control.text) {
                if tail.ends_with(&control.text[..cut]) {
                    at.push(tail.len());
                }
                if head.starts_with(&control.text[cut..]) {
                    at.push(text.len() - head.len());
                }
            }
        }
        at.sort_unstable();
        at.dedup();
        at
    }
}

/// Keeps control tokens that users typed from taking effect; made by [`Tokenizer::guard`].
#[derive(Clone, Copy, Debug)]
pub struct Guard<'a> {
    tokenizer: &'a Tokenizer,
    mark: Option<char>,
}

impl Guard<'_> {
    /// The text with a mark inside every spelling of a control token; unchanged when it has none.
    pub fn protect<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let Some(mark) = self.mark else { return Cow::Borrowed(text) };
        let mut out = String::new();
        let mut done = 0;
        for at in self.tokenizer.breaks(text) {
            out.push_str(&text[done..at]);
            out.push(mark);
            done = at;
        }
        if out.is_empty() {
            return Cow::Borrowed(text);
        }
        out.push_str(&text[done..]);
        Cow::Owned(out)
    }

    /// [`Self::protect`] for every string in a JSON value, keys included.
    pub fn protect_json(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.protect(text).into_owned()),
            Value::Array(items) => Value::Array(items.iter().map(|item| self.protect_json(item)).collect()),
            Value::Object(map) => Value::Object(
                map.iter()
                    .map(|(key, item)| (self.protect(key).into_owned(), self.protect_json(item)))
                    .collect(),
            ),
            other => other.clone(),
        }
    }
}

/// Turns the bytes of successive tokens into text without ever emitting half a character.
///
/// The concatenation of everything returned equals [`String::from_utf8_lossy`] of all bytes together, however the
/// bytes are divided: a sequence that can still become valid is held back, one that cannot becomes U+FFFD at once.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    /// At most three bytes: the beginning of a character.
    pending: Vec<u8>,
    /// Whether the first space of the text is still to be dropped.
    strip: bool,
}

impl StreamDecoder {
    /// Text that is certain after these further bytes.
    pub fn push(&mut self, mut bytes: &[u8]) -> String {
        if self.strip && !bytes.is_empty() {
            self.strip = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.pending.len());
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    let Some(broken) = error.error_len() else { break };
                    text.push('\u{FFFD}');
                    rest = &rest[broken..];
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }

    /// The end of the text: U+FFFD when it breaks off within a character, else nothing.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// Character boundaries strictly inside `text`.
fn proper_boundaries(text: &str) -> impl Iterator<Item = usize> + '_ {
    text.char_indices().map(|(at, _)| at).skip(1)
}

fn offset(bytes: &[u8]) -> Result<u32, TokenizerError> {
    u32::try_from(bytes.len()).map_err(|_| TokenizerError::TooLarge {
        what: "text of all tokens",
        actual: bytes.len(),
        limit: u32::MAX as usize,
        unit: "bytes",
    })
}

fn check_length(text: &str) -> Result<(), TokenizerError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(TokenizerError::TooLarge {
            what: "text to tokenise",
            actual: text.len(),
            limit: MAX_TEXT_BYTES,
            unit: "bytes",
        });
    }
    Ok(())
}

fn encode(with: &tokenizers::Tokenizer, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
    check_length(text)?;
    let encoding =
        with.encode_fast(text, add_special).map_err(|error| TokenizerError::Encode(error.to_string()))?;
    Ok(encoding.get_ids().to_vec())
}

/// Reads from the decoder of a `tokenizer.json` how its tokens spell bytes.
fn spelling(decoder: Option<&Value>) -> Result<Spelling, TokenizerError> {
    let name = |value: &Value| value.get("type").and_then(Value::as_str).unwrap_or("none").to_owned();
    let Some(decoder) = decoder else { return Err(TokenizerError::UnsupportedDecoder("none".into())) };
    let steps: Vec<&Value> = match decoder.get("decoders").and_then(Value::as_array) {
        Some(steps) => steps.iter().collect(),
        None => vec![decoder],
    };
    let mut found = None;
    let mut strip = false;
    for step in steps {
        match name(step).as_str() {
            "ByteLevel" => found = Some(Spelling::ByteLevel),
            "Metaspace" => {
                found = found.or(Some(Spelling::ByteFallback { strip: false }));
                let never = step.get("prepend_scheme").and_then(Value::as_str) == Some("never")
                    || step.get("add_prefix_space").and_then(Value::as_bool) == Some(false);
                strip = strip || !never;
            }
            "ByteFallback" => found = found.or(Some(Spelling::ByteFallback { strip: false })),
            "Strip" => strip = step.get("start").and_then(Value::as_u64).unwrap_or(0) > 0,
            "WordPiece" => found = Some(Spelling::WordPiece),
            "Replace" | "Fuse" => {}
            other => return Err(TokenizerError::UnsupportedDecoder(other.to_owned())),
        }
    }
    match found {
        Some(Spelling::ByteFallback { .. }) => Ok(Spelling::ByteFallback { strip }),
        Some(spelling) => Ok(spelling),
        None => Err(TokenizerError::UnsupportedDecoder(name(decoder))),
    }
}

/// Appends the bytes that a vocabulary entry spells.
fn spell(text: &str, spelling: Spelling, table: &HashMap<char, u8>, out: &mut Vec<u8>) {
    match spelling {
        Spelling::ByteLevel => {
            let start = out.len();
            for character in text.chars() {
                if let Some(&byte) = table.get(&character) {
                    out.push(byte);
                } else {
                    // Not in the byte table: the entry is literal text.
                    out.truncate(start);
                    out.extend_from_slice(text.as_bytes());
                    return;
                }
            }
        }
        Spelling::WordPiece => match text.strip_prefix("##") {
            Some(piece) => out.extend_from_slice(piece.as_bytes()),
            None => out.extend([b" ", text.as_bytes()].concat()),
        },
        Spelling::ByteFallback { .. } => match byte_token(text) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(text.replace('▁', " ").as_bytes()),
        },
    }
}

/// The byte of a token spelled `<0xHH>`.
fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// GPT-2's table: printable Latin-1 characters stand for themselves, the other bytes for U+0100 onwards in order.
fn byte_of_char() -> HashMap<char, u8> {
    let mut next = 0x100;
    (0..=u8::MAX)
        .map(|byte| {
            let character = match byte {
                b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
                _ => {
                    next += 1;
                    char::from_u32(next - 1).unwrap_or('\u{FFFD}') // 0x100..0x144 are all characters
                }
            };
            (character, byte)
        })
        .collect()
}

/// The `tokenizer.ggml.*` metadata of a GGUF file.
#[derive(Clone, Debug, Default)]
pub struct GgufTokenizer {
    /// `model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: String,
    /// `pre`: the name of the pre-tokenizer.
    pub pre: Option<String>,
    /// `tokens`: the spelling of every id.
    pub tokens: Vec<String>,
    /// `token_type`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; empty when absent.
    pub token_types: Vec<i32>,
    /// `scores`: SentencePiece scores, higher merges first; empty when absent.
    pub scores: Vec<f32>,
    /// `merges`: pairs separated by one space, first merges first; empty when absent.
    pub merges: Vec<String>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `eot_token_id`: the end of a turn where that differs from the end of the text.
    pub eot: Option<u32>,
    /// `unknown_token_id`.
    pub unknown: Option<u32>,
    /// `add_bos_token`; when absent true for `llama` and for the pre-tokenizer `llama-bpe`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`; when absent false.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`, for `llama` only; when absent true.
    pub add_space_prefix: Option<bool>,
}

/// Spellings of control tokens that end a turn in published chat models.
const TURN_ENDS: [&str; 7] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
];

impl GgufTokenizer {
    /// Ids that end a completion: the end-of-text and end-of-turn ids of the metadata and every control token whose
    /// spelling is that of a turn end in published chat models. Ascending, without duplicates.
    pub fn end_tokens(&self) -> Vec<u32> {
        let size = self.tokens.len();
        let named = self.tokens.iter().enumerate().filter_map(|(id, text)| {
            (self.token_type(id) == 3 && TURN_ENDS.contains(&text.as_str())).then_some(id as u32)
        });
        let mut ids: Vec<u32> =
            self.eos.into_iter().chain(self.eot).filter(|&id| (id as usize) < size).chain(named).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    fn token_type(&self, id: usize) -> i32 {
        self.token_types.get(id).copied().unwrap_or(1)
    }
}

/// The regular expression of Qwen 2; `{digits}` is the piece for numbers, in which Llama 3 differs.
fn word_pattern(digits: &str) -> String {
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        digits,
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
    .join("|")
}

/// Builds the bytes of a `tokenizer.json` from GGUF metadata.
///
/// The result gives the ids of the tokenizer that the model was trained with, for the pre-tokenizers `smollm`,
/// `starcoder`, `refact`, `qwen2`, `deepseek-r1-qwen`, `llama-bpe`, `llama3`, `gpt-2` and `default` (taken as
/// `gpt-2`) of `gpt2`, and for `llama`. Control tokens become special added tokens, user-defined ones plain added
/// tokens.
///
/// # Errors
/// [`TokenizerError::UnsupportedModel`] and [`TokenizerError::UnsupportedPreTokenizer`] name what is not supported;
/// [`TokenizerError::Inconsistent`] when lengths or ids do not fit together or a token occurs twice.
pub fn tokenizer_json_from_gguf(gguf: &GgufTokenizer) -> Result<Vec<u8>, TokenizerError> {
    let size = gguf.tokens.len();
    if size == 0 || size > MAX_VOCABULARY {
        return Err(TokenizerError::Inconsistent(format!("{size} tokens")));
    }
    if !gguf.token_types.is_empty() && gguf.token_types.len() != size {
        return Err(TokenizerError::Inconsistent(format!(
            "{} token types for {size} tokens",
            gguf.token_types.len()
        )));
    }
    for (name, id) in [("bos", gguf.bos), ("eos", gguf.eos), ("eot", gguf.eot), ("unknown", gguf.unknown)] {
        if let Some(id) = id
            && id as usize >= size
        {
            return Err(TokenizerError::Inconsistent(format!(
                "the {name} token id {id} is outside {size} tokens"
            )));
        }
    }
    let mut ids = HashMap::with_capacity(size);
    for (id, text) in gguf.tokens.iter().enumerate() {
        if ids.insert(text.as_str(), id as u32).is_some() {
            return Err(TokenizerError::Inconsistent(format!("the token `{text}` occurs twice")));
        }
    }

    let (core, default_bos) = match gguf.model.as_str() {
        "gpt2" => byte_level(gguf, &ids)?,
        "llama" => (sentence_piece(gguf, &ids)?, true),
        other => return Err(TokenizerError::UnsupportedModel(other.to_owned())),
    };
    let added: Vec<Value> = gguf
        .tokens
        .iter()
        .enumerate()
        .filter(|(id, text)| matches!(gguf.token_type(*id), 2..=4) && !text.is_empty())
        .map(|(id, text)| {
            json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": gguf.token_type(id) != 4,
            })
        })
        .collect();
    let edge = |wanted: bool, id: Option<u32>| id.filter(|_| wanted).map(|id| &gguf.tokens[id as usize]);
    let first = edge(gguf.add_bos.unwrap_or(default_bos), gguf.bos);
    let last = edge(gguf.add_eos.unwrap_or(false), gguf.eos);
    let mut definition = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": null, "post_processor": post_processor(first, last, &ids),
        "decoder": null, "model": null,
    });
    for (key, value) in core {
        definition[key] = value;
    }
    serde_json::to_vec(&definition).map_err(|error| TokenizerError::Malformed(error.to_string()))
}

/// The post-processor that adds the beginning and end tokens.
fn post_processor(first: Option<&String>, last: Option<&String>, ids: &HashMap<&str, u32>) -> Value {
    if first.is_none() && last.is_none() {
        return Value::Null;
    }
    let token = |text: &String, kind: u8| json!({"SpecialToken": {"id": text, "type_id": kind}});
    let mut single = Vec::new();
    let mut pair = Vec::new();
    let mut special = serde_json::Map::new();
    for (sequence, kind) in [("A", 0), ("B", 1)] {
        let mut part = Vec::new();
        part.extend(first.map(|text| token(text, kind)));
        part.push(json!({"Sequence": {"id": sequence, "type_id": kind}}));
        part.extend(last.map(|text| token(text, kind)));
        if kind == 0 {
            single.clone_from(&part);
        }
        pair.extend(part);
    }
    for text in first.into_iter().chain(last) {
        special.insert(text.clone(), json!({"id": text, "ids": [ids[text.as_str()]], "tokens": [text]}));
    }
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special})
}

/// Parts of a definition by their key, and whether a beginning token is added unless the metadata say otherwise.
type Parts = Vec<(&'static str, Value)>;

/// Byte-level BPE.
fn byte_level(gguf: &GgufTokenizer, ids: &HashMap<&str, u32>) -> Result<(Parts, bool), TokenizerError> {
    let gpt2 = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let split = |pattern: String| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            gpt2(false),
        ]})
    };
    let pre = gguf.pre.as_deref().unwrap_or("default");
    let (pre_tokenizer, normalizer, llama3) = match pre {
        "smollm" | "starcoder" | "refact" => (
            json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, gpt2(true)]}),
            Value::Null,
            false,
        ),
        "qwen2" | "deepseek-r1-qwen" => (split(word_pattern(r"\p{N}")), json!({"type": "NFC"}), false),
        "llama-bpe" | "llama3" | "llama-v3" => (split(word_pattern(r"\p{N}{1,3}")), Value::Null, true),
        "gpt-2" | "default" => (gpt2(true), Value::Null, false),
        other => return Err(TokenizerError::UnsupportedPreTokenizer(other.to_owned())),
    };
    let mut merges = Vec::with_capacity(gguf.merges.len());
    for merge in &gguf.merges {
        // The first character may itself be a space in odd files, so the separator is looked for after it.
        let cut = merge.char_indices().skip(1).find(|&(_, character)| character == ' ').map(|(at, _)| at);
        let pair = cut.map(|at| (&merge[..at], &merge[at + 1..]));
        match pair {
            Some((left, right))
                if ids.contains_key(left)
                    && ids.contains_key(right)
                    && ids.contains_key(format!("{left}{right}").as_str()) =>
            {
                merges.push(json!([left, right]));
            }
            _ => {
                return Err(TokenizerError::Inconsistent(format!(
                    "the merge `{merge}` is not over known tokens"
                )));
            }
        }
    }
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": llama3,
        "vocab": ids.iter().map(|(text, id)| ((*text).to_owned(), json!(id))).collect::<std::collections::BTreeMap<_, _>>(),
        "merges": merges,
    });
    Ok((
        vec![
            ("model", model),
            ("pre_tokenizer", pre_tokenizer),
            ("normalizer", normalizer),
            ("decoder", gpt2(true)),
        ],
        llama3,
    ))
}

/// SentencePiece BPE: merges are derived from the scores, unknown characters fall back to bytes.
fn sentence_piece(gguf: &GgufTokenizer, ids: &HashMap<&str, u32>) -> Result<Parts, TokenizerError> {
    if gguf.scores.len() != gguf.tokens.len() {
        return Err(TokenizerError::Inconsistent(format!(
            "{} scores for {} tokens",
            gguf.scores.len(),
            gguf.tokens.len()
        )));
    }
    // Control and byte tokens never result from text, so they take no part in merges.
    let known =
        |text: &str| ids.get(text).copied().filter(|&id| matches!(gguf.token_type(id as usize), 1 | 4));
    let mut merges: Vec<(f32, usize, usize, &str, &str)> = Vec::new();
    for (id, text) in gguf.tokens.iter().enumerate() {
        if gguf.token_type(id) != 1 {
            continue;
        }
        let mut pairs: Vec<(u32, u32, usize)> = proper_boundaries(text)
            .filter_map(|cut| Some((known(&text[..cut])?, known(&text[cut..])?, cut)))
            .collect();
        pairs.sort_unstable();
        for (_, _, cut) in pairs {
            let (left, right) = text.split_at(cut);
            merges.push((gguf.scores[id], left.chars().count(), right.chars().count(), left, right));
        }
    }
    // Highest score first; among equals the longer left part, then the longer right part, then vocabulary order.
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2)));
    let unknown = gguf.unknown.map(|id| gguf.tokens[id as usize].as_str());
    let prefix = gguf.add_space_prefix.unwrap_or(true);
    let mut normalizers = Vec::new();
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.push(json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    normalizers.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}));
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "vocab": ids.iter().map(|(text, id)| ((*text).to_owned(), json!(id))).collect::<std::collections::BTreeMap<_, _>>(),
        "merges": merges.iter().map(|merge| json!([merge.3, merge.4])).collect::<Vec<_>>(),
    });
    Ok(vec![
        ("model", model),
        ("normalizer", json!({"type": "Sequence", "normalizers": normalizers})),
        ("decoder", json!({"type": "Sequence", "decoders": decoders})),
    ])
}
