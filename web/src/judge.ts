// From evidence to what the page says about an answer. The verifier has checked signatures and hashes; this adds what
// only the page knows: what it asked, what it showed, and whose list of workers it relies on.

import type { Asked, Verdict } from "./conversation";
import { opg, short, tidy } from "./format";
import type { Check, Report } from "./verify";
import { type Bundle, type Member, type Members, NOTHING, type Roster, type WireMessage, type WireRequest } from "./wire";

/** What the page itself sent and showed. */
export interface Seen {
  requestId: string;
  asked: Asked;
  messages: WireMessage[];
  shown: string;
  finish: string | null;
}

function result(name: string, holds: boolean, right: string, wrong: () => string): Check {
  return { name, outcome: holds ? "passed" : "failed", detail: holds ? right : wrong() };
}

/** Index of the first difference, or -1 when the texts are equal. */
export function firstDifference(a: string, b: string): number {
  if (a === b) return -1;
  const length = Math.min(a.length, b.length);
  for (let index = 0; index < length; index += 1) {
    if (a[index] !== b[index]) return index;
  }
  return length;
}

/** The nonce's first 32 hex digits are the request's id, so a receipt of another request cannot stand in. */
export function isOfRequest(requestId: string, nonce: string): boolean {
  return /^chatcmpl-[0-9a-f]{32}$/.test(requestId) && nonce.startsWith(`0x${requestId.slice("chatcmpl-".length)}`);
}

/** What in a signed request could steer the answer although this page never sends it. */
function steering(request: WireRequest): string[] {
  const { sampling, prompt } = request;
  const neutral: Record<string, boolean> = {
    tools: prompt.chat !== undefined && prompt.chat.tools === null,
    stop: request.stop.length === 0,
    constraint: request.constraint === "none",
    logprobs: request.logprobs === null,
    top_k: sampling.top_k === 0,
    top_p: sampling.top_p_ppm === 1_000_000,
    min_p: sampling.min_p_ppm === 0,
    repetition_penalty: sampling.repetition_penalty_milli === 1_000,
    frequency_penalty: sampling.frequency_penalty_milli === 0,
    presence_penalty: sampling.presence_penalty_milli === 0,
    logit_bias: sampling.logit_bias.length === 0,
  };
  return Object.keys(neutral).filter((name) => !neutral[name]);
}

/** Checks that only this page can make: the receipt is about what it asked and what it showed. */
export function pageChecks(bundle: Bundle, seen: Seen): Check[] {
  const { request, output, receipt } = bundle;
  const { asked } = seen;
  const sent = seen.messages;
  const signed = request.prompt.chat?.messages ?? [];
  const differs = sent.findIndex(
    (message, index) => message.role !== signed[index]?.role || message.content !== signed[index]?.content,
  );
  const extra = signed.some((message) => message.name || message.tool_calls || message.tool_call_id);
  const at = firstDifference(seen.shown, output.text);
  const added = steering(request);
  const modelKnown = asked.modelId !== null;
  const checks = [
    result(
      "page_request_id",
      isOfRequest(seen.requestId, receipt.statement.nonce),
      "the receipt belongs to the request that this page sent",
      () => `the receipt's nonce ${short(receipt.statement.nonce)} does not belong to ${seen.requestId}`,
    ),
    result(
      "page_messages",
      differs < 0 && signed.length === sent.length && !extra,
      `the signed request holds the ${sent.length === 1 ? "message" : `${sent.length} messages`} that this page sent`,
      () =>
        differs >= 0
          ? `message ${differs + 1} was signed in another form than this page sent it`
          : `the worker signed ${signed.length} messages where this page sent ${sent.length}`,
    ),
    result(
      "page_settings",
      request.max_tokens === asked.maxTokens &&
        request.sampling.temperature_milli === Math.round(asked.temperature * 1_000) &&
        request.sampling.seed === String(asked.seed),
      "temperature, seed and token limit are those that this page sent",
      () =>
        `signed: temperature ${request.sampling.temperature_milli / 1_000}, seed ${request.sampling.seed}, at most ` +
        `${request.max_tokens} tokens; sent: ${asked.temperature}, ${asked.seed}, ${asked.maxTokens}`,
    ),
    result(
      "page_nothing_added",
      added.length === 0,
      "nothing that could steer the answer was added to what this page sent",
      () => `the signed request also holds what this page did not send: ${added.join(", ")}`,
    ),
    result(
      "page_answer",
      at < 0,
      "the signed answer is the text that this page showed, to the last character",
      () => `the signed answer and the text shown part at character ${at + 1}`,
    ),
  ];
  if (modelKnown) {
    checks.push(
      result(
        "page_model",
        request.model === asked.modelId,
        `the model is ${asked.model}, as chosen`,
        () => `the worker signed for model ${short(request.model)} where ${short(asked.modelId ?? "")} was chosen`,
      ),
    );
  } else {
    checks.push({ name: "page_model", outcome: "skipped", detail: `the id of ${asked.model} was not known when it was asked` });
  }
  if (seen.finish !== null) {
    checks.push(
      result(
        "page_finish",
        seen.finish === output.finish_reason,
        `the answer ended for the signed reason: ${output.finish_reason}`,
        () => `the stream ended with "${seen.finish}" where "${output.finish_reason}" was signed`,
      ),
    );
  }
  return checks;
}

/** Checks on the list of workers: its signature holds, it has not expired, and its signer is the one that this browser
 * met first. `signer` is who signed it, as the verifier found, or why that cannot be said. */
export function rosterChecks(roster: Roster, signer: string | Error, pinned: string | null, nowMs: number): Check[] {
  const list: Members = roster.members.statement;
  const named = roster.signer.toLowerCase();
  return [
    result(
      "list_signature",
      typeof signer === "string" && signer.toLowerCase() === named,
      `the list of workers is signed by ${short(roster.signer)}`,
      () =>
        typeof signer === "string"
          ? `the list of workers is signed by ${short(signer)}, not by ${short(roster.signer)}, or was altered after it was signed`
          : `the list of workers cannot be read: ${signer.message}`,
    ),
    result(
      "list_current",
      nowMs < list.expires_at_s * 1_000,
      `the list of workers, edition ${list.serial}, is current`,
      () => `the list of workers, edition ${list.serial}, has expired`,
    ),
    result(
      "list_signer",
      pinned === null || pinned === pin(roster),
      `the list of workers names the signer that this browser remembers, ${short(roster.signer)}`,
      () =>
        "the list of workers names another signer or chain than this browser remembers: if that is intended, accept it in the settings",
    ),
  ];
}

/** What a browser remembers of a deployment when it first meets it. */
export function pin(roster: Roster): string {
  return `${roster.signer.toLowerCase()}@${roster.domain.chain_id}/${roster.domain.contract.toLowerCase()}`;
}

/** Who runs a worker. */
export function operatorOf(members: Member[], worker: string): string {
  return members.find((member) => member.worker.toLowerCase() === worker.toLowerCase())?.operator ?? "unknown operator";
}

/** Where in the text the token, byte or character at `position` of `field` begins; `null` when it is not in the text. */
export function textPosition(bundle: Bundle, field: string, position: number): number | null {
  if (field === "text") {
    const bytes = new TextEncoder().encode(bundle.output.text);
    return new TextDecoder().decode(bytes.slice(0, position)).length;
  }
  if (field !== "tokens" && field !== "logprobs") return null;
  let tokens = 0;
  let text = 0;
  for (const { chunk } of bundle.chunks) {
    if (position < tokens + chunk.tokens.length) return text;
    tokens += chunk.tokens.length;
    text += chunk.text.length;
  }
  return text;
}

/** The verdict on an answer from the verifier's report and the page's own checks. */
export function judge(bundle: Bundle, report: Report, own: Check[], members: Member[], shown: string, nowMs: number): Verdict {
  const receipt = bundle.receipt.statement;
  const operator = report.operator ?? operatorOf(members, receipt.worker);
  const base = {
    operator,
    worker: receipt.worker,
    auditors: [] as string[],
    auditedAtMs: null,
    difference: null,
    price: receipt.price,
    checkedAtMs: nowMs,
  };
  const answer = own.find((check) => check.name === "page_answer");
  if (answer?.outcome === "failed") {
    const at = firstDifference(shown, bundle.output.text);
    return {
      ...base,
      state: "mismatch",
      summary: `The text shown is not the text that ${operator} signed: they part at character ${at + 1}.`,
      difference: { field: "shown text", position: at, expected: around(bundle.output.text, at), claimed: around(shown, at), at },
    };
  }
  const failed = [...report.checks, ...own].filter((check) => check.outcome === "failed");
  if (report.state === "rejected" || failed.length > 0) {
    const first = failed[0];
    const why = first ? `${checkTitle(first.name)}: ${tidy(first.detail)}` : "The evidence was rejected";
    return { ...base, state: "failed", summary: `Nothing is proven. ${why}.` };
  }
  const audits = bundle.audits.filter((_, index) => report.counted.includes(index)).map((signed) => signed.statement);
  const differs = audits.filter((audit) => audit.verdict === "differs");
  if (report.state === "mismatch") {
    const audit = differs[0];
    const auditors = [...new Set(differs.map((each) => operatorOf(members, each.auditor)))];
    const what = audit ? place(audit.field, audit.position) : "somewhere";
    return {
      ...base,
      state: "mismatch",
      summary: `${auditors.join(" and ")} repeated this answer and got something else, first at ${what}.`,
      auditors,
      auditedAtMs: audit?.audited_at_ms ?? null,
      difference: audit
        ? {
            field: audit.field,
            position: audit.position,
            expected: found(audit.field, audit.expected),
            claimed: found(audit.field, audit.claimed),
            at: textPosition(bundle, audit.field, audit.position),
          }
        : null,
    };
  }
  if (report.state === "replayed") {
    const agrees = audits.filter((audit) => audit.verdict === "agrees");
    const auditors = [...new Set(agrees.map((audit) => operatorOf(members, audit.auditor)))];
    return {
      ...base,
      state: "replayed",
      summary: `${auditors.join(" and ")} repeated the answer of ${operator} bit for bit and got the same.`,
      auditors,
      auditedAtMs: agrees[0]?.audited_at_ms ?? null,
    };
  }
  return {
    ...base,
    state: "signed",
    summary: `${operator} signed this answer and can be held to it; nobody has repeated it yet.`,
  };
}

function around(text: string, at: number): string {
  return text.slice(at, at + 24) || "(the end)";
}

/** What was found at a place, for people. Records hold it as a number, which may have lost its last digits. */
export function found(field: string, value: string | number): string {
  const number = BigInt(value);
  if (number > NOTHING / 2n) return "nothing: the answer ends";
  if (field === "tokens" || field === "logprobs") return `token id ${number}`;
  if ((field === "text" || field === "tool_calls") && number > 32n && number < 127n) return `"${String.fromCharCode(Number(number))}"`;
  return String(number);
}

/** A place in an answer, for people; positions count from 1 there. */
export function place(field: string, position: number): string {
  switch (field) {
    case "tokens":
      return `token ${position + 1}`;
    case "text":
      return `byte ${position + 1} of the text`;
    case "logprobs":
      return `the log-probability of token ${position + 1}`;
    case "shown text":
      return `character ${position + 1}`;
    case "prompt_tokens":
      return "the number of prompt tokens";
    case "completion_tokens":
      return "the number of sampled tokens";
    case "finish_reason":
      return "the reason why it ended";
    case "tool_calls":
      return `byte ${position + 1} of the tool calls`;
    default:
      return `${field} ${position + 1}`;
  }
}

/** What checking cost, against what it checked. */
export interface Cost {
  /** From the request's arrival at the worker to the end of the answer. */
  generationMs: number;
  audits: { operator: string; computeMs: number; verdict: string }[];
  /** `null` without an audit. */
  replayMs: number | null;
}

/** Reads the cost off a bundle. */
export function costOf(bundle: Bundle, members: Member[]): Cost {
  const receipt = bundle.receipt.statement;
  const audits = bundle.audits.map(({ statement }) => ({
    operator: operatorOf(members, statement.auditor),
    computeMs: statement.compute_ms,
    verdict: statement.verdict,
  }));
  return {
    generationMs: receipt.finished_at_ms - receipt.received_at_ms,
    audits,
    replayMs: audits.length === 0 ? null : audits.reduce((sum, audit) => sum + audit.computeMs, 0),
  };
}

/** Names of checks for people. */
export function checkTitle(name: string): string {
  return TITLES[name] ?? name.replaceAll("_", " ");
}

const TITLES: Record<string, string> = {
  form: "Well-formed",
  domain: "Chain and contract",
  worker_known: "Worker on the list",
  signature: "Worker's signature",
  request: "Request commitment",
  output: "Output commitment",
  chain: "Chunk chain",
  chunk_signatures: "Chunk signatures",
  stream: "Stream equals answer",
  model: "Model id",
  arithmetic: "Arithmetic",
  level: "Claimed level",
  usage: "Token counts",
  nonce: "Nonce",
  payer: "Payer",
  price: "Price",
  cap: "Price cap",
  times: "Times",
  sequence: "Worker's sequence",
  auditor_known: "Auditor on the list",
  audit_signature: "Auditor's signature",
  audit_independent: "Auditor is independent",
  audit_subject: "Audit is about this",
  audit_verdict: "Audit is consistent",
  replay: "Repeated here",
  proof: "Proof",
  page_request_id: "Your request's nonce",
  page_messages: "Your messages",
  page_settings: "Your settings",
  page_answer: "Text on your screen",
  page_model: "Model you chose",
  page_finish: "How it ended",
  list_signature: "List's signature",
  list_current: "List is current",
  list_signer: "List's signer",
};

/** A price for people. */
export function priceText(price: string | null): string {
  return price === null ? "unknown" : opg(price);
}
