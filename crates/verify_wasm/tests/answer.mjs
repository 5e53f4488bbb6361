// Runs the committed verifier of proofs of answers in text in Node on the vectors, which native code made:
// node crates/verify_wasm/tests/answer.mjs [KEY PROOF RECEIPT EXPECTED]   with other files it says how long it took
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";

const root = new URL("../../../", import.meta.url);
const read = async (path) => new Uint8Array(await readFile(new URL(path, root)));
const module = await WebAssembly.compile(await read("web/src/assay_answer.wasm"));
assert.deepEqual(WebAssembly.Module.imports(module), [], "the verifier reaches nothing outside itself");

/** Checks in an instance of its own, as a page does: what one call leaves behind is gone with it. */
async function check(key, proof, about) {
  const { memory, alloc, free, check_answer } = (await WebAssembly.instantiate(module)).exports;
  const text = new TextEncoder().encode(typeof about === "string" ? about : JSON.stringify(about));
  const length = 8 + key.length + proof.length + text.length;
  const input = alloc(length) >>> 0;
  const view = new DataView(memory.buffer);
  const bytes = new Uint8Array(memory.buffer, input, length);
  view.setUint32(input, key.length, true);
  bytes.set(key, 4);
  view.setUint32(input + 4 + key.length, proof.length, true);
  bytes.set(proof, 8 + key.length);
  bytes.set(text, 8 + key.length + proof.length);
  const packed = BigInt.asUintN(64, check_answer(input, length));
  const [output, size] = [Number(packed >> 32n), Number(packed & 0xffffffffn)];
  const answer = JSON.parse(new TextDecoder().decode(new Uint8Array(memory.buffer, output, size)));
  free(output, size);
  return { ...answer, memory: memory.buffer.byteLength };
}

const files = process.argv.slice(2);
const [key, proof, json] = files.length
  ? await Promise.all(files.slice(0, 3).map(async (path) => new Uint8Array(await readFile(path))))
  : [await read("docs/vectors/answer.key"), await read("docs/vectors/answer.proof"), await read("docs/vectors/answer.json")];
const about = JSON.parse(new TextDecoder().decode(json));
const started = performance.now();
const report = await check(key, proof, files.length ? { bundle: about, expected: JSON.parse(await readFile(files[3], "utf8")) } : about);
const milliseconds = performance.now() - started;
assert.equal(report.error, undefined);
assert.equal(report.state, "proved", JSON.stringify(report.checks));
console.log(`proved in ${milliseconds.toFixed(0)} ms with ${(report.memory / 1e6).toFixed(0)} MB; the proof has ${(proof.length / 1e6).toFixed(2)} MB`);
if (files.length) process.exit();

assert.match(report.key, /^0x[0-9a-f]{64}$/);
const changed = (bytes, at) => bytes.with(at, bytes.at(at) ^ 1);
for (const other of [changed(proof, -40), changed(proof, 100), proof.slice(0, -1), key, new Uint8Array(0)]) {
  const found = await check(key, other, about);
  assert.equal(found.state, "signed");
  assert.ok(found.checks.some((check) => check.name === "products" && check.outcome === "failed"));
}
const lie = structuredClone(about);
lie.bundle.receipt.statement.price = "1";
assert.equal((await check(key, proof, lie)).state, "rejected");
assert.match((await check(changed(key, 9), proof, about)).error, /key/);
assert.match((await check(proof, key, about)).error, /key/);
for (const text of ["", "{}", '{"bundle": 1, "expected": 2}']) assert.ok((await check(key, proof, text)).error);
const form = structuredClone(about);
form.bundle.request.constraint = "json";
assert.match((await check(key, proof, form)).error, /form/);
