// Conversations: pure operations and the bounds of what is kept.

import type { WireMessage } from "./wire";

/** When and how an answer is checked. */
export type Level = "sampled" | "before_end" | "before_first_token";

/** What an answer's evidence supports, as shown beside it. */
export type AnswerState =
  | "streaming"
  | "checking"
  | "signed"
  | "replayed"
  | "mismatch"
  | "failed"
  | "stopped"
  | "error";

/** The result of checking an answer, small enough to keep with the conversation. */
export interface Verdict {
  state: AnswerState;
  /** One sentence: what was found. */
  summary: string;
  operator: string | null;
  worker: string | null;
  /** Operators whose replay agreed, or who found the difference. */
  auditors: string[];
  auditedAtMs: number | null;
  /** Where it differs, with `field` as in the audit; for `mismatch`. */
  difference: { field: string; position: number; expected: string; claimed: string; at: number | null } | null;
  price: string | null;
  checkedAtMs: number;
}

/** What the page asked for. The messages are derived from the turns before, so that they are kept once. */
export interface Asked {
  model: string;
  modelId: string | null;
  system: string;
  temperature: number;
  seed: number;
  maxTokens: number;
  level: Level;
}

/** A question or an answer. */
export interface Turn {
  id: string;
  role: "user" | "assistant";
  text: string;
  atMs: number;
  asked?: Asked;
  requestId?: string;
  /** The request's nonce, as the gateway named it with the answer. */
  nonce?: string;
  finish?: string | null;
  state?: AnswerState;
  error?: string;
  verdict?: Verdict;
}

/** A conversation. */
export interface Conversation {
  id: string;
  title: string;
  /** Whether a person gave the title. */
  named: boolean;
  createdMs: number;
  updatedMs: number;
  turns: Turn[];
}

/** Most conversations kept; the oldest go first. */
export const CONVERSATIONS_MAX = 200;
/** Most characters kept in all conversations together; browsers give a site at least tens of megabytes. */
export const CHARACTERS_MAX = 8_000_000;
/** Longest title. */
export const TITLE_MAX = 80;

/** A random id. */
export function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** An empty conversation. */
export function newConversation(nowMs: number): Conversation {
  return { id: newId(), title: "New conversation", named: false, createdMs: nowMs, updatedMs: nowMs, turns: [] };
}

/** A title from the first question. */
export function titleOf(text: string): string {
  const line = text.trim().split("\n")[0]?.trim() ?? "";
  if (line === "") return "New conversation";
  return line.length <= 48 ? line : `${line.slice(0, 47).trimEnd()}…`;
}

/** Messages that ask for the answer at `index`: the system prompt and all turns before it that hold text. */
export function messagesBefore(turns: Turn[], index: number, system: string): WireMessage[] {
  const messages: WireMessage[] = system.trim() === "" ? [] : [{ role: "system", content: system }];
  for (const turn of turns.slice(0, index)) {
    if (turn.text !== "") messages.push({ role: turn.role, content: turn.text });
  }
  return messages;
}

/** Characters that a conversation takes. */
export function characters(conversation: Conversation): number {
  return conversation.turns.reduce((sum, turn) => sum + turn.text.length + 600, conversation.title.length + 200);
}

/** Splits conversations into those within the bounds, newest first, and those that must go. `keep` always stays. */
export function bounded(
  conversations: Conversation[],
  keep: string | null,
  countMax = CONVERSATIONS_MAX,
  charactersMax = CHARACTERS_MAX,
): { kept: Conversation[]; dropped: Conversation[] } {
  const order = [...conversations].sort(
    (a, b) => Number(b.id === keep) - Number(a.id === keep) || b.updatedMs - a.updatedMs,
  );
  const kept: Conversation[] = [];
  const dropped: Conversation[] = [];
  let total = 0;
  for (const conversation of order) {
    total += characters(conversation);
    const fits = kept.length < countMax && total <= charactersMax;
    (fits || conversation.id === keep ? kept : dropped).push(conversation);
  }
  kept.sort((a, b) => b.updatedMs - a.updatedMs);
  return { kept, dropped };
}

/** What remains when the turn at `index` is asked again: everything before it. */
export function cut(turns: Turn[], index: number): Turn[] {
  return turns.slice(0, Math.max(0, index));
}

/** An answer that was still running when the page was closed cannot go on. */
export function settle(conversation: Conversation): Conversation {
  const turns = conversation.turns.map((turn): Turn => {
    if (turn.state === "streaming") return { ...turn, state: "stopped" };
    return turn;
  });
  return { ...conversation, turns };
}

/** Reads what storage or a file holds; `null` when it is no conversation. */
export function readConversation(value: unknown): Conversation | null {
  if (typeof value !== "object" || value === null) return null;
  const { id, title, named, createdMs, updatedMs, turns } = value as Record<string, unknown>;
  if (typeof id !== "string" || typeof title !== "string" || !Array.isArray(turns)) return null;
  if (typeof createdMs !== "number" || typeof updatedMs !== "number") return null;
  const sound = turns.every((turn: unknown) => {
    if (typeof turn !== "object" || turn === null) return false;
    const { id, role, text } = turn as Record<string, unknown>;
    return typeof id === "string" && typeof text === "string" && (role === "user" || role === "assistant");
  });
  if (!sound) return null;
  return settle({ id, title, named: named === true, createdMs, updatedMs, turns: turns as Turn[] });
}

/** The file that "export" writes. */
export function exportJson(conversation: Conversation): string {
  return `${JSON.stringify({ format: "assay-conversation", version: 1, conversation }, null, 2)}\n`;
}
