// Checks the proof of an answer beside the page, which goes on meanwhile. The module lives for one check: what it used is gone with it.
import wasmUrl from "./assay_answer.wasm?url";
import type { Question, Word } from "./answer";
import { connect, fetchModule, framed } from "./wasm";

onmessage = async ({ data }: MessageEvent<Question>) => {
  let word: Word;
  try {
    const ask = await connect(await fetchModule(wasmUrl), "check_answer");
    const call = framed(new Uint8Array(data.key), new Uint8Array(data.proof), data.about);
    word = { report: ask(call) as Extract<Word, { report: unknown }>["report"] };
  } catch (error) {
    word = { error: error instanceof Error ? error.message : String(error) };
  }
  postMessage(word);
};
