// The verifier of proofs: the same Rust code as `assay verify`.
import wasmUrl from "./assay_proof.wasm?url";
import { connect, fetchModule, framed } from "./wasm";

/** What a proof shows, or why it shows nothing. */
export type Proved =
  | { valid: false; reason: string }
  | {
      valid: true;
      /** Id of the model or key that it is about, computed from the file. */
      model: string;
      examples: number;
      security_bits: number;
      /** Whether it tells nothing about the weights but what the outputs say. */
      hides_weights: boolean;
      outputs: number[][];
      /** The chosen class of each example; none where outputs are numbers. */
      labels: string[];
    };

/** Checks that a proof shows what the model of this file gives for these numbers. */
export type ProofVerifier = (model: Uint8Array, proof: Uint8Array, rows: number[]) => Proved;

/** Fetches and compiles the verifier. Call it once and keep the result. */
export async function loadProofVerifier(): Promise<ProofVerifier> {
  const ask = await connect(await fetchModule(wasmUrl), "check_proof");
  return (model, proof, rows) => ask(framed(model, proof, rows)) as Proved;
}
