// Loads the receipt verifier (the same Rust code as `assay verify`) and calls it. Nothing is sent anywhere: the checks
// run in this page. It checks signatures, hashes and audits; repeating an answer needs the model and is not done here.
import wasmUrl from "./assay_verify.wasm?url";

/** What the evidence supports, all checks considered. */
export type State = "rejected" | "signed" | "replayed" | "proved" | "mismatch";

/** Verification level that the evidence supports. */
export type Level = "signed" | "attested" | "replayed" | "proved";

/** One named check and what it saw. */
export interface Check {
  name: string;
  /** `not_counted`: an audit's check that does not hold; that audit counts for nothing, and the receipt stands. */
  outcome: "passed" | "failed" | "skipped" | "not_counted";
  detail: string;
}

/** What checking found. */
export interface Report {
  state: State;
  /** `null` when rejected. */
  level: Level | null;
  hash: string;
  worker: string;
  operator: string | null;
  checks: Check[];
  /** Indices of the bundle's audits that hold. */
  counted: number[];
  /** What this proves, in plain sentences. */
  proves: string[];
  /** Who or what is still trusted, in plain sentences. */
  trusted: string[];
}

/** What the caller knows from elsewhere; `workers` are the `members` of the signed list of members. */
export interface Expected {
  domain: { chain_id: number; contract: string };
  workers: object[];
  nonce?: string | null;
  model?: string | null;
  payer?: string | null;
  /** Decimal string, in 10^-18 OPG. */
  cap?: string | null;
}

/** The verifier, once it is loaded. Its methods throw an `Error` when what they get cannot be read. */
export interface Verifier {
  /** Checks a receipt bundle. */
  check(bundle: object, expected: Expected): Report;
  /** The address whose key signed a list of workers. */
  signer(domain: Expected["domain"], members: object): string;
}

interface Exports {
  memory: WebAssembly.Memory;
  alloc(length: number): number;
  free(pointer: number, length: number): void;
  check(pointer: number, length: number): bigint;
}

/** Fetches and compiles the verifier. Call it once and keep the result. */
export async function loadVerifier(): Promise<Verifier> {
  const response = await fetch(wasmUrl);
  if (!response.ok) {
    throw new Error(`the verifier could not be loaded (HTTP ${response.status}): reload the page`);
  }
  return verifierFromBytes(await response.arrayBuffer());
}

/** The same from the bytes of the module. */
export async function verifierFromBytes(bytes: BufferSource): Promise<Verifier> {
  const { instance } = await WebAssembly.instantiate(bytes, {});
  const { memory, alloc, free, check } = instance.exports as unknown as Partial<Exports>;
  if (!memory || !alloc || !free || !check) throw new Error("the verifier that came is none: reload the page");
  const ask = (question: object): unknown => {
    const call = new TextEncoder().encode(JSON.stringify(question));
    const input = alloc(call.length) >>> 0;
    new Uint8Array(memory.buffer, input, call.length).set(call);
    const packed = BigInt.asUintN(64, check(input, call.length));
    const output = Number(packed >> 32n);
    const length = Number(packed & 0xffffffffn);
    // `check` may have grown the memory, so the view must be made after it.
    const answer = new TextDecoder().decode(new Uint8Array(memory.buffer, output, length));
    free(output, length);
    const found = JSON.parse(answer) as object;
    if ("error" in found) throw new Error(String(found.error));
    return found;
  };
  return {
    check: (bundle, expected) => ask({ bundle: { bundle, expected } }) as Report,
    signer: (domain, members) => (ask({ members: { domain, members } }) as { signer: string }).signer,
  };
}
