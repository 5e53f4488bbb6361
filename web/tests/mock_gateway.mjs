// A gateway that answers from a script, with real signatures: enough of the real one's HTTP for the page, and every
// kind of trouble on demand. What the question contains chooses the scene:
//   "mismatch"  the worker lies; the replay that follows catches it      "busy"     429 with Retry-After
//   "forged"    the shown text is not the signed text                    "broken"   the stream breaks off
//   "tampered"  the receipt's signature does not hold                    "fault"    an error inside the stream
//   "slow"      a long answer, slowly                                    "hostile"  markdown that attacks the page
//   "late"      the receipt is filed late
import { createServer } from "node:http";
import { randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

import { chain, commitment, digest, hashedAudit, hashedMembers, hashedOutput, hashedReceipt, hashedRequest, hex, keccak, key } from "./signing.mjs";

const DIST = fileURLToPath(new URL("../dist/", import.meta.url));
const VECTORS = new URL("../../docs/vectors/", import.meta.url);
const TYPES = { ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".wasm": "application/wasm" };
const CSP = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const ZERO = `0x${"0".repeat(64)}`;
const MODEL = `0x${"5a".repeat(32)}`;
const MODEL_OTHER = `0x${"6b".repeat(32)}`;
const DOMAIN = { chain_id: 31337, contract: `0x${"11".repeat(20)}` };

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const SHORT = `A digital signature proves that the holder of a key signed **exactly this text**. It does not prove that the text is true, nor who holds the key.

1. Integrity: one changed byte and it no longer fits.
2. Origin: only the key's holder can make it.

\`\`\`python
def fib(n: int) -> int:
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a
\`\`\`

| drink | caffeine |
| --- | --- |
| tea | some |
| coffee | more |
`;
const HOSTILE = `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>

[click](javascript:document.title='owned') and ![picture](https://tracker.example/x.png) and <a href="data:text/html,hi">data</a>

<form action="/steal"><input name=a><button>go</button></form> <div style="position:fixed;inset:0">over</div> <iframe src="/"></iframe> plain **end**`;

/** Starts the mock on a free port (or `port`) and returns its address and how to close it. */
export async function start({ port = 0, tokenMs = 12, keyRequired = "", proved = false } = {}) {
  // With `proved`, every answer has the receipt of docs/vectors, whose proof is there as well.
  const vector = proved ? JSON.parse(await readFile(new URL("answer.json", VECTORS), "utf8")) : null;
  const root = key("root");
  const workers = ["north", "harbour", "meadow"].map((operator, index) => ({
    operator,
    key: key(operator),
    sequence: 0,
    previous: ZERO,
    record: {
      served: 40 - index * 9, failures: index === 2 ? 1 : 0, refusals: 0, audits_agreed: 12 - index, audits_differed: 0, audits_made: 9,
      audits_disputed: 0, first_token_ms: 84 + index * 41, token_ms: 21, completion_tokens: 9000, earned: "180000000000000000",
      withheld: "0", suspended: null, last_fault: index === 2 ? "no token for 20 s" : null, in_flight: 0, resting: false,
    },
  }));
  const offers = [
    { model: MODEL, name: "smollm2-135m", prompt_price: "1000000000000", completion_price: "4000000000000", arithmetic: 1, context: 8192 },
    { model: MODEL_OTHER, name: "forwarded-large", prompt_price: "2000000000000", completion_price: "8000000000000", arithmetic: 0, context: 32768 },
  ];
  const now = Math.floor(Date.now() / 1000);
  const members = {
    serial: 7, issued_at_s: now - 3600, expires_at_s: now + 86400 * 30,
    members: workers.map((worker, index) => ({
      operator: worker.operator, worker: worker.key.address, key_epoch: 1, url: `https://127.0.0.1:${9000 + index}`,
      tls_sha256: `0x${"22".repeat(32)}`, models: index === 0 ? offers : offers.slice(0, 1),
    })),
  };
  if (vector) {
    members.members = vector.expected.workers;
    for (const { models } of members.members) models[0].name = offers[0].name;
  }
  const domain = vector ? vector.expected.domain : DOMAIN;
  const roster = { domain, signer: root.address, members: { statement: members, signature: root.sign(digest(domain, "Members", hashedMembers(members))) } };
  const bundles = new Map();
  const seen = [];
  const graphId = hex(keccak(await readFile(new URL("perceptron.graph", VECTORS))));
  let turn = 0;

  function place(worker, statement, name, hashed) {
    const placed = { ...statement, sequence: String(worker.sequence), previous: worker.previous };
    const hash = digest(DOMAIN, name, hashed(placed));
    worker.sequence += 1;
    worker.previous = hex(hash);
    return { signed: { statement: placed, signature: worker.key.sign(hash) }, hash: hex(hash) };
  }

  function audit(entry) {
    const { bundle, hash, lies } = entry;
    if (bundle.audits.length > 0) return;
    const worker = workers.find((each) => each.key.address === bundle.receipt.statement.worker);
    const auditor = workers.find((each) => each !== worker && !each.record.suspended);
    const position = Math.min(9, bundle.output.tokens.length - 1);
    const { signed } = place(auditor, {
      auditor: auditor.key.address, key_epoch: 1, receipt: hash, model: bundle.request.model, arithmetic: 1,
      verdict: lies ? "differs" : "agrees", field: lies ? "tokens" : "", position: lies ? position : 0,
      expected: lies ? "4093" : "0", claimed: lies ? String(bundle.output.tokens[position]) : "0", audited_at_ms: Date.now(), compute_ms: 37,
    }, "Audit", hashedAudit);
    bundle.audits.push(signed);
    auditor.record.audits_made += 1;
    if (lies) {
      worker.record.audits_differed += 1;
      worker.record.withheld = bundle.receipt.statement.price;
      worker.record.suspended = {
        request_id: entry.id, receipt: hash, field: "tokens", position, expected: 4093, claimed: bundle.output.tokens[position],
        auditors: [auditor.key.address], at_ms: Date.now(),
      };
    } else worker.record.audits_agreed += 1;
  }

  async function chat(request, response, body) {
    seen.push(body);
    const question = body.messages.at(-1).content;
    const has = (word) => question.toLowerCase().includes(word);
    if (has("busy") && turn++ % 2 === 0) {
      response.setHeader("retry-after", "3");
      return fail(response, 429, "All workers are busy");
    }
    const offer = offers.find((each) => each.name === body.model);
    if (!offer) return fail(response, 404, `The model \`${body.model}\` does not exist or no worker offers it; see /v1/models`);
    const lies = has("mismatch") && !workers[0].record.suspended;
    const worker = lies ? workers[0] : workers.find((each) => !each.record.suspended);
    const source = has("hostile") ? HOSTILE : has("slow") ? Array.from({ length: 60 }, (_, i) => `Sentence ${i + 1} is slow.`).join(" ") : has("mismatch") ? "The capital of Australia is Sydney, a city on the coast." : SHORT;
    const pieces = source.match(/\s*\S+\s*/g).map((text, index) => ({ text, tokens: [1000 + index * 7] }));
    const nonce = hex(randomBytes(32));
    const salt = hex(randomBytes(32));
    const id = `chatcmpl-${nonce.slice(2, 34)}`;
    const receivedAt = Date.now();
    const wire = {
      model: offer.model,
      prompt: { chat: { messages: body.messages.map((m) => ({ role: m.role, content: m.content, name: null, tool_calls: null, tool_call_id: null })), tools: null, tool_choice: "none", parallel_tool_calls: true } },
      max_tokens: body.max_tokens, stop: [],
      sampling: { temperature_milli: Math.round(body.temperature * 1000), top_k: 0, top_p_ppm: 1000000, min_p_ppm: 0, repetition_penalty_milli: 1000, frequency_penalty_milli: 0, presence_penalty_milli: 0, logit_bias: [], seed: String(body.seed) },
      constraint: "none", logprobs: null, now_unix_s: now,
    };
    response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
    const send = (value) => response.write(`data: ${typeof value === "string" ? value : JSON.stringify(value)}\n\n`);
    const base = { id, object: "chat.completion.chunk", created: now, model: body.model };
    const delta = (content, finish = null) => send({ ...base, choices: [{ index: 0, delta: content, finish_reason: finish }] });
    if (body.assay.moment === "before_first_token") await sleep(300);
    delta({ role: "assistant", content: "" });
    let gone = false;
    response.on("close", () => (gone = !response.writableEnded));
    for (const [index, { text }] of pieces.entries()) {
      await sleep(has("slow") ? 90 : tokenMs);
      if (gone) return;
      if (has("broken") && index === 6) return response.destroy();
      if (has("fault") && index === 6 && turn++ % 2 === 0) {
        send({ error: { message: "Every worker that offers the model failed", type: "server_error", param: null, code: null, request_id: id } });
        return response.end();
      }
      delta({ content: has("forged") && index === 4 ? text.replace(/\w/, "X") : text });
    }
    const request_ = commitment("request", salt, "Request", hashedRequest(wire));
    const chained = chain(worker.key, DOMAIN, nonce, request_, offer.arithmetic === 0 ? pieces.map(({ text }) => ({ text, tokens: [] })) : pieces);
    const output = { text: source.match(/\s*\S+\s*/g).join(""), tool_calls: null, finish_reason: "stop", tokens: offer.arithmetic === 0 ? [] : pieces.flatMap(({ tokens }) => tokens), prompt_tokens: 21, completion_tokens: pieces.length, logprobs: [] };
    const price = BigInt(offer.prompt_price) * 21n + BigInt(offer.completion_price) * BigInt(pieces.length);
    const { signed, hash } = place(worker, {
      worker: worker.key.address, key_epoch: 1, model: offer.model, arithmetic: offer.arithmetic, level: "signed", request: hex(request_),
      output: hex(commitment("output", salt, "Output", hashedOutput(output))), chunks: pieces.length, chain: chained.link, trace: ZERO,
      prompt_tokens: 21, completion_tokens: pieces.length, price: String(price), payer: `0x${"33".repeat(20)}`, cap: String(price * 4n), nonce,
      sequence: "0", previous: ZERO, received_at_ms: receivedAt, first_token_at_ms: receivedAt + 61, finished_at_ms: Math.max(Date.now(), receivedAt + 62),
    }, "Receipt", hashedReceipt);
    if (has("tampered")) signed.statement.price = "1";
    const bundle = { version: 1, domain: DOMAIN, salt, request: wire, output, chunks: chained.chunks, receipt: signed, audits: [] };
    const entry = { id, bundle: vector ? vector.bundle : bundle, hash, lies };
    if (has("late")) setTimeout(() => bundles.set(id, entry), 700);
    else bundles.set(id, entry);
    worker.record.served += 1;
    if (body.assay.level === "replayed") audit(entry);
    else if (lies || has("sampled")) setTimeout(() => audit(entry), 900);
    delta({}, "stop");
    send({ ...base, choices: [], usage: { prompt_tokens: 21, completion_tokens: pieces.length, total_tokens: 21 + pieces.length }, assay: { request_id: id, nonce, level: "signed", worker: worker.key.address, receipt_hash: hash, state: "signed", bundle_url: `/assay/receipts/${id}` } });
    send("[DONE]");
    response.end();
  }

  function fail(response, status, message) {
    response.writeHead(status, { "content-type": "application/json" });
    response.end(JSON.stringify({ error: { message, type: "error", param: null, code: null } }));
  }
  function json(response, value) {
    response.writeHead(200, { "content-type": "application/json" });
    response.end(JSON.stringify(value));
  }

  const server = createServer(async (request, response) => {
    try {
      const { pathname } = new URL(request.url, "http://mock");
      const api = pathname.startsWith("/v1/") || pathname.startsWith("/assay/");
      if (api && keyRequired && request.headers.authorization !== `Bearer ${keyRequired}`) return fail(response, 401, "No valid API key");
      const id = pathname.split("/").at(-1);
      if (pathname === "/v1/chat/completions" && request.method === "POST") {
        let text = "";
        for await (const piece of request) text += piece;
        return await chat(request, response, JSON.parse(text));
      }
      if (pathname === "/assay/members") return json(response, roster);
      const vectorFile = (name) => readFile(new URL(name, VECTORS));
      if (pathname.startsWith("/assay/proofs/") && request.method === "POST") {
        await sleep(300);
        if (!bundles.has(id)) return fail(response, 404, "No such request");
        return json(response, { request_id: id, state: "proved", proof: { key: `0x${"7".repeat(64)}`, bytes: (await vectorFile("answer.proof")).length } });
      }
      if (pathname.startsWith("/assay/receipts/") && pathname.endsWith("/proof")) return response.end(await vectorFile("answer.proof"));
      if (pathname.startsWith("/assay/proof-keys/")) return response.end(await vectorFile("answer.key"));
      if (pathname === "/assay/workers") return json(response, { workers: members.members.map((member, index) => ({ ...member, ...workers[index].record })) });
      if (pathname.startsWith("/assay/receipts/")) {
        const entry = bundles.get(id);
        return entry ? json(response, entry.bundle) : fail(response, 404, "No such receipt");
      }
      if (pathname.startsWith("/assay/audit/") && request.method === "POST") {
        const entry = bundles.get(id);
        if (!entry) return fail(response, 404, "No such receipt");
        if (entry.bundle.receipt.statement.arithmetic === 0) return fail(response, 400, "The answer of a forwarder cannot be replayed");
        await sleep(250);
        audit(entry);
        return json(response, { audit: entry.bundle.audits.at(-1) });
      }
      // A perceptron whose proof of forty examples is the published one, and a gateway that sends it for whatever is asked.
      if (pathname === "/v2/repository/index") return json(response, ["perceptron", "digits"].map((name) => ({ name, version: "1", state: "READY" })));
      if (pathname === "/v2/models/perceptron") return json(response, { name: "perceptron", inputs: [{ name: "input", datatype: "FP64", shape: [-1, 6] }], parameters: { assay_model: graphId } });
      if (pathname === "/v2/models/digits") return json(response, { name: "digits", inputs: [{ name: "input", datatype: "FP64", shape: [-1, 64] }], parameters: { assay_model: graphId } });
      if (pathname === "/v2/models/perceptron/assay") return response.end(await readFile(new URL("perceptron.graph", VECTORS)));
      if (pathname === "/v2/models/perceptron/infer") {
        const proof = await readFile(new URL("perceptron.proof", VECTORS));
        return json(response, { parameters: { assay_proof: proof.toString("base64"), assay_worker: workers[0].key.address, assay_operator: "north", assay_price: "20000000000000", assay_request_id: `infer-${"7".repeat(32)}` } });
      }
      if (pathname.startsWith("/assay/incident/")) return json(response, { request_id: id, note: "mock" });
      const file = pathname === "/" ? "index.html" : normalize(pathname).replace(/^\/+/, "");
      if (file.startsWith("..")) return fail(response, 404, "No such file");
      const bytes = await readFile(join(DIST, file)).catch(() => null);
      if (!bytes) return fail(response, 404, "No such file");
      response.writeHead(200, { "content-type": TYPES[extname(file)] ?? "application/octet-stream", "content-security-policy": CSP, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer" });
      response.end(bytes);
    } catch (error) {
      console.error(error);
      if (!response.headersSent) fail(response, 500, String(error));
      else response.destroy();
    }
  });
  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  return { url: `http://127.0.0.1:${server.address().port}`, seen, close: () => new Promise((resolve) => { server.closeAllConnections(); server.close(resolve); }) };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { url } = await start({ port: Number(process.env.PORT ?? 8600) });
  console.log(`mock gateway on ${url}`);
}
