// Loads a verifier of `assay` compiled to WebAssembly and calls it: bytes go in, JSON comes out. Nothing is sent anywhere; the
// checks run in this page.

interface Exports {
  memory: WebAssembly.Memory;
  alloc(length: number): number;
  free(pointer: number, length: number): void;
  [check: string]: unknown;
}

/** A check of the verifier. It throws an `Error` with the verifier's words where it could not read what it got. */
export type Ask = (call: Uint8Array) => unknown;

/** A call about the proof of something: both files, each behind its length in 4 bytes, and the rest as JSON. */
export function framed(file: Uint8Array, proof: Uint8Array, rest: unknown): Uint8Array {
  const about = new TextEncoder().encode(JSON.stringify(rest));
  const call = new Uint8Array(8 + file.length + proof.length + about.length);
  const view = new DataView(call.buffer);
  view.setUint32(0, file.length, true);
  call.set(file, 4);
  view.setUint32(4 + file.length, proof.length, true);
  call.set(proof, 8 + file.length);
  call.set(about, 8 + file.length + proof.length);
  return call;
}

/** Fetches a module. */
export async function fetchModule(url: string): Promise<ArrayBuffer> {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`the verifier could not be loaded (HTTP ${response.status}): reload the page`);
  return response.arrayBuffer();
}

/** Compiles a module and finds its function `name`. */
export async function connect(module: BufferSource, name: string): Promise<Ask> {
  const { instance } = await WebAssembly.instantiate(module, {});
  const { memory, alloc, free, [name]: check } = instance.exports as unknown as Partial<Exports>;
  if (!memory || !alloc || !free || typeof check !== "function") {
    throw new Error("the verifier that came is none: reload the page");
  }
  return (call) => {
    const input = alloc(call.length) >>> 0;
    new Uint8Array(memory.buffer, input, call.length).set(call);
    const packed = BigInt.asUintN(64, (check as (pointer: number, length: number) => bigint)(input, call.length));
    const output = Number(packed >> 32n);
    const length = Number(packed & 0xffffffffn);
    // The check may have grown the memory, so the view must be made after it.
    const answer = new TextDecoder().decode(new Uint8Array(memory.buffer, output, length));
    free(output, length);
    const found = JSON.parse(answer) as object;
    if ("error" in found) throw new Error(String(found.error));
    return found;
  };
}
