// The verifier of proofs: the same Rust code as `assay verify`.
import wasmUrl from "./assay_proof.wasm?url";
import { connect, fetchModule } from "./wasm";

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

/** Fetches and compiles the verifier. Call it once and keep the result. */
export async function loadProofVerifier(): Promise<ProofVerifier> {
  const ask = await connect(await fetchModule(wasmUrl), "check_proof");
  return (model, proof, rows) => {
    const about = new TextEncoder().encode(JSON.stringify(rows));
    const call = new Uint8Array(8 + model.length + proof.length + about.length);
    const view = new DataView(call.buffer);
    view.setUint32(0, model.length, true);
    call.set(model, 4);
    view.setUint32(4 + model.length, proof.length, true);
    call.set(proof, 8 + model.length);
    call.set(about, 8 + model.length + proof.length);
    return ask(call) as Proved;
  };
}
