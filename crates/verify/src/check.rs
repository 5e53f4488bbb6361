use assay_receipt::{
    Address, Audit, Bundle, Bytes32, Chain, Domain, GRAPH_ARITHMETIC, Level, Member, Members, Offer, Signed,
    SignedChunk, Statement, TRACE_PROOF_ARITHMETIC, Verdict, output_commitment, request_commitment,
    signed_all,
};
use serde::{Deserialize, Serialize};

use crate::report::{Checks, ensure};
use crate::{CheckKind, Report, State};

/// What the caller knows from elsewhere and holds the bundle against. Whatever is `None` is not compared, and the
/// report says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// Domain that the caller uses.
    pub domain: Domain,
    /// Workers whose keys the caller believes to be theirs. One address may be listed with several key epochs, to check
    /// receipts from before a rotation.
    pub workers: Vec<Member>,
    /// Nonce of the caller's own request.
    #[serde(default)]
    pub nonce: Option<Bytes32>,
    /// Model that the caller asked for.
    #[serde(default)]
    pub model: Option<Bytes32>,
    /// The address that pays.
    #[serde(default)]
    pub payer: Option<Address>,
    /// Most that the caller agreed to, in 10^-18 OPG; a decimal string in JSON.
    #[serde(default, with = "optional_decimal")]
    pub cap: Option<u128>,
}

impl Expected {
    /// Expects a worker of this list and nothing else. Whoever calls this has checked the list's signature.
    pub fn of_members(domain: Domain, members: &Members) -> Expected {
        Expected {
            domain,
            workers: members.members.clone(),
            nonce: None,
            model: None,
            payer: None,
            cap: None,
        }
    }

    pub(crate) fn worker(&self, address: &Address, key_epoch: u64) -> Option<&Member> {
        self.workers.iter().find(|member| member.worker == *address && member.key_epoch == key_epoch)
    }
}

mod optional_decimal {
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(value: &Option<u128>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u128>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(|_| de::Error::custom("expected a decimal number in a string")))
            .transpose()
    }
}

/// Checks a bundle against what the caller expects. Every check runs, whatever the others say, so that the report
/// shows all that is wrong.
pub fn check(bundle: &Bundle, expected: &Expected) -> Report {
    let mut checks = Checks::default();
    let receipt = &bundle.receipt.statement;
    let domain = &expected.domain;
    let hash = bundle.receipt.hash(domain);
    let member = expected.worker(&receipt.worker, receipt.key_epoch);
    let offer = member.and_then(|member| member.offer(&receipt.model));

    checks.add(
        CheckKind::Form,
        bundle.validate().map(|()| "within all limits").map_err(|error| error.to_string()),
    );
    checks.add(CheckKind::Domain, compare("domain", &bundle.domain, domain));
    checks.add(CheckKind::WorkerKnown, known(expected, &receipt.worker, receipt.key_epoch));
    checks.add(CheckKind::Signature, signed_by(&bundle.receipt, domain, &receipt.worker));
    let request = request_commitment(&bundle.request, &bundle.salt);
    checks.add(CheckKind::Request, compare("request commitment", &receipt.request, &request));
    let output = output_commitment(&bundle.output, &bundle.salt);
    checks.add(CheckKind::Output, compare("output commitment", &receipt.output, &output));
    let chain = Chain::start(&request, &receipt.nonce);
    checks.add(CheckKind::Chain, chain_of(chain, &bundle.chunks, receipt.chunks, &receipt.chain));
    let signatures = chunk_signatures(&bundle.chunks, domain, &receipt.nonce, &receipt.worker);
    checks.add(CheckKind::ChunkSignatures, signatures);
    checks.add(CheckKind::Stream, stream(bundle));
    checks.add(CheckKind::Model, model(bundle, expected));
    checks.add(CheckKind::Arithmetic, arithmetic(bundle, offer));
    checks.add(CheckKind::Level, level(bundle));
    checks.add(CheckKind::Usage, usage(bundle));
    match &expected.nonce {
        Some(nonce) => _ = checks.add(CheckKind::Nonce, compare("nonce", &receipt.nonce, nonce)),
        None => checks.skip(CheckKind::Nonce, "no nonce to compare with: this may be an old receipt"),
    }
    match &expected.payer {
        Some(payer) => _ = checks.add(CheckKind::Payer, compare("payer", &receipt.payer, payer)),
        None => checks.skip(CheckKind::Payer, "no payer to compare with"),
    }
    match offer {
        Some(offer) => _ = checks.add(CheckKind::Price, price(bundle, offer)),
        None => checks.skip(CheckKind::Price, "no offer of this worker for this model to compare with"),
    }
    checks.add(CheckKind::Cap, cap(bundle, expected));
    checks.add(
        CheckKind::Times,
        times(&[receipt.received_at_ms, receipt.first_token_at_ms, receipt.finished_at_ms]),
    );
    checks.add(CheckKind::Sequence, place(receipt.sequence, &receipt.previous));
    if receipt.arithmetic == GRAPH_ARITHMETIC {
        checks.skip(CheckKind::Proof, "the proof was not checked, which needs the model or its key");
    }

    let mut agrees = Vec::new();
    let mut differs = Vec::new();
    let mut counted = Vec::new();
    for (index, audit) in bundle.audits.iter().enumerate() {
        let holds = check_audit(&mut checks, index, audit, bundle, &hash, expected);
        let statement = &audit.statement;
        let auditor = expected.worker(&statement.auditor, statement.key_epoch);
        let operator = auditor.map_or("unknown", |member| member.operator.as_str());
        if holds {
            counted.push(index);
        }
        match (holds, statement.verdict) {
            (true, Verdict::Agrees) => agrees.push(format!("{} of {operator}", statement.auditor)),
            (true, Verdict::Differs) => differs.push((operator, statement)),
            (true, Verdict::Unable) | (false, _) => {}
        }
    }

    let state = match (checks.all_hold(), differs.is_empty(), agrees.is_empty()) {
        (false, _, _) => State::Rejected,
        (true, false, _) => State::Mismatch,
        (true, true, false) => State::Replayed,
        (true, true, true) => State::Signed,
    };
    let operator = member.map(|member| member.operator.clone());
    let who = format!("worker {} of {}", receipt.worker, operator.as_deref().unwrap_or("unknown"));
    let (mut proves, mut trusted) = signed_words(&who);
    let level = match state {
        State::Rejected => {
            (proves, trusted) = rejected_words(&checks);
            None
        }
        State::Signed => {
            trusted.push(match receipt.arithmetic {
                GRAPH_ARITHMETIC => format!("The {who}, as long as the proof in the answer is not checked."),
                TRACE_PROOF_ARITHMETIC => {
                    format!("The {who}, as long as the file is not checked with the model's key.")
                }
                _ => format!("The {who}: nothing here shows that the model really gave this answer."),
            });
            Some(Level::Signed)
        }
        State::Replayed => {
            proves.push(format!(
                "The answer is this model's, bit for bit: it was repeated by {}.",
                agrees.join(" and by ")
            ));
            trusted.push(format!(
                "That the worker and {} did not collude; one honest auditor is enough.",
                if agrees.len() == 1 { "the auditor" } else { "all of the auditors" }
            ));
            Some(Level::Replayed)
        }
        // Never so far; `check_proved` raises it.
        State::Proved => Some(Level::Proved),
        State::Mismatch => {
            proves.extend(differs.iter().map(|(operator, audit)| {
                format!(
                    "Auditor {} of {operator} signed that the model gives something else: {}. The worker or this auditor \
                     signed a falsehood and can be held to it.",
                    audit.auditor,
                    difference(&audit.field, audit.position, audit.expected, audit.claimed)
                )
            }));
            trusted.push(
                "Nobody, until the answer is replayed on a machine of yours: do not rely on it before that."
                    .into(),
            );
            Some(Level::Signed)
        }
    };
    Report {
        state,
        level,
        hash,
        worker: receipt.worker,
        operator,
        checks: checks.0,
        counted,
        proves,
        trusted,
    }
}

/// Says where a replay and a claim differ.
pub(crate) fn difference(field: &str, position: u64, expected: u64, claimed: u64) -> String {
    let show = |value| if value == Audit::NOTHING { "nothing".into() } else { u64::to_string(&value) };
    format!("{field} at position {position}, {} instead of {}", show(expected), show(claimed))
}

pub(crate) fn signed_words(who: &str) -> (Vec<String>, Vec<String>) {
    let proves = vec![format!(
        "The {who} signed this very answer to this very request, with its model, token counts and price, and can be held \
         to it."
    )];
    let trusted = vec![
        "The list of workers that you gave: it says which key belongs to whom.".into(),
        "The worker's clock, for the times.".into(),
    ];
    (proves, trusted)
}

pub(crate) fn rejected_words(checks: &Checks) -> (Vec<String>, Vec<String>) {
    let failed: Vec<String> = checks
        .0
        .iter()
        .filter(|check| check.outcome == crate::Outcome::Failed)
        .map(|check| check.detail.clone())
        .collect();
    (vec![format!("Nothing. {}.", failed.join("; "))], Vec::new())
}

fn compare<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, expected: &T) -> Result<String, String> {
    ensure(found == expected, &format!("the {what} matches"), || {
        format!("the {what} is {found:?} where {expected:?} was expected")
    })
}

pub(crate) fn known(expected: &Expected, worker: &Address, key_epoch: u64) -> Result<String, String> {
    if let Some(member) = expected.worker(worker, key_epoch) {
        return Ok(format!("{worker} with key epoch {key_epoch} belongs to {}", member.operator));
    }
    let other = expected.workers.iter().find(|member| member.worker == *worker);
    Err(match other {
        Some(member) => format!("{worker} has key epoch {}, not {key_epoch}", member.key_epoch),
        None => format!("{worker} is not on the list of workers"),
    })
}

pub(crate) fn signed_by<T: Statement>(
    signed: &Signed<T>,
    domain: &Domain,
    author: &Address,
) -> Result<String, String> {
    let signer = signed.signer(domain).map_err(|error| error.to_string())?;
    ensure(signer == *author, &format!("signed by {author}"), || {
        format!("signed by {signer}, not by {author}, or altered after it was signed")
    })
}

pub(crate) fn chain_of(
    mut chain: Chain,
    chunks: &[SignedChunk],
    count: u64,
    last: &Bytes32,
) -> Result<String, String> {
    for signed in chunks {
        let link = chain.push(&signed.chunk).map_err(|error| error.to_string())?;
        if link != signed.link {
            return Err(format!("the link of chunk {} does not follow from the chunks", signed.chunk.index));
        }
    }
    if chain.len() != count {
        return Err(format!("{} chunks where {count} were signed", chain.len()));
    }
    ensure(chain.link() == *last, &format!("{count} chunks end in the signed link"), || {
        "the chunks do not end in the signed link".into()
    })
}

pub(crate) fn chunk_signatures(
    chunks: &[SignedChunk],
    domain: &Domain,
    nonce: &Bytes32,
    worker: &Address,
) -> Result<String, String> {
    let signed: Vec<_> = chunks.iter().map(|signed| (signed.hash(domain, nonce), signed.signature)).collect();
    if signed_all(worker, &signed) {
        return Ok(format!("{} chunks are signed by the worker", chunks.len()));
    }
    let stranger = chunks.iter().find(|signed| signed.signer(domain, nonce) != Ok(*worker));
    let index = stranger.map(|signed| signed.chunk.index).unwrap_or_default();
    Err(format!("chunk {index} is not signed by {worker}"))
}

fn stream(bundle: &Bundle) -> Result<String, String> {
    let chunks = bundle.chunks.iter().map(|signed| &signed.chunk);
    let output = &bundle.output;
    let same_text = chunks.clone().flat_map(|chunk| chunk.text.bytes()).eq(output.text.bytes());
    let same_tokens = chunks.clone().flat_map(|chunk| &chunk.tokens).eq(&output.tokens);
    let same_logprobs = chunks.flat_map(|chunk| &chunk.logprobs).eq(&output.logprobs);
    for (same, what) in [(same_text, "text"), (same_tokens, "tokens"), (same_logprobs, "log-probabilities")] {
        if !same {
            return Err(format!("the {what} of the chunks, joined, is not the {what} of the output"));
        }
    }
    Ok("the chunks, joined, are the output".into())
}

fn model(bundle: &Bundle, expected: &Expected) -> Result<String, String> {
    let model = &bundle.receipt.statement.model;
    compare("model of the receipt", model, &bundle.request.model)?;
    match &expected.model {
        Some(expected) => compare("model", model, expected),
        None => Ok("the model is the one of the request".into()),
    }
}

fn arithmetic(bundle: &Bundle, offer: Option<&Offer>) -> Result<String, String> {
    let arithmetic = bundle.receipt.statement.arithmetic;
    if let Some(offer) = offer.filter(|offer| offer.arithmetic != arithmetic) {
        return Err(format!("arithmetic version {arithmetic} where the worker offers {}", offer.arithmetic));
    }
    match (arithmetic, bundle.output.tokens.is_empty()) {
        (0, true) => Ok("a forwarder: the answer cannot be replayed".into()),
        (0, false) => Err("a forwarder reports tokens that nobody can check".into()),
        (GRAPH_ARITHMETIC, _) => {
            let is_proof = bundle.output.proof_file().is_some();
            ensure(is_proof, "an integer graph: the answer is a proof", || {
                "the answer of an integer graph is no proof".into()
            })
        }
        (TRACE_PROOF_ARITHMETIC, _) => {
            let names = bundle.output.named_file().is_some();
            ensure(names, "the answer names the file of a proof", || "the answer names no file".into())
        }
        (version, _) => Ok(format!("arithmetic version {version}: the answer can be replayed")),
    }
}

fn level(bundle: &Bundle) -> Result<String, String> {
    let receipt = &bundle.receipt.statement;
    let (own, claims) = match receipt.arithmetic {
        GRAPH_ARITHMETIC => (Level::Proved, "the receipt claims that the answer is a proof"),
        _ => (Level::Signed, "the receipt claims no more than a signature"),
    };
    if receipt.level != own {
        return Err(format!("the receipt claims level {:?} without evidence for it", receipt.level));
    }
    ensure(receipt.trace == Bytes32::ZERO, claims, || {
        "the receipt commits to a trace, which this version cannot check".into()
    })
}

fn usage(bundle: &Bundle) -> Result<String, String> {
    let (receipt, output) = (&bundle.receipt.statement, &bundle.output);
    compare("number of prompt tokens", &receipt.prompt_tokens, &output.prompt_tokens)?;
    compare("number of completion tokens", &receipt.completion_tokens, &output.completion_tokens)?;
    if receipt.arithmetic == TRACE_PROOF_ARITHMETIC {
        let subject = bundle.request.proof_subject().ok_or("the request names no answer to prove")?;
        let subject = subject.receipt.statement;
        let tokens = u64::from(subject.prompt_tokens) + u64::from(subject.completion_tokens);
        compare("number of positions", &u64::from(receipt.prompt_tokens), &tokens.saturating_sub(1))?;
    }
    if receipt.arithmetic != 0 {
        let count = output.tokens.len();
        compare("number of completion tokens", &(receipt.completion_tokens as usize), &count)?;
    }
    ensure(
        receipt.completion_tokens <= bundle.request.max_tokens,
        &format!("{} prompt and {} completion tokens", receipt.prompt_tokens, receipt.completion_tokens),
        || {
            format!(
                "{} tokens where at most {} were asked for",
                receipt.completion_tokens, bundle.request.max_tokens
            )
        },
    )
}

fn price(bundle: &Bundle, offer: &Offer) -> Result<String, String> {
    let receipt = &bundle.receipt.statement;
    let price = offer.price(receipt.prompt_tokens, receipt.completion_tokens);
    ensure(price == Some(receipt.price), "the price follows from the offer and the token counts", || {
        format!(
            "the price is {} where the offer makes it {}",
            receipt.price,
            price.map_or("more than 128 bits".into(), |price| price.to_string())
        )
    })
}

fn cap(bundle: &Bundle, expected: &Expected) -> Result<String, String> {
    let receipt = &bundle.receipt.statement;
    if let Some(cap) = &expected.cap {
        compare("cap", &receipt.cap, cap)?;
    }
    ensure(receipt.price <= receipt.cap, "the price is within the cap", || {
        format!("the price {} is over the cap {}", receipt.price, receipt.cap)
    })
}

pub(crate) fn times(times_ms: &[u64]) -> Result<String, String> {
    ensure(times_ms.is_sorted(), "the times are in order", || "the times are not in order".into())
}

pub(crate) fn place(sequence: u64, previous: &Bytes32) -> Result<String, String> {
    ensure(
        (sequence == 0) == (*previous == Bytes32::ZERO),
        &format!("statement {sequence} of the worker"),
        || format!("statement {sequence} does not fit its previous hash: only the first, number 0, has none"),
    )
}

/// Whether an audit counts. One that does not is named in the checks and has no further effect: whoever holds a bundle
/// can add audits to it, and auditors leave the list and change their keys, and neither may destroy a valid receipt.
fn check_audit(
    checks: &mut Checks,
    index: usize,
    audit: &Signed<Audit>,
    bundle: &Bundle,
    hash: &Bytes32,
    expected: &Expected,
) -> bool {
    let (statement, receipt) = (&audit.statement, &bundle.receipt.statement);
    let mut add = |name, result: Result<String, String>| {
        let passed = |detail: String| format!("audit {index}: {detail}");
        let void = |detail: String| format!("audit {index} counts for nothing: {detail}");
        checks.add_audit(name, result.map(passed).map_err(void))
    };
    let subject = compare("receipt", &statement.receipt, hash)
        .and_then(|_| compare("model", &statement.model, &receipt.model))
        .and_then(|_| {
            // An auditor that cannot replay may not even know the arithmetic.
            if statement.verdict == Verdict::Unable {
                return Ok("it is about this receipt".into());
            }
            if receipt.arithmetic == 0 {
                return Err("nobody can replay the answer of a forwarder".into());
            }
            compare("arithmetic version", &statement.arithmetic, &receipt.arithmetic)
        });
    [
        add(CheckKind::AuditorKnown, known(expected, &statement.auditor, statement.key_epoch)),
        add(CheckKind::AuditSignature, signed_by(audit, &expected.domain, &statement.auditor)),
        add(CheckKind::AuditIndependent, independent(statement, bundle, expected)),
        add(CheckKind::AuditSubject, subject),
        add(CheckKind::AuditVerdict, verdict(statement)),
        add(CheckKind::Sequence, place(statement.sequence, &statement.previous)),
    ]
    .into_iter()
    .all(|holds| holds)
}

fn independent(audit: &Audit, bundle: &Bundle, expected: &Expected) -> Result<String, String> {
    let worker = &bundle.receipt.statement;
    if audit.auditor == worker.worker {
        return Err("the worker audited itself".into());
    }
    let operator = |address, key_epoch| expected.worker(address, key_epoch).map(|member| &member.operator);
    match (operator(&worker.worker, worker.key_epoch), operator(&audit.auditor, audit.key_epoch)) {
        (Some(worker), Some(auditor)) => {
            ensure(worker != auditor, &format!("{auditor} is independent of {worker}"), || {
                format!("worker and auditor both belong to {worker}")
            })
        }
        _ => Err("it is not known who runs the worker and the auditor".into()),
    }
}

fn verdict(audit: &Audit) -> Result<String, String> {
    let numbers = (audit.position, audit.expected, audit.claimed);
    match audit.verdict {
        Verdict::Agrees => {
            ensure(audit.field.is_empty() && numbers == (0, 0, 0), "the replay agrees", || {
                "it agrees and yet names a difference".into()
            })
        }
        // The field may say what stood in the way.
        Verdict::Unable => ensure(numbers == (0, 0, 0), "the auditor could not replay it", || {
            "it could not replay and yet names a difference".into()
        }),
        Verdict::Differs => ensure(!audit.field.is_empty(), "the replay differs", || {
            "it differs and does not say where".into()
        }),
    }
}
