// The verifier of proofs of answers in text: the same Rust code as `assay verify --proof`. It recomputes the answer from the proof's
// sums, which takes seconds, so it runs in a worker of the browser's.
import type { Expected, Report } from "./verify";

/** What the worker is asked. */
export interface Question {
  key: ArrayBuffer;
  proof: ArrayBuffer;
  about: { bundle: object; expected: Expected };
}

/** What it says: a report with the id of the key, or why there is none. */
export type Word = { report: Report & { key: string } } | { error: string };

/** Most bytes of a proof that is checked in a page: key, proof and what is computed have to fit in its memory. */
export const PROOF_BYTES_MAX = 512 * 1024 * 1024;

/** Checks the proof of an answer. The files are handed over and cannot be used afterwards. */
export function checkAnswer(question: Question): Promise<Report & { key: string }> {
  const worker = new Worker(new URL("./answer.worker.ts", import.meta.url), { type: "module" });
  return new Promise<Report & { key: string }>((resolve, reject) => {
    worker.onmessage = ({ data }: MessageEvent<Word>) => ("error" in data ? reject(new Error(data.error)) : resolve(data.report));
    worker.onerror = (event) => reject(new Error(event.message || "the verifier of proofs could not be loaded: reload the page"));
    worker.postMessage(question, [question.key, question.proof]);
  }).finally(() => worker.terminate());
}
