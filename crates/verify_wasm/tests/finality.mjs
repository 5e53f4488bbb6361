// Runs the committed light client in Node on docs/vectors/finality.json, which four simulated validators signed:
// node crates/verify_wasm/tests/finality.mjs
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";

const root = new URL("../../../", import.meta.url);
const module = await WebAssembly.compile(await readFile(new URL("web/src/assay_finality.wasm", root)));
assert.deepEqual(WebAssembly.Module.imports(module), [], "the verifier reaches nothing outside itself");
const { memory, alloc, free, check_finality } = (await WebAssembly.instantiate(module)).exports;

function call(value) {
  const bytes = new TextEncoder().encode(JSON.stringify(value));
  const input = alloc(bytes.length) >>> 0;
  new Uint8Array(memory.buffer, input, bytes.length).set(bytes);
  const packed = BigInt.asUintN(64, check_finality(input, bytes.length));
  const [output, length] = [Number(packed >> 32n), Number(packed & 0xffffffffn)];
  const text = new TextDecoder().decode(new Uint8Array(memory.buffer, output, length));
  free(output, length);
  return JSON.parse(text);
}

const { request, answer } = JSON.parse(await readFile(new URL("docs/vectors/finality.json", root), "utf8"));
assert.deepEqual(call(request), answer);
assert.equal(answer.final, true);

const spoilt = (change, reason) => {
  const other = structuredClone(request);
  change(other);
  const { final, reason: found } = call(other);
  assert.equal(final, false);
  assert.match(found, reason);
};
const flip = (text, at) => text.slice(0, at) + (text[at] === "0" ? "1" : "0") + text.slice(at + 1);
spoilt((r) => (r.genesis = flip(r.genesis, 5)), /hash is another/);
spoilt((r) => (r.committee = flip(r.committee, 60)), /not the one that the block names/);
spoilt((r) => r.epochs.pop(), /is not of epoch/);
spoilt((r) => (r.epochs[0].committee = r.committee), /not the one that the block names/);
spoilt((r) => (r.finalization = flip(r.finalization, r.finalization.length - 1)), /does not hold/);
spoilt((r) => (r.finalization = r.epochs[0].finalization), /another block/);
spoilt((r) => (r.headers = []), /header/);
spoilt((r) => (r.headers = 1), /header/);
spoilt((r) => (r.genesis = "0x1"), /hexadecimal/);
spoilt((r) => delete r.finalization, /hexadecimal/);
