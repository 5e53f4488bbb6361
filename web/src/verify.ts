// The verifier of receipts: the same Rust code as `assay verify`. It checks signatures, hashes and audits; repeating an answer
// needs the model and is not done here.
import wasmUrl from "./assay_verify.wasm?url";
import { connect, fetchModule } from "./wasm";

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

/** Fetches and compiles the verifier. Call it once and keep the result. */
export async function loadVerifier(): Promise<Verifier> {
  return verifierFromBytes(await fetchModule(wasmUrl));
}

/** The same from the bytes of the module. */
export async function verifierFromBytes(bytes: BufferSource): Promise<Verifier> {
  const check = await connect(bytes, "check");
  const ask = (question: object) => check(new TextEncoder().encode(JSON.stringify(question)));
  return {
    check: (bundle, expected) => ask({ bundle: { bundle, expected } }) as Report,
    signer: (domain, members) => (ask({ members: { domain, members } }) as { signer: string }).signer,
  };
}
