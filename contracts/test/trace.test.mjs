// The engine's traces of two tiny models, against the second implementation: crates/engine/tests/trace.rs wrote the vectors.
import { test } from "node:test";
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { loadModel, run } from "./model.mjs";

const vector = (name) => readFileSync(new URL(`../../docs/vectors/${name}`, import.meta.url));

for (const { model, prompt, output, sampling, size, root } of JSON.parse(vector("trace.json"))) {
  test(`the trace of ${model}`, { timeout: 120_000 }, () => {
    const loaded = loadModel(new Uint8Array(vector(model)));
    assert.equal(loaded.tree.root, JSON.parse(loaded.manifest).root, "the artifact itself");
    const trace = run(loaded, prompt, output, sampling);
    assert.deepEqual(trace.tokens, output);
    assert.equal(trace.bytes.length, size);
    assert.equal(trace.tree.root, root);
  });
}
