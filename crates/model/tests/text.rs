//! Limits, refusals and properties of tokenizer and template.
#![allow(clippy::unwrap_used)]

use assay_model::template::{MAX_ITEMS, MAX_TEMPLATE_BYTES};
use assay_model::tokenizer::MAX_TEXT_BYTES;
use assay_model::{
    ChatTemplate, Conversation, GgufTokenizer, TemplateError, Tokenizer, TokenizerError,
    tokenizer_json_from_gguf,
};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Every byte, three control tokens, two of them with one the beginning of the other, and a user-defined one.
fn gguf() -> GgufTokenizer {
    let mut tokens: Vec<String> = ["<|a|>", "<|a|>>", "</s>", "<think>"].map(String::from).to_vec();
    let mut next = 0x100;
    for byte in 0..=255_u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        tokens.push(if printable {
            char::from(byte).to_string()
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap().to_string()
        });
    }
    tokens.extend(["ab", "<|"].map(String::from));
    let mut token_types = vec![1; tokens.len()];
    token_types[..4].copy_from_slice(&[3, 3, 3, 4]);
    GgufTokenizer {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens,
        token_types,
        merges: vec!["a b".into(), "< |".into()],
        eos: Some(2),
        ..GgufTokenizer::default()
    }
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(&tokenizer_json_from_gguf(&gguf()).unwrap()).unwrap()
}

#[test]
fn gguf_metadata_are_checked() {
    let refused = |change: &dyn Fn(&mut GgufTokenizer)| {
        let mut changed = gguf();
        change(&mut changed);
        tokenizer_json_from_gguf(&changed).unwrap_err()
    };
    assert!(
        matches!(refused(&|g| g.model = "bert".into()), TokenizerError::UnsupportedModel(name) if name == "bert")
    );
    assert!(
        matches!(refused(&|g| g.pre = Some("tekken".into())), TokenizerError::UnsupportedPreTokenizer(name) if name == "tekken")
    );
    assert!(matches!(refused(&|g| g.tokens.clear()), TokenizerError::Inconsistent(_)));
    assert!(matches!(refused(&|g| g.tokens.push("ab".into())), TokenizerError::Inconsistent(_)));
    assert!(matches!(refused(&|g| g.token_types.truncate(3)), TokenizerError::Inconsistent(_)));
    assert!(matches!(refused(&|g| g.eos = Some(9_999)), TokenizerError::Inconsistent(_)));
    assert!(matches!(refused(&|g| g.merges.push("ab".into())), TokenizerError::Inconsistent(_)));
    assert!(matches!(refused(&|g| g.merges.push("a c".into())), TokenizerError::Inconsistent(_)));
    assert!(matches!(refused(&|g| g.model = "llama".into()), TokenizerError::Inconsistent(_)));
}

#[test]
fn beginning_and_end_tokens_follow_the_metadata() {
    let with = |add_bos, add_eos| {
        let gguf = GgufTokenizer { bos: Some(0), add_bos, add_eos, ..gguf() };
        Tokenizer::from_bytes(&tokenizer_json_from_gguf(&gguf).unwrap()).unwrap().encode("ab", true).unwrap()
    };
    assert_eq!(with(None, None), [260]);
    assert_eq!(with(Some(true), None), [0, 260]);
    assert_eq!(with(Some(true), Some(true)), [0, 260, 2]);
    assert_eq!(gguf().end_tokens(), [2]);
}

#[test]
fn broken_definitions_are_refused() {
    assert!(matches!(Tokenizer::from_bytes(b"{"), Err(TokenizerError::Malformed(_))));
    assert!(matches!(Tokenizer::from_bytes(b"{}"), Err(TokenizerError::UnsupportedDecoder(_))));
    let mut definition: Value = serde_json::from_slice(&tokenizer_json_from_gguf(&gguf()).unwrap()).unwrap();
    definition["added_tokens"][0]["id"] = json!(7);
    assert!(matches!(
        Tokenizer::from_bytes(definition.to_string().as_bytes()),
        Err(TokenizerError::Malformed(_))
    ));
    definition["decoder"] =
        json!({"type": "CTC", "pad_token": "x", "word_delimiter_token": "|", "cleanup": true});
    assert!(matches!(
        Tokenizer::from_bytes(definition.to_string().as_bytes()),
        Err(TokenizerError::UnsupportedDecoder(name)) if name == "CTC"
    ));
}

#[test]
fn long_and_odd_texts() {
    let tokenizer = tokenizer();
    let long = " ".repeat(MAX_TEXT_BYTES + 1);
    assert!(matches!(tokenizer.encode(&long, true), Err(TokenizerError::TooLarge { .. })));
    let spaces = " ".repeat(200_000);
    assert_eq!(tokenizer.decode(&tokenizer.encode(&spaces, true).unwrap()).unwrap(), spaces);
    assert!(matches!(tokenizer.decode(&[9_999]), Err(TokenizerError::UnknownToken { id: 9_999, .. })));
    assert!(tokenizer.token_bytes(9_999).is_empty());
    assert_eq!(tokenizer.token_text(0), "<|a|>");
    assert_eq!(tokenizer.token_bytes(0), b"");
    assert_eq!(tokenizer.encode("<think>", false).unwrap(), [3]);
    assert_eq!(tokenizer.decode(&[3]).unwrap(), "<think>");
}

#[test]
fn whole_words_that_spell_control_tokens_stay_text() {
    // llama-bpe looks a whole word up before merging.
    let mut gguf = gguf();
    gguf.pre = Some("llama-bpe".into());
    gguf.tokens[0] = "control".into();
    let tokenizer = Tokenizer::from_bytes(&tokenizer_json_from_gguf(&gguf).unwrap()).unwrap();
    assert_eq!(tokenizer.encode("control", false).unwrap(), [0]);
    let plain = tokenizer.encode_plain("control").unwrap();
    assert_eq!((plain.len(), tokenizer.decode(&plain).unwrap().as_str()), (7, "control"));
}

#[test]
fn marks_run_out() {
    let all: String = ('\u{100000}'..='\u{10FFFD}').collect();
    let tokenizer = tokenizer();
    assert!(tokenizer.guard("", [all.as_str()]).is_ok());
    assert!(matches!(tokenizer.guard("", [all.as_str(), "</s>"]), Err(TokenizerError::NoMarkLeft)));
    let guard = tokenizer.guard("\u{100000}", ["\u{100001}</s>"]).unwrap();
    assert_eq!(guard.protect("</s>"), "<\u{100002}/s>");
}

proptest! {
    #[test]
    fn streams_join_to_the_lossy_text(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0xF0), Just(0x9F), Just(0x80)], 0..40), cuts in proptest::collection::vec(0_usize..40, 0..8)) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut stream = tokenizer().stream();
        let mut text: String = cuts.windows(2).map(|pair| stream.push(&bytes[pair[0]..pair[1]])).collect();
        text.push_str(&stream.finish());
        prop_assert_eq!(text.as_str(), &*String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn typed_control_tokens_never_take_effect(
        parts in proptest::collection::vec(prop_oneof![
            Just("<|a|>"), Just("<|a|>>"), Just("</s>"), Just("<|"), Just("|>"), Just("<"), Just(">"), Just("/s>"),
            Just("a"), Just(" "), Just("\n"), Just("\u{100000}"),
        ].prop_map(str::to_owned), 0..8),
        cut in 0_usize..8,
    ) {
        let tokenizer = tokenizer();
        let cut = cut.min(parts.len());
        let (first, second) = (parts[..cut].concat(), parts[cut..].concat());
        let guard = tokenizer.guard("", [first.as_str(), second.as_str()]).unwrap();
        let joined = format!("<|a|>{}{}</s>", guard.protect(first.trim()), guard.protect(&second));
        let ids = tokenizer.encode_guarded(&joined, &guard).unwrap();
        prop_assert_eq!(ids[0], 0);
        prop_assert_eq!(ids[ids.len() - 1], 2);
        let inner = &ids[1..ids.len() - 1];
        prop_assert!(inner.iter().all(|&id| !tokenizer.is_special(id)));
        prop_assert_eq!(tokenizer.decode(inner).unwrap(), format!("{}{}", first.trim(), second));
    }
}

fn render(source: &str) -> Result<String, TemplateError> {
    let messages = [json!({"role": "user", "content": "x"})];
    ChatTemplate::new(source, "<s>", "</s>")?.render(&Conversation {
        messages: &messages,
        tools: None,
        add_generation_prompt: true,
        now_unix_s: 1_709_210_096, // 29 February 2024, 12:34:56
    })
}

#[test]
fn dates_and_blocks() {
    let date =
        render("{{ strftime_now('%Y-%m-%d %H:%M:%S %b %B %a %A %y %I %p %-d %e %F %T %%') }}").unwrap();
    assert_eq!(date, "2024-02-29 12:34:56 Feb February Thu Thursday 24 12 PM 29 29 2024-02-29 12:34:56 %");
    assert_eq!(render("a{% generation %}b{%- endgeneration -%} c").unwrap(), "abc");
    assert!(matches!(render("{{ strftime_now('%Q') }}"), Err(TemplateError::Failed(_))));
}

#[test]
fn hostile_templates_end() {
    assert!(matches!(render("{% if"), Err(TemplateError::Syntax(_))));
    assert!(matches!(render("{{ messages.x.y }}"), Err(TemplateError::Failed(_))));
    assert!(matches!(render("{% include 'other' %}"), Err(TemplateError::Syntax(_))));
    assert!(
        matches!(render("{{ raise_exception('no') }}"), Err(TemplateError::Raised(message)) if message == "no")
    );
    let loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    assert!(matches!(render(loops), Err(TemplateError::OutOfFuel(_))));
    let recursion = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    assert!(matches!(render(recursion), Err(TemplateError::Failed(_) | TemplateError::OutOfFuel(_))));
    let output = "{% set x = 'x' %}{% for a in range(3000) %}{{ x * 1000 }}{% endfor %}";
    assert!(matches!(render(output), Err(TemplateError::TooMuchOutput)));
    assert!(matches!(render("{% set x = ['x'] %}{{ x * 9999999 }}"), Err(TemplateError::TooMuchMemory)));
    let doubles =
        "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}";
    assert!(matches!(render(doubles), Err(TemplateError::TooMuchMemory)));
    assert!(matches!(render("{% set x = 'x' %}{{ x * 10**9 }}"), Err(TemplateError::TooMuchMemory)));
    for constant in
        ["'x' * 10**9", "10**9 * 'x'", "['x'] * 9", "9 * ['x']", "('x') * 9", "9 * ('x')", "9 * -9 * 'x'"]
    {
        assert!(
            matches!(render(&format!("{{{{ {constant} }}}}")), Err(TemplateError::Syntax(_))),
            "{constant}"
        );
    }
    assert_eq!(render("{% set n = 3 %}{{ n * 2 + 4 * 5 }}").unwrap(), "26");
    assert!(matches!(render(&"x".repeat(MAX_TEMPLATE_BYTES + 1)), Err(TemplateError::TooLong(_))));
    assert!(render(&format!("{{{{ {}1{} }}}}", "(".repeat(5_000), ")".repeat(5_000))).is_err());
    let messages = vec![json!({"role": "user", "content": "x"}); MAX_ITEMS + 1];
    let many = ChatTemplate::new("", "", "").unwrap().render(&Conversation {
        messages: &messages,
        tools: None,
        add_generation_prompt: false,
        now_unix_s: 0,
    });
    assert!(matches!(many, Err(TemplateError::TooManyItems(_))));
}
