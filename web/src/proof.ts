// Loads the verifier of proofs (the same Rust code as `assay verify`) and calls it. Nothing is sent anywhere: the check runs in
// this page.
import wasmUrl from "./assay_proof.wasm?url";

/** What a proof shows, or why it shows nothing. */
export type Proved =
  | { valid: false; reason: string }
  | {
      valid: true;
      /** Id of the model or key that it is about, computed from the file. */
      model: string;
      examples: number;
      security_bits: number;
      outputs: number[][];
      /** The chosen class of each example; none where outputs are numbers. */
      labels: string[];
    };

/** Checks that a proof shows what the model of this file gives for these numbers. */
export type ProofVerifier = (model: Uint8Array, proof: Uint8Array, rows: number[]) => Proved;

interface Exports {
  memory: WebAssembly.Memory;
  alloc(length: number): number;
  free(pointer: number, length: number): void;
  check_proof(pointer: number, length: number): bigint;
}

/** Fetches and compiles the verifier. Call it once and keep the result. */
export async function loadProofVerifier(): Promise<ProofVerifier> {
  const response = await fetch(wasmUrl);
  if (!response.ok) throw new Error(`the verifier could not be loaded (HTTP ${response.status}): reload the page`);
  const { instance } = await WebAssembly.instantiate(await response.arrayBuffer(), {});
  const { memory, alloc, free, check_proof } = instance.exports as unknown as Exports;
  return (model, proof, rows) => {
    const about = new TextEncoder().encode(JSON.stringify(rows));
    const call = new Uint8Array(8 + model.length + proof.length + about.length);
    const view = new DataView(call.buffer);
    view.setUint32(0, model.length, true);
    call.set(model, 4);
    view.setUint32(4 + model.length, proof.length, true);
    call.set(proof, 8 + model.length);
    call.set(about, 8 + model.length + proof.length);
    const input = alloc(call.length) >>> 0;
    new Uint8Array(memory.buffer, input, call.length).set(call);
    const packed = BigInt.asUintN(64, check_proof(input, call.length));
    const output = Number(packed >> 32n);
    const length = Number(packed & 0xffffffffn);
    // The check may have grown the memory, so the view must be made after it.
    const answer = new TextDecoder().decode(new Uint8Array(memory.buffer, output, length));
    free(output, length);
    return JSON.parse(answer) as Proved;
  };
}
