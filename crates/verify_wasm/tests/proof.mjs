// Runs the committed verifier of proofs in Node on the proof in docs/vectors, which a native prover made:
// node crates/verify_wasm/tests/proof.mjs
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";

const root = new URL("../../../", import.meta.url);
const read = async (path) => new Uint8Array(await readFile(new URL(path, root)));
const module = await WebAssembly.compile(await read("web/src/assay_proof.wasm"));
assert.deepEqual(WebAssembly.Module.imports(module), [], "the verifier reaches nothing outside itself");
const { memory, alloc, free, check_proof } = (await WebAssembly.instantiate(module)).exports;

function callBytes(bytes) {
  const input = alloc(bytes.length) >>> 0;
  new Uint8Array(memory.buffer, input, bytes.length).set(bytes);
  const packed = BigInt.asUintN(64, check_proof(input, bytes.length));
  const [output, length] = [Number(packed >> 32n), Number(packed & 0xffffffffn)];
  const text = new TextDecoder().decode(new Uint8Array(memory.buffer, output, length));
  free(output, length);
  return JSON.parse(text);
}

function check(model, proof, rows) {
  const about = rows === undefined ? new Uint8Array(0) : new TextEncoder().encode(JSON.stringify(rows));
  const request = new Uint8Array(8 + model.length + proof.length + about.length);
  const view = new DataView(request.buffer);
  view.setUint32(0, model.length, true);
  request.set(model, 4);
  view.setUint32(4 + model.length, proof.length, true);
  request.set(proof, 8 + model.length);
  request.set(about, 8 + model.length + proof.length);
  return callBytes(request);
}

const [model, proof] = [await read("docs/vectors/perceptron.graph"), await read("docs/vectors/perceptron.proof")];
const started = performance.now();
const report = check(model, proof);
const milliseconds = performance.now() - started;
assert.equal(report.valid, true, report.reason);
assert.equal(report.examples, 40);
assert.equal(report.outputs.length, 40);
assert.ok(report.security_bits > 100 && report.security_bits < 128);

// About the inputs that are meant, and no others.
const rows = report.inputs.flat();
assert.equal(check(model, proof, rows).valid, true);
assert.match(check(model, proof, rows.with(7, rows[7] + (rows[7] > 0 ? -1 : 1))).reason, /other inputs/);
assert.equal(check(model, proof, rows.slice(6)).valid, false);
assert.equal(check(model, proof, [1]).valid, false);
assert.equal(check(model, proof, ["a"]).valid, false);

// Any byte changed, in the statement, the messages or the opening.
for (let at = 0; at < proof.length; at += 211) {
  const other = proof.slice();
  other[at] ^= 1 << (at % 8);
  const { valid, reason } = check(model, other);
  assert.equal(valid, false, `byte ${at}`);
  assert.match(reason, /./);
}
// Cut, extended, and about another model.
assert.equal(check(model, proof.slice(0, -1)).valid, false);
assert.equal(check(model, new Uint8Array([...proof, 0])).valid, false);
const changed = model.slice();
changed[model.length - 60] ^= 1; // in a weight or bias of the last layer
assert.match(check(changed, proof).reason, /about the model/);
assert.match(check(model.slice(1), proof).reason, /not valid/);
assert.equal(callBytes(Uint8Array.of(9, 0, 0, 0, 1)).valid, false);
assert.equal(callBytes(new Uint8Array(0)).valid, false);
// Committed weights: with the key in place of the model, and not with the model.
const [key, keyed] = [await read("docs/vectors/perceptron.key"), await read("docs/vectors/perceptron-key.proof")];
assert.equal(check(key, keyed).valid, true);
assert.equal(check(model, keyed).valid, false);
assert.equal(check(key, proof).valid, false);
for (let at = 0; at < keyed.length; at += 509) {
  const other = keyed.slice();
  other[at] ^= 1 << (at % 8);
  assert.equal(check(key, other).valid, false, `byte ${at}`);
}
// Hidden inputs.
const hidden = await read("docs/vectors/perceptron-hidden.proof");
const told = check(model, hidden);
assert.deepEqual([told.valid, told.hiding, told.hides_inputs, told.inputs, told.examples], [true, true, true, null, 2], told.reason);
assert.equal(report.hiding, false);
assert.ok(told.security_bits > 100 && told.security_bits < 128);
assert.match(check(model, hidden, rows.slice(0, 12)).reason, /hides its inputs/);
assert.equal(check(key, hidden).valid, false);
for (let at = 0; at < hidden.length; at += 1009) {
  const other = hidden.slice();
  other[at] ^= 1 << (at % 8);
  assert.equal(check(model, other).valid, false, `byte ${at}`);
}
// Hidden weights, with the numbers in the open.
const [hiding, private_] = [await read("docs/vectors/perceptron-hiding.key"), await read("docs/vectors/perceptron-hidden-weights.proof")];
const shown = check(hiding, private_, rows.slice(0, told.examples * rows.length / report.examples));
assert.deepEqual([shown.valid, shown.hiding, shown.hides_inputs, shown.hides_weights, shown.examples], [true, true, false, true, 2], shown.reason);
assert.deepEqual([report.hides_weights, told.hides_weights], [false, false]);
assert.ok(shown.security_bits > 100 && shown.security_bits < 128);
assert.match(check(hiding, private_, rows.slice(1, 1 + 2 * rows.length / report.examples)).reason, /other inputs/);
assert.equal(check(key, private_).valid, false);
assert.equal(check(hiding, keyed).valid, false);
for (let at = 0; at < private_.length; at += 1409) {
  const other = private_.slice();
  other[at] ^= 1 << (at % 8);
  assert.equal(check(hiding, other).valid, false, `byte ${at}`);
}
// It does not leak.
const before = memory.buffer.byteLength;
for (let count = 0; count < 20; count++) check(model, proof);
assert.equal(memory.buffer.byteLength, before);

console.log(
  `the verifier of proofs in WebAssembly agrees with the native prover: ${proof.length} bytes in ${milliseconds.toFixed(0)} ms`,
);
