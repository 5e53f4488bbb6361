// A second, independent writing of the signed types: generic EIP-712 from the type strings. The mock gateway signs
// with it, so the end-to-end test also holds the verifier's WebAssembly against it.
import { secp256k1 } from "@noble/curves/secp256k1.js";
import { keccak_256 } from "@noble/hashes/sha3.js";

const utf8 = (text) => new TextEncoder().encode(text);
export const keccak = (...parts) => keccak_256(Buffer.concat(parts.map((part) => (typeof part === "string" ? utf8(part) : part))));
export const hex = (bytes) => `0x${Buffer.from(bytes).toString("hex")}`;
export const unhex = (text) => Uint8Array.from(Buffer.from(text.slice(2), "hex"));

const STRUCTS = {
  Receipt:
    "address worker,uint64 keyEpoch,bytes32 model,uint32 arithmetic,uint8 level,bytes32 request,bytes32 output,uint64 chunks,bytes32 chain,bytes32 trace,uint32 promptTokens,uint32 completionTokens,uint128 price,address payer,uint128 cap,bytes32 nonce,uint64 sequence,bytes32 previous,uint64 receivedAtMs,uint64 firstTokenAtMs,uint64 finishedAtMs",
  Audit:
    "address auditor,uint64 keyEpoch,bytes32 receipt,bytes32 model,uint32 arithmetic,uint8 verdict,string field,uint64 position,uint64 expected,uint64 claimed,uint64 sequence,bytes32 previous,uint64 auditedAtMs,uint64 computeMs",
  Members: "uint64 serial,uint64 issuedAtS,uint64 expiresAtS,Member[] members",
  Member: "string operator,address worker,uint64 keyEpoch,string url,bytes32 tlsSha256,Offer[] models",
  Offer: "bytes32 model,string name,uint128 promptPrice,uint128 completionPrice,uint32 arithmetic,uint32 context",
  Request:
    "bytes32 model,uint8 promptKind,Message[] messages,string[] tools,string toolChoice,bool parallelToolCalls,string text,uint32[] tokens,uint32 maxTokens,string[] stop,Sampling sampling,uint8 constraintKind,string constraint,uint8[] logprobs,uint64 nowUnixS",
  Message: "string role,string content,string[] name,string[] toolCalls,string[] toolCallId",
  Sampling:
    "uint32 temperatureMilli,uint32 topK,uint32 topPPpm,uint32 minPPpm,uint32 repetitionPenaltyMilli,int32 frequencyPenaltyMilli,int32 presencePenaltyMilli,LogitBias[] logitBias,uint64 seed",
  LogitBias: "uint32 token,int32 milli",
  Output: "string text,string[] toolCalls,uint8 finishReason,uint32[] tokens,uint32 promptTokens,uint32 completionTokens,TokenLogprob[] logprobs",
  TokenLogprob: "uint32 token,int32 logprobQ16,TopLogprob[] top",
  TopLogprob: "uint32 token,int32 logprobQ16",
  Chunk: "uint64 index,string text,uint32[] tokens,TokenLogprob[] logprobs",
  ChunkLink: "bytes32 nonce,uint64 index,bytes32 link",
  EIP712Domain: "string name,string version,uint256 chainId,address verifyingContract",
};

const fields = (name) => STRUCTS[name].split(",").map((field) => field.split(" "));

function references(name, found = new Set()) {
  for (const [type] of fields(name)) {
    const base = type.replace("[]", "");
    if (base in STRUCTS && !found.has(base)) references(base, found.add(base));
  }
  return found;
}

function word(value) {
  const number = BigInt.asUintN(256, BigInt(value));
  return unhex(`0x${number.toString(16).padStart(64, "0")}`);
}

function encode(type, value) {
  if (type.endsWith("[]")) return keccak(...value.map((item) => encode(type.slice(0, -2), item)));
  if (type in STRUCTS) return structHash(type, value);
  if (type === "string") return keccak(value);
  if (type === "bytes32") return unhex(value);
  if (type === "address") return word(BigInt(value));
  return word(value); // uintN, intN and bool
}

export function structHash(name, value) {
  const types = [name, ...[...references(name)].sort()].map((each) => `${each}(${STRUCTS[each]})`).join("");
  return keccak(keccak(types), ...fields(name).map(([type, field]) => encode(type, value[field])));
}

export function digest(domain, name, value) {
  const separator = structHash("EIP712Domain", {
    name: "Assay",
    version: "1",
    chainId: domain.chain_id,
    verifyingContract: domain.contract,
  });
  return keccak(Uint8Array.of(0x19, 0x01), separator, structHash(name, value));
}

/** A key made of a word, for tests only. */
export function key(seed) {
  const secret = keccak(`assay test key ${seed}`);
  const address = hex(keccak(secp256k1.getPublicKey(secret, false).slice(1)).slice(12));
  return {
    address,
    sign(hash) {
      // "recovered" is recovery byte || r || s.
      const bytes = secp256k1.sign(hash, secret, { prehash: false, format: "recovered", lowS: true });
      return hex(Uint8Array.of(...bytes.slice(1), 27 + bytes[0]));
    },
  };
}

// JSON of the wire (snake case, variants, options) into the flat hashed form.
const option = (value) => (value === null || value === undefined ? [] : [value]);

export function hashedRequest(request) {
  const chat = request.prompt.chat;
  const s = request.sampling;
  return {
    model: request.model,
    promptKind: 0,
    messages: chat.messages.map((m) => ({
      role: m.role, content: m.content, name: option(m.name), toolCalls: option(m.tool_calls), toolCallId: option(m.tool_call_id),
    })),
    tools: option(chat.tools),
    toolChoice: chat.tool_choice,
    parallelToolCalls: chat.parallel_tool_calls ? 1 : 0,
    text: "",
    tokens: [],
    maxTokens: request.max_tokens,
    stop: request.stop,
    sampling: {
      temperatureMilli: s.temperature_milli, topK: s.top_k, topPPpm: s.top_p_ppm, minPPpm: s.min_p_ppm,
      repetitionPenaltyMilli: s.repetition_penalty_milli, frequencyPenaltyMilli: s.frequency_penalty_milli,
      presencePenaltyMilli: s.presence_penalty_milli, logitBias: [], seed: s.seed,
    },
    constraintKind: 0,
    constraint: "",
    logprobs: [],
    nowUnixS: request.now_unix_s,
  };
}

export function hashedOutput(output) {
  return {
    text: output.text, toolCalls: option(output.tool_calls), finishReason: { stop: 0, length: 1, tool_calls: 2 }[output.finish_reason],
    tokens: output.tokens, promptTokens: output.prompt_tokens, completionTokens: output.completion_tokens, logprobs: [],
  };
}

const camel = (name) => name.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase());
const camelled = (value) => Object.fromEntries(Object.entries(value).map(([name, field]) => [camel(name), field]));

export const hashedReceipt = (receipt) => ({ ...camelled(receipt), level: 0 });
export const hashedAudit = (audit) => ({ ...camelled(audit), verdict: { agrees: 0, differs: 1, unable: 2 }[audit.verdict] });
export const hashedMembers = (members) => ({
  serial: members.serial, issuedAtS: members.issued_at_s, expiresAtS: members.expires_at_s,
  members: members.members.map((member) => ({ ...camelled(member), models: member.models.map(camelled) })),
});

export const commitment = (kind, salt, name, value) => keccak(keccak(`assay/${kind}`, unhex(salt)), structHash(name, value));

export function be8(number) {
  return word(number).slice(24);
}

/** Chunks of an answer, chained and signed. */
export function chain(worker, domain, nonce, request, pieces) {
  let link = keccak("assay/chain", request, unhex(nonce));
  const chunks = pieces.map(({ text, tokens }, index) => {
    const chunk = { index, text, tokens, logprobs: [] };
    link = keccak(link, structHash("Chunk", chunk));
    const statement = { nonce, index, link: hex(link) };
    return { chunk, link: hex(link), signature: worker.sign(digest(domain, "ChunkLink", statement)) };
  });
  return { chunks, link: hex(link) };
}
