// Runs the committed verifier in Node on docs/vectors/receipt.json: node crates/verify_wasm/tests/vectors.mjs
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";

const root = new URL("../../../", import.meta.url);
const module = await WebAssembly.compile(await readFile(new URL("web/src/assay_verify.wasm", root)));
assert.deepEqual(WebAssembly.Module.imports(module), [], "the verifier reaches nothing outside itself");
const { memory, alloc, free, check } = (await WebAssembly.instantiate(module)).exports;

function callBytes(bytes) {
  const input = alloc(bytes.length) >>> 0;
  new Uint8Array(memory.buffer, input, bytes.length).set(bytes);
  const packed = BigInt.asUintN(64, check(input, bytes.length));
  const [output, length] = [Number(packed >> 32n), Number(packed & 0xffffffffn)];
  const text = new TextDecoder().decode(new Uint8Array(memory.buffer, output, length));
  free(output, length);
  return JSON.parse(text);
}
const call = (value) => callBytes(new TextEncoder().encode(JSON.stringify(value)));

const vectors = JSON.parse(await readFile(new URL("docs/vectors/receipt.json", root), "utf8"));
const statement = (name) => vectors.statements.find((vector) => vector.name === name);
const members = statement("members").json.statement;
const receipt = vectors.bundle.receipt.statement;
const expected = {
  domain: vectors.domain,
  workers: members.members,
  nonce: receipt.nonce,
  model: receipt.model,
  payer: receipt.payer,
  cap: receipt.cap,
};
const checkBundle = (bundle, other = expected) => call({ bundle: { bundle, expected: other } });
const failed = (report) => report.checks.filter((check) => check.outcome === "failed").map((check) => check.name);

// The good bundle.
const report = checkBundle(vectors.bundle);
assert.equal(report.state, "replayed");
assert.equal(report.level, "replayed");
assert.equal(report.hash, statement("receipt").digest);
assert.deepEqual(failed(report), []);

// The same bundle, spoilt.
const spoilt = (change) => {
  const bundle = structuredClone(vectors.bundle);
  change(bundle);
  return checkBundle(bundle);
};
assert.deepEqual(failed(spoilt((bundle) => (bundle.output.text = "x"))), ["output", "stream"]);
assert.deepEqual(failed(spoilt((bundle) => bundle.chunks.pop())), ["chain", "stream"]);
assert.deepEqual(failed(spoilt((bundle) => (bundle.request.sampling.seed = "1"))), ["request", "chain"]);
assert.equal(spoilt((bundle) => (bundle.audits = [])).state, "signed");
assert.equal(spoilt((bundle) => (bundle.receipt.statement.price = "1")).level, null);
assert.deepEqual(failed(checkBundle(vectors.bundle, { ...expected, nonce: receipt.chain })), ["nonce"]);

// What cannot be read.
assert.match(call({}).error, /./);
assert.match(spoilt((bundle) => (bundle.more = 1)).error, /unknown field/);
assert.match(callBytes(new Uint8Array(0)).error, /EOF/);
assert.match(callBytes(Uint8Array.of(0xff, 0xfe)).error, /./);

// A failure and a sequence.
const failure = statement("failure").json;
const { salt, request, chunks } = vectors.bundle;
const evidence = { salt, request, chunks: chunks.slice(0, 2) };
assert.equal(call({ failure: { failure, evidence, expected } }).state, "signed");
const [sequence] = call({
  sequence: { domain: vectors.domain, statements: [{ receipt: vectors.bundle.receipt }, { failure }] },
});
assert.deepEqual(sequence.forks, []);
assert.deepEqual(sequence.gaps, [{ first: 0, last: 11 }]);

// Neither leaks: a thousand calls fit into the memory that ten needed.
for (let count = 0; count < 10; count++) checkBundle(vectors.bundle);
const before = memory.buffer.byteLength;
for (let count = 0; count < 1000; count++) callBytes(Uint8Array.of(0x7b));
for (let count = 0; count < 50; count++) checkBundle(vectors.bundle);
assert.equal(memory.buffer.byteLength, before);

console.log(`the verifier in WebAssembly agrees with the vectors: ${report.checks.length} checks`);
