// Checks the proof of an answer beside the page, which goes on meanwhile. The module lives for one check: what it used is gone with it.
import wasmUrl from "./assay_answer.wasm?url";
import type { Question, Word } from "./answer";
import { connect, fetchModule } from "./wasm";

onmessage = async ({ data }: MessageEvent<Question>) => {
  let word: Word;
  try {
    const ask = await connect(await fetchModule(wasmUrl), "check_answer");
    const about = new TextEncoder().encode(JSON.stringify(data.about));
    const key = new Uint8Array(data.key);
    const proof = new Uint8Array(data.proof);
    const call = new Uint8Array(8 + key.length + proof.length + about.length);
    const view = new DataView(call.buffer);
    view.setUint32(0, key.length, true);
    call.set(key, 4);
    view.setUint32(4 + key.length, proof.length, true);
    call.set(proof, 8 + key.length);
    call.set(about, 8 + key.length + proof.length);
    word = { report: ask(call) as Extract<Word, { report: unknown }>["report"] };
  } catch (error) {
    word = { error: error instanceof Error ? error.message : String(error) };
  }
  postMessage(word);
};
