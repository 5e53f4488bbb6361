use proptest::prelude::*;

use super::*;
use assay_model::{GgufTokenizer, tokenizer_json_from_gguf};

/// A tokenizer with one token a byte (ids 1 to 256) and the control token 0.
fn bytes_tokenizer() -> Arc<Tokenizer> {
    let mut tokens = vec!["<|end|>".to_owned()];
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
    let mut token_types = vec![1; tokens.len()];
    token_types[0] = 3;
    let gguf = GgufTokenizer {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens,
        token_types,
        eos: Some(0),
        ..GgufTokenizer::default()
    };
    Arc::new(Tokenizer::from_bytes(&tokenizer_json_from_gguf(&gguf).unwrap()).unwrap())
}

fn assembler(stop: &[&str], tools: &[&str], parallel: bool) -> Assembler {
    Assembler::new(
        bytes_tokenizer(),
        Rules {
            stop: stop.iter().map(|stop| (*stop).to_owned()).collect(),
            end_tokens: vec![0],
            tools: tools.iter().map(|tool| (*tool).to_owned()).collect(),
            parallel,
            prompt_tokens: 3,
            prompt_hash: Bytes32([1; 32]),
            logprobs: false,
        },
    )
}

fn run(mut assembler: Assembler, tokens: &[u32]) -> (String, Output) {
    let mut shown = String::new();
    for &token in tokens {
        let step = assembler.push(token, None);
        shown.push_str(&step.delta);
        if step.stop {
            break;
        }
    }
    let finished = assembler.finish();
    shown.push_str(&finished.delta);
    (shown, finished.output)
}

fn tokens(text: &str) -> Vec<u32> {
    text.bytes().map(|byte| u32::from(byte) + 1).collect()
}

fn run_text(assembler: Assembler, text: &str) -> Output {
    let mut ids = tokens(text);
    ids.push(0);
    let (shown, output) = run(assembler, &ids);
    assert_eq!(shown, output.text);
    output
}

#[test]
fn ends_at_the_end_token_and_at_length() {
    let output = run_text(assembler(&[], &[], true), "héllo");
    assert_eq!((output.text.as_str(), output.finish_reason), ("héllo", FinishReason::Stop));
    assert_eq!((output.prompt_tokens, output.completion_tokens), (3, 7));
    let (_, output) = run(assembler(&[], &[], true), &tokens("hello"));
    assert_eq!(output.finish_reason, FinishReason::Length);
}

#[test]
fn a_character_cut_off_is_replaced_once() {
    let ids: Vec<u32> = [0xF0_u32, 0x9F, 0x98].iter().map(|byte| byte + 1).collect();
    let (shown, output) = run(assembler(&[], &[], true), &ids);
    assert_eq!((shown.as_str(), output.text.as_str()), ("\u{FFFD}", "\u{FFFD}"));
}

#[test]
fn stops_before_the_first_stop_string_and_ignores_later_tokens() {
    let mut assembler = assembler(&["END", "\n\n"], &[], true);
    let ids = tokens("ab ENEND more");
    let mut shown = String::new();
    for &token in &ids {
        shown.push_str(&assembler.push(token, None).delta);
    }
    let finished = assembler.finish();
    assert_eq!(shown + &finished.delta, "ab EN");
    assert_eq!(finished.output.finish_reason, FinishReason::Stop);
    assert_eq!(finished.output.tokens.len(), 8);
}

#[test]
fn takes_calls_out_of_the_text() {
    let text = "I look.<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, 2.50]}}\n</tool_call>\n<tool_call>{\"name\":\"g\"}</tool_call>";
    let output = run_text(assembler(&[], &["f", "g"], true), text);
    assert_eq!((output.text.as_str(), output.finish_reason), ("I look.", FinishReason::ToolCalls));
    let calls: serde_json::Value = serde_json::from_str(output.tool_calls.as_deref().unwrap()).unwrap();
    assert_eq!(calls[0]["function"]["name"], "f");
    assert_eq!(calls[0]["function"]["arguments"], "{\"a\": [1, 2.50]}");
    assert_eq!(calls[1]["function"]["arguments"], "{}");
    assert_ne!(calls[0]["id"], calls[1]["id"]);
    assert_eq!(run_text(assembler(&[], &["f", "g"], true), text), output);
}

#[test]
fn one_call_ends_the_answer_when_only_one_is_allowed() {
    let call = "<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>";
    let mut assembler = assembler(&[], &["f"], false);
    let stop = tokens(call).into_iter().map(|token| assembler.push(token, None).stop).collect::<Vec<_>>();
    assert!(stop.last().unwrap() & !stop[stop.len() - 2]);
    let output = assembler.finish().output;
    assert_eq!((output.text.as_str(), output.finish_reason), ("", FinishReason::ToolCalls));
}

#[test]
fn what_is_no_call_stays_text() {
    for text in [
        "<tool_call>not json</tool_call> after",
        "<tool_call>{\"name\":\"unknown\",\"arguments\":{}}</tool_call>",
        "<tool_call>{\"name\":\"f\",\"arguments\":[]}</tool_call>",
        "<tool_call>{\"name\":\"f\",\"arguments\":{}",
        "a <tool_cal",
        "<tool_call",
    ] {
        let output = run_text(assembler(&[], &["f"], true), text);
        assert_eq!((output.text.as_str(), output.tool_calls), (text, None));
    }
    let text = "<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>";
    assert_eq!(run_text(assembler(&[], &[], true), text).text, text);
}

/// The first stop string by looking after every byte.
fn naive_stop(text: &str, stops: &[String]) -> Option<usize> {
    (1..=text.len()).find_map(|end| {
        stops
            .iter()
            .filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes()))
            .map(|stop| end - stop.len())
            .min()
    })
}

proptest! {
    #[test]
    fn stop_filter_agrees_with_a_plain_search_for_any_division(
        text in "[abé<]{0,40}",
        stops in proptest::collection::vec("[abé<]{1,4}", 0..4),
        cuts in proptest::collection::vec(0_usize..40, 0..10),
    ) {
        let mut filter = StopFilter::new(stops.clone());
        let mut out = String::new();
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| cut <= text.len() && text.is_char_boundary(cut)).collect();
        cuts.push(text.len());
        cuts.sort_unstable();
        let mut start = 0;
        for cut in cuts {
            out.push_str(&filter.push(&text[start..cut]));
            start = cut;
        }
        let found = naive_stop(&text, &stops);
        prop_assert_eq!(filter.done, found.is_some());
        out.push_str(&filter.finish());
        prop_assert_eq!(out.as_str(), &text[..found.unwrap_or(text.len())]);
    }

    #[test]
    fn deltas_join_to_the_text(
        parts in proptest::collection::vec(prop_oneof![
            Just("<tool_call>".to_owned()), Just("</tool_call>".to_owned()), Just("{\"name\":\"f\"}".to_owned()),
            Just("<tool".to_owned()), Just("STOP".to_owned()), Just("é😀".to_owned()), "[a-z <\n]{0,6}",
        ], 0..12),
        broken in proptest::collection::vec(any::<u8>(), 0..4),
        stop in proptest::collection::vec(prop_oneof![Just("STOP".to_owned()), Just("l_call".to_owned()), "[a-z<]{1,3}"], 0..3),
        parallel in any::<bool>(),
        end in any::<bool>(),
    ) {
        let stops: Vec<&str> = stop.iter().map(String::as_str).collect();
        let mut ids = tokens(&parts.concat());
        ids.extend(broken.iter().map(|&byte| u32::from(byte) + 1));
        if end {
            ids.push(0);
        }
        let (shown, output) = run(assembler(&stops, &["f"], parallel), &ids);
        prop_assert_eq!(&shown, &output.text);
        prop_assert!(ids.starts_with(&output.tokens));
        // Without stop strings and calls nothing is lost.
        let (shown, output) = run(assembler(&[], &[], parallel), &ids);
        let bytes: Vec<u8> = ids.iter().filter(|&&id| id > 0).map(|&id| (id - 1) as u8).collect();
        prop_assert_eq!(shown.as_str(), &*String::from_utf8_lossy(&bytes));
        prop_assert_eq!(output.tokens.len(), ids.len());
    }
}
