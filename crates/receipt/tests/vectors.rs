//! The published vectors, `docs/vectors/receipt.json`, are what this code gives. `tests/second-implementation` checks the
//! same file with code that nobody here wrote. After a deliberate change of the format:
//! `ASSAY_UPDATE_VECTORS=1 cargo test -p assay-receipt --test vectors`.
#![allow(clippy::unwrap_used)]

use assay_receipt::*;
use serde_json::{Value, json};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/vectors/receipt.json");

fn secret(name: &str) -> Bytes32 {
    keccak256(format!("assay test key: {name}"))
}

fn key(name: &str) -> Key {
    Key::from_bytes(secret(name).0).unwrap()
}

fn domain() -> Domain {
    Domain { chain_id: 31337, contract: Address([0x5a; 20]) }
}

fn logprob(token: u32) -> TokenLogprob {
    TokenLogprob {
        token,
        logprob_q16: -(token as i32),
        top: vec![(token, -(token as i32)), (token + 1, -131_072)],
    }
}

/// A request that uses every field.
fn full_request() -> Request {
    let message = |role: &str, content: &str| Message {
        role: role.into(),
        content: content.into(),
        ..Message::default()
    };
    Request {
        model: keccak256("model"),
        prompt: Prompt::Chat {
            messages: vec![
                message("system", "You are terse."),
                Message { name: Some("Zoë".into()), ..message("user", "What is the weather in Köln? ☂") },
                Message { tool_calls: Some(r#"[{"id":"1"}]"#.into()), ..message("assistant", "") },
                Message { tool_call_id: Some("1".into()), ..message("tool", r#"{"rain":true}"#) },
            ],
            tools: Some(r#"[{"type":"function","function":{"name":"weather"}}]"#.into()),
            tool_choice: "auto".into(),
            parallel_tool_calls: true,
        },
        max_tokens: 64,
        stop: vec!["\n\n".into(), "END".into()],
        sampling: Sampling {
            temperature_milli: 700,
            top_k: 40,
            top_p_ppm: 950_000,
            min_p_ppm: 10_000,
            repetition_penalty_milli: 1_100,
            frequency_penalty_milli: -250,
            presence_penalty_milli: 500,
            logit_bias: vec![(5, -100_000), (9, 2_500)],
            seed: u64::MAX,
        },
        constraint: Constraint::JsonSchema(r#"{"type":"object"}"#.into()),
        logprobs: Some(2),
        now_unix_s: 1_800_000_000,
    }
}

fn full_output() -> Output {
    Output {
        text: "It rains.".into(),
        tool_calls: Some(r#"[{"id":"2"}]"#.into()),
        finish_reason: FinishReason::ToolCalls,
        tokens: vec![10, 11, 12, 2],
        prompt_tokens: 31,
        completion_tokens: 4,
        logprobs: [10, 11, 12, 2].map(logprob).into(),
    }
}

fn chunks(worker: &Key, request: &Bytes32, nonce: &Bytes32) -> (Vec<SignedChunk>, Chain) {
    let mut chain = Chain::start(request, nonce);
    let parts: [(&str, &[u32]); 3] = [("It", &[10]), (" rains", &[11, 12]), (".", &[2])];
    let signed = parts.iter().enumerate().map(|(index, (text, tokens))| {
        let chunk = Chunk {
            index: index as u64,
            text: text.to_string(),
            tokens: tokens.to_vec(),
            logprobs: tokens.iter().copied().map(logprob).collect(),
        };
        chain.sign(worker, &domain(), chunk).unwrap()
    });
    (signed.collect(), chain)
}

fn members() -> Members {
    let member = |name: &str, operator: &str, url: &str| Member {
        operator: operator.into(),
        worker: key(name).address(),
        key_epoch: 3,
        url: url.into(),
        tls_sha256: keccak256(name),
        models: vec![Offer {
            model: keccak256("model"),
            name: "smollm2".into(),
            prompt_price: 1_000_000_000_000,
            completion_price: 2_000_000_000_000,
            arithmetic: 1,
            context: 2_048,
        }],
    };
    Members {
        serial: 7,
        issued_at_s: 1_700_000_000,
        expires_at_s: 1_900_000_000,
        members: vec![
            member("worker", "Alice", "https://alice.example:8443"),
            member("auditor", "Bob", "https://bob.example:8443"),
        ],
    }
}

fn bundle() -> Bundle {
    let (worker, auditor) = (key("worker"), key("auditor"));
    let (salt, nonce) = (keccak256("salt"), keccak256("nonce"));
    let (request, output) = (full_request(), full_output());
    let commitment = request_commitment(&request, &salt);
    let (chunks, chain) = chunks(&worker, &commitment, &nonce);
    let receipt = Receipt {
        worker: worker.address(),
        key_epoch: 3,
        model: request.model,
        arithmetic: 1,
        level: Level::Signed,
        request: commitment,
        output: output_commitment(&output, &salt),
        chunks: chain.len(),
        chain: chain.link(),
        trace: Bytes32::ZERO,
        prompt_tokens: 31,
        completion_tokens: 4,
        price: 39_000_000_000_000,
        payer: key("payer").address(),
        cap: 1_000_000_000_000_000,
        nonce,
        sequence: 12,
        previous: keccak256("previous"),
        received_at_ms: 1_800_000_000_000,
        first_token_at_ms: 1_800_000_000_120,
        finished_at_ms: 1_800_000_000_300,
    };
    let receipt = Signed::sign(&worker, &domain(), receipt);
    let audit = Audit {
        auditor: auditor.address(),
        key_epoch: 3,
        receipt: receipt.hash(&domain()),
        model: request.model,
        arithmetic: 1,
        verdict: Verdict::Agrees,
        field: String::new(),
        position: 0,
        expected: 0,
        claimed: 0,
        sequence: 4,
        previous: keccak256("previous of the auditor"),
        audited_at_ms: 1_800_000_001_000,
        compute_ms: 85,
    };
    let audits = vec![Signed::sign(&auditor, &domain(), audit)];
    Bundle { version: BUNDLE_VERSION, domain: domain(), salt, request, output, chunks, receipt, audits }
}

fn failure() -> Failure {
    let bundle = bundle();
    let receipt = &bundle.receipt.statement;
    Failure {
        worker: receipt.worker,
        key_epoch: 3,
        model: receipt.model,
        request: receipt.request,
        nonce: receipt.nonce,
        payer: receipt.payer,
        code: FailureCode::Busy,
        message: "all 8 places are taken".into(),
        retry_after_ms: 1_500,
        chunks: 2,
        chain: bundle.chunks[1].link,
        sequence: 13,
        previous: bundle.receipt.hash(&domain()),
        received_at_ms: 1_800_000_000_000,
        finished_at_ms: 1_800_000_000_001,
    }
}

fn statement_vector<T: Statement + serde::Serialize>(name: &str, signer: &str, signed: &Signed<T>) -> Value {
    assert_eq!(signed.signer(&domain()), Ok(key(signer).address()), "{name}");
    json!({
        "name": name,
        "typed_data": typed_data(&domain(), &signed.statement),
        "digest": signed.hash(&domain()),
        "private_key": secret(signer),
        "signer": key(signer).address(),
        "signature": signed.signature,
        "json": signed,
    })
}

fn commitment_vector<T: Typed>(kind: &str, value: &T, salt: &Bytes32, commitment: Bytes32) -> Value {
    json!({
        "kind": kind,
        "salt": salt,
        "typed_data": typed_data(&domain(), value),
        "struct_hash": value.struct_hash(),
        "commitment": commitment,
    })
}

fn vectors() -> Value {
    let bundle = bundle();
    let domain = domain();
    let salt = &bundle.salt;
    let receipt = &bundle.receipt.statement;
    let mut plain = Request::from_text(keccak256("model"), "Once upon a time", 16);
    plain.constraint = Constraint::Regex("[a-z]+".into());
    plain.logprobs = Some(0);
    let tokens = Request {
        prompt: Prompt::Tokens(vec![1, 2, u32::MAX]),
        constraint: Constraint::Json,
        ..full_request()
    };
    let bare =
        Request { constraint: Constraint::Grammar("start: \"a\"".into()), logprobs: None, ..plain.clone() };
    let requests = [&bundle.request, &plain, &tokens, &bare].map(|request| {
        let commitment = request_commitment(request, salt);
        let mut vector = commitment_vector("request", request, salt, commitment);
        vector["json"] = json!(request);
        vector
    });
    let empty = Output {
        text: String::new(),
        tool_calls: None,
        finish_reason: FinishReason::Length,
        tokens: vec![],
        prompt_tokens: 0,
        completion_tokens: 0,
        logprobs: vec![],
    };
    let outputs = [&bundle.output, &empty].map(|output| {
        let mut vector = commitment_vector("output", output, salt, output_commitment(output, salt));
        vector["json"] = json!(output);
        vector
    });
    let links = bundle.chunks.iter().map(|signed| {
        json!({
            "typed_data": typed_data(&domain, &signed.chunk),
            "struct_hash": signed.chunk.struct_hash(),
            "link": signed.link,
            "signed_typed_data": signed.typed_data(&domain, &receipt.nonce),
            "digest": signed.hash(&domain, &receipt.nonce),
            "signature": signed.signature,
        })
    });
    json!({
        "about": "Test vectors of docs/receipt.md. All keys are for tests only.",
        "domain": domain,
        "domain_separator": domain.separator(),
        "statements": [
            statement_vector("receipt", "worker", &bundle.receipt),
            statement_vector("failure", "worker", &Signed::sign(&key("worker"), &domain, failure())),
            statement_vector("audit", "auditor", &bundle.audits[0]),
            statement_vector("members", "registrar", &Signed::sign(&key("registrar"), &domain, members())),
        ],
        "commitments": requests.into_iter().chain(outputs).collect::<Value>(),
        "chain": {
            "request": receipt.request,
            "nonce": receipt.nonce,
            "start": Chain::start(&receipt.request, &receipt.nonce).link(),
            "links": links.collect::<Value>(),
            "private_key": secret("worker"),
            "signer": receipt.worker,
        },
        "bundle": bundle,
    })
}

#[test]
fn positions_are_all_tokens_but_the_last() {
    let receipt = bundle().receipt.statement;
    let positions = |prompt_tokens, completion_tokens| {
        Receipt { prompt_tokens, completion_tokens, ..receipt.clone() }.positions()
    };
    assert_eq!((positions(31, 4), positions(0, 1)), (Some(34), Some(0)));
    assert_eq!((positions(u32::MAX, 0), positions(0, 0)), (Some(u32::MAX - 1), None));
    assert_eq!((positions(u32::MAX, 1), positions(u32::MAX, u32::MAX)), (None, None));
}

#[test]
fn the_published_vectors_are_what_this_code_gives() {
    let text = serde_json::to_string_pretty(&vectors()).unwrap() + "\n";
    if std::env::var_os("ASSAY_UPDATE_VECTORS").is_some() {
        std::fs::write(PATH, &text).unwrap();
    }
    let published = std::fs::read_to_string(PATH).unwrap();
    assert!(text == published, "docs/vectors/receipt.json is out of date; see the top of this test");
}

/// The example of EIP-712 itself and a well-known digest, so that the hash is the standard's and not merely ours.
#[test]
fn keccak_and_the_domain_type_are_those_of_ethereum() {
    assert_eq!(
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
            .to_string(),
        "0x8b73c3c69bb8fe3d512ecc4cf759cc79239f7b179b0ffacaa9a75d522b39400f"
    );
    let one = Key::from_bytes(std::array::from_fn(|index| u8::from(index == 31))).unwrap();
    assert_eq!(one.address().to_string(), "0x7e5f4552091a69125d5dfcb7b8c2659029395bdf");
}

/// Types and messages must name the same fields in the same order, all the way down: the type string is what wallets
/// show and hash, the message is what we hash.
#[test]
fn type_strings_name_the_fields_that_are_hashed() {
    fn compare(types: &Value, name: &str, message: &Value) {
        let members = types[name].as_array().unwrap_or_else(|| panic!("{name} is not defined"));
        let keys: Vec<_> = message.as_object().unwrap().keys().cloned().collect();
        let names: Vec<_> =
            members.iter().map(|member| member["name"].as_str().unwrap().to_string()).collect();
        assert_eq!(keys, names, "{name}");
        for member in members {
            let (kind, value) =
                (member["type"].as_str().unwrap(), &message[member["name"].as_str().unwrap()]);
            let base = kind.trim_end_matches("[]");
            let items = if base == kind { vec![value.clone()] } else { value.as_array().unwrap().clone() };
            for item in items {
                match base {
                    "bool" => assert!(item.is_boolean()),
                    "uint8" | "uint32" | "int32" => assert!(item.is_number()),
                    "string" | "address" | "bytes32" | "uint64" | "uint128" => assert!(item.is_string()),
                    _ => compare(types, base, &item),
                }
            }
        }
    }
    let vectors = vectors();
    let statements = vectors["statements"].as_array().unwrap();
    let commitments = vectors["commitments"].as_array().unwrap();
    let links = vectors["chain"]["links"].as_array().unwrap();
    let all = statements.iter().chain(commitments).chain(links).map(|vector| &vector["typed_data"]);
    for data in all.chain(links.iter().map(|vector| &vector["signed_typed_data"])) {
        compare(&data["types"], data["primaryType"].as_str().unwrap(), &data["message"]);
    }
}

/// In EIP-712 the types that a type refers to follow it sorted by name.
#[test]
fn referenced_types_are_sorted() {
    fn sorted<T: Typed>() {
        let types = type_definitions::<T>();
        let names: Vec<_> = types.as_object().unwrap().keys().skip(1).cloned().collect();
        assert!(names.is_sorted(), "{names:?}");
    }
    sorted::<Request>();
    sorted::<Output>();
    sorted::<Chunk>();
    sorted::<Members>();
}

#[test]
fn json_round_trips() {
    let bundle = bundle();
    let text = serde_json::to_vec(&bundle).unwrap();
    assert_eq!(Bundle::from_json(&text).unwrap(), bundle);
    let members = Signed::sign(&key("registrar"), &domain(), members());
    assert_eq!(Signed::<Members>::from_json(&serde_json::to_vec(&members).unwrap()).unwrap(), members);
    let frames = [
        Frame::Chunk(bundle.chunks[0].clone()),
        Frame::Receipt { receipt: bundle.receipt.clone(), output: bundle.output.clone() },
        Frame::Failure(Signed::sign(&key("worker"), &domain(), failure())),
    ];
    for frame in frames {
        let line = serde_json::to_vec(&frame).unwrap();
        assert!(!line.contains(&b'\n'));
        assert_eq!(Frame::from_json(&line).unwrap(), frame);
    }
    let call = GenerateCall {
        domain: domain(),
        nonce: keccak256("nonce"),
        salt: keccak256("salt"),
        payer: key("payer").address(),
        cap: u128::MAX,
        request: full_request(),
        resume: vec![1, 2],
        tenant: Some(keccak256("tenant")),
        voucher: None,
    };
    assert_eq!(GenerateCall::from_json(&serde_json::to_vec(&call).unwrap()).unwrap(), call);
    let call = GenerateCall { tenant: None, ..call };
    let bytes = serde_json::to_vec(&call).unwrap();
    assert!(!String::from_utf8_lossy(&bytes).contains("tenant"));
    assert_eq!(GenerateCall::from_json(&bytes).unwrap(), call);
}
