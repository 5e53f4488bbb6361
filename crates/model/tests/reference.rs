//! Token ids and rendered templates against other implementations; `make_reference.py` says which.
#![allow(clippy::unwrap_used)]

use assay_model::{ChatTemplate, Conversation, GgufTokenizer, Tokenizer, tokenizer_json_from_gguf};
use serde_json::Value;

fn reference() -> Value {
    serde_json::from_str(include_str!("data/tokenizer.json")).unwrap()
}

fn list<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn tokenizer(gguf: &GgufTokenizer) -> Tokenizer {
    Tokenizer::from_bytes(&tokenizer_json_from_gguf(gguf).unwrap()).unwrap()
}

/// Compares ids, and decodes them back to the text where nothing is lost by definition.
fn compare(
    name: &str,
    texts: &[String],
    expected: &Value,
    encode: impl Fn(&str) -> Vec<u32>,
    tokenizer: &Tokenizer,
) {
    let expected: Vec<Option<Vec<u32>>> = list(expected);
    assert_eq!(texts.len(), expected.len());
    let mut compared = 0;
    for (text, expected) in texts.iter().zip(expected) {
        let Some(expected) = expected else { continue };
        let ids = encode(text);
        assert_eq!(ids, expected, "{name}: {text:?}");
        assert_eq!(stream(tokenizer, &ids), tokenizer.decode(&ids).unwrap(), "{name}: {text:?}");
        compared += ids.len();
    }
    assert!(compared > 5_000, "{name}: only {compared} tokens compared");
}

fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.stream();
    let mut text: String = ids.iter().map(|&id| stream.push(tokenizer.token_bytes(id))).collect();
    text.push_str(&stream.finish());
    text
}

#[test]
fn byte_level_vocabularies() {
    let reference = reference();
    let texts: Vec<String> = list(&reference["texts"]);
    let small = &reference["small"];
    let tokens: Vec<String> = list(&small["tokens"]);
    let controls = small["controls"].as_u64().unwrap() as usize;
    for (pre, ids) in small["ids"].as_object().unwrap() {
        let gguf = GgufTokenizer {
            model: "gpt2".into(),
            pre: Some(pre.clone()),
            token_types: (0..tokens.len()).map(|id| if id < controls { 3 } else { 1 }).collect(),
            tokens: tokens.clone(),
            merges: list(&small["merges"]),
            ..GgufTokenizer::default()
        };
        let tokenizer = tokenizer(&gguf);
        compare(pre, &texts, ids, |text| tokenizer.encode_plain(text).unwrap(), &tokenizer);
        for text in texts.iter().filter(|_| pre != "qwen2") {
            // Qwen normalises to NFC; the others keep every byte.
            assert_eq!(&tokenizer.decode(&tokenizer.encode_plain(text).unwrap()).unwrap(), text);
        }
    }
}

#[test]
fn sentence_piece() {
    let reference = reference();
    let texts: Vec<String> = list(&reference["texts"]);
    let piece = &reference["piece"];
    let gguf = GgufTokenizer {
        model: "llama".into(),
        tokens: list(&piece["tokens"]),
        token_types: list(&piece["types"]),
        scores: list(&piece["scores"]),
        unknown: Some(0),
        bos: Some(1),
        eos: Some(2),
        ..GgufTokenizer::default()
    };
    let tokenizer = tokenizer(&gguf);
    compare("sentencepiece", &texts, &piece["ids"], |text| tokenizer.encode_plain(text).unwrap(), &tokenizer);
    for text in texts.iter().filter(|text| !text.contains('▁')) {
        assert_eq!(&tokenizer.decode(&tokenizer.encode_plain(text).unwrap()).unwrap(), text);
    }
    assert_eq!(tokenizer.encode("a", true).unwrap()[0], 1);
    assert_ne!(tokenizer.encode("a", false).unwrap()[0], 1);
}

#[test]
fn templates() {
    for case in reference()["templates"].as_array().unwrap() {
        let template = ChatTemplate::new(case["source"].as_str().unwrap(), "<s>", "</s>").unwrap();
        let messages: Vec<Value> = list(&case["messages"]);
        let tools: Option<Vec<Value>> = list(&case["tools"]);
        let conversation = Conversation {
            messages: &messages,
            tools: tools.as_deref(),
            add_generation_prompt: true,
            now_unix_s: 1_753_900_000,
        };
        let text = template.render(&conversation).unwrap();
        assert_eq!(text, case["text"].as_str().unwrap());
        if let Some(applied) = case["llama_cpp"].as_str() {
            assert_eq!(text, applied);
        }
    }
}

fn imported(path: &std::ffi::OsStr) -> Tokenizer {
    let artifact = assay_model::import_gguf(&std::fs::read(path).unwrap(), &mut |_, _| {}).unwrap();
    let artifact = assay_model::Artifact::parse(std::sync::Arc::new(artifact)).unwrap();
    Tokenizer::from_bytes(artifact.tokenizer_json()).unwrap()
}

/// Needs published models as GGUF files, named by environment variables.
#[test]
#[ignore = "needs the model files named by ASSAY_TEST_*; .ci/parts/25-tokenizer runs it"]
fn whole_models_against_llama_cpp() {
    let reference = reference();
    let texts: Vec<String> = list(&reference["texts"]);
    let others: Value = serde_json::from_str(include_str!("data/models.json")).unwrap();
    let models = [
        ("ASSAY_TEST_SMOLLM2", &reference["smollm2"]),
        ("ASSAY_TEST_GEMMA3", &others["gemma3"]),
        ("ASSAY_TEST_QWEN", &others["qwen2.5-coder"]),
    ];
    let mut compared = 0;
    for (variable, ids) in models {
        let Some(path) = std::env::var_os(variable) else { continue };
        let tokenizer = imported(&path);
        compare(variable, &texts, &ids["control"], |text| tokenizer.encode(text, false).unwrap(), &tokenizer);
        compare(variable, &texts, &ids["plain"], |text| tokenizer.encode_plain(text).unwrap(), &tokenizer);
        compared += 1;
    }
    assert!(compared > 0, "set ASSAY_TEST_SMOLLM2, ASSAY_TEST_GEMMA3 or ASSAY_TEST_QWEN");
}
