// The gateway's JSON, as far as the page reads it.

/** EIP-712 domain of all statements. */
export interface Domain {
  chain_id: number;
  contract: string;
}

/** A statement and the signature of its author. */
export interface Signed<T> {
  statement: T;
  signature: string;
}

/** One model that a worker serves. Prices are in 10^-18 OPG a token. */
export interface Offer {
  model: string;
  name: string;
  prompt_price: string;
  completion_price: string;
  /** 0 for a forwarder, whose answers nobody can replay. */
  arithmetic: number;
  context: number;
}

/** One worker on the signed list. */
export interface Member {
  operator: string;
  worker: string;
  key_epoch: number;
  url: string;
  tls_sha256: string;
  models: Offer[];
}

/** The list of workers. */
export interface Members {
  serial: number;
  issued_at_s: number;
  expires_at_s: number;
  members: Member[];
}

/** `GET /assay/members`. */
export interface Roster {
  domain: Domain;
  members: Signed<Members>;
  signer: string;
}

/** One message of a conversation, as it is signed. */
export interface WireMessage {
  role: string;
  content: string;
  name?: string | null;
  tool_calls?: string | null;
  tool_call_id?: string | null;
}

/** The request that a receipt commits to. */
export interface WireRequest {
  model: string;
  prompt: { chat?: { messages: WireMessage[]; tools: string | null }; text?: string; tokens?: number[] };
  max_tokens: number;
  stop: string[];
  sampling: {
    temperature_milli: number;
    top_k: number;
    top_p_ppm: number;
    min_p_ppm: number;
    repetition_penalty_milli: number;
    frequency_penalty_milli: number;
    presence_penalty_milli: number;
    logit_bias: [number, number][];
    seed: string;
  };
  constraint: unknown;
  logprobs: number | null;
}

/** The answer that a receipt commits to. */
export interface WireOutput {
  text: string;
  finish_reason: string;
  tokens: number[];
  prompt_tokens: number;
  completion_tokens: number;
}

/** One signed piece of the stream. */
export interface WireChunk {
  chunk: { index: number; text: string; tokens: number[] };
  link: string;
  signature: string;
}

/** A worker's word on one answer. */
export interface WireReceipt {
  worker: string;
  key_epoch: number;
  model: string;
  arithmetic: number;
  level: string;
  chunks: number;
  prompt_tokens: number;
  completion_tokens: number;
  price: string;
  payer: string;
  cap: string;
  nonce: string;
  sequence: string;
  previous: string;
  received_at_ms: number;
  first_token_at_ms: number;
  finished_at_ms: number;
}

/** An auditor's word after a replay. */
export interface WireAudit {
  auditor: string;
  key_epoch: number;
  receipt: string;
  verdict: "agrees" | "differs" | "unable";
  field: string;
  position: number;
  /** Decimal numbers; `NOTHING` past the end. */
  expected: string;
  claimed: string;
  audited_at_ms: number;
  compute_ms: number;
}

/** A receipt with everything that is needed to check it offline. */
export interface Bundle {
  version: number;
  domain: Domain;
  salt: string;
  request: WireRequest;
  output: WireOutput;
  chunks: WireChunk[];
  receipt: Signed<WireReceipt>;
  audits: Signed<WireAudit>[];
}

/** What an audit says for the place after the last token or byte: 2^64 - 1. */
export const NOTHING = 18_446_744_073_709_551_615n;

/** Why a worker is suspended. */
export interface Suspension {
  request_id: string;
  field: string;
  position: number;
  expected: number;
  claimed: number;
  auditors: string[];
  at_ms: number;
}

/** A worker's record at this gateway, as the page shows it. */
export interface Standing {
  operator: string;
  worker: string;
  served: number;
  failures: number;
  refusals: number;
  agreed: number;
  differed: number;
  made: number;
  disputed: number;
  firstTokenMs: number | null;
  tokenMs: number | null;
  earned: string;
  withheld: string;
  suspended: Suspension | null;
  /** One auditor came to another answer; no requests until a second one decides. */
  accused: boolean;
  inFlight: number;
  resting: boolean;
  lastFault: string | null;
  models: string[];
}

/** One model that can be asked. */
export interface Model {
  name: string;
  id: string;
  workers: number;
  /** Whether its answers can be replayed. */
  replayable: boolean;
  promptPrice: string;
  completionPrice: string;
  context: number;
}
