//! scratch
#![allow(clippy::unwrap_used, missing_docs)]
use std::sync::Arc;
use std::time::Instant;
use assay_engine::*;
use assay_model::*;
fn main() {
    let path = std::env::args().nth(1).unwrap();
    let threads: usize = std::env::args().nth(2).unwrap().parse().unwrap();
    let bytes = match std::fs::read(format!("{path}.assay")) { Ok(b) => b, Err(_) => { let b = import_gguf(&std::fs::read(&path).unwrap(), &mut |_, _| {}).unwrap(); std::fs::write(format!("{path}.assay"), &b).unwrap(); b } };
    let t = Instant::now();
    let artifact = Arc::new(Artifact::parse(Arc::new(bytes)).unwrap());
    println!("parse {:?}", t.elapsed());
    let tok = Tokenizer::from_bytes(artifact.tokenizer_json()).unwrap();
    let kernel = match std::env::args().nth(3) { Some(k) => k.parse().unwrap(), None => assay_arithmetic::Kernel::best() };
    let mut engine = Engine::new(artifact, Config { threads, kernel, ..Config::default() }).unwrap();
    let sampling = assay_receipt::Sampling { temperature_milli: 0, top_k: 0, top_p_ppm: 1_000_000, min_p_ppm: 0, repetition_penalty_milli: 1000, frequency_penalty_milli: 0, presence_penalty_milli: 0, logit_bias: vec![], seed: 0 };
    let gpl = std::fs::read_to_string("/usr/share/common-licenses/GPL-3").unwrap();
    let prompt = tok.encode("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n", true).unwrap();
    let g = Generation { prompt, resume: vec![], sampling: sampling.clone(), max_tokens: 40, end_tokens: vec![2], constraint: None, logprobs: None };
    engine.submit(g).unwrap();
    let mut out = vec![];
    while !engine.is_idle() { for e in engine.step().unwrap() { if let Event::Token { token, .. } = e { out.push(token); } } }
    println!("{:?}", tok.decode(&out));
    let long: Vec<u32> = tok.encode(&gpl, true).unwrap();
    for _ in 0..3 {
        let n = 512;
        let g = Generation { prompt: long[..n].to_vec(), resume: vec![], sampling: sampling.clone(), max_tokens: 129, end_tokens: vec![], constraint: None, logprobs: None };
        engine.submit(g.clone()).unwrap();
        let t = Instant::now();
        let mut out = vec![];
        while out.is_empty() { for e in engine.step().unwrap() { if let Event::Token { token, .. } = e { out.push(token); } } }
        let pre = t.elapsed();
        let t = Instant::now();
        while !engine.is_idle() { for e in engine.step().unwrap() { if let Event::Token { token, .. } = e { out.push(token); } } }
        let dec = t.elapsed();
        let t = Instant::now();
        let r = engine.replay(&g, &out).unwrap();
        println!("prefill {:.1} t/s, decode {:.1} t/s, replay {:?} vs {:?} {}", n as f64 / pre.as_secs_f64(), 128.0 / dec.as_secs_f64(), t.elapsed(), pre + dec, matches!(r, Replay::Agrees { .. }));
    }
}
