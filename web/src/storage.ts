// Where conversations and settings are kept: in this browser and nowhere else.

import { type Conversation, readConversation } from "./conversation";

const DATABASE = "assay";
const TABLE = "conversations";

function request<T>(operation: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    operation.onsuccess = () => resolve(operation.result);
    operation.onerror = () => reject(operation.error ?? new Error("storage failed"));
  });
}

/** Conversations in IndexedDB, or in memory where the browser offers none (private windows of some browsers). */
export class Storage {
  readonly #database: IDBDatabase | null;

  private constructor(database: IDBDatabase | null) {
    this.#database = database;
  }

  /** Opens the store. Never fails: without a database nothing outlives the page. */
  static async open(): Promise<Storage> {
    try {
      const opening = indexedDB.open(DATABASE, 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore(TABLE, { keyPath: "id" });
      return new Storage(await request(opening));
    } catch {
      return new Storage(null);
    }
  }

  /** Whether conversations outlive the page. */
  get lasting(): boolean {
    return this.#database !== null;
  }

  #table(mode: IDBTransactionMode): IDBObjectStore | null {
    return this.#database?.transaction(TABLE, mode).objectStore(TABLE) ?? null;
  }

  /** Everything that is kept. */
  async all(): Promise<Conversation[]> {
    const table = this.#table("readonly");
    if (!table) return [];
    const rows: unknown[] = await request(table.getAll());
    return rows.map(readConversation).filter((conversation) => conversation !== null);
  }

  /** Keeps a conversation in its present form. */
  async put(conversation: Conversation): Promise<void> {
    const table = this.#table("readwrite");
    if (table) await request(table.put(structuredClone(conversation)));
  }

  /** Forgets a conversation. */
  async remove(id: string): Promise<void> {
    const table = this.#table("readwrite");
    if (table) await request(table.delete(id));
  }
}

/** What a person can set. The API key is not part of it: see `apiKey`. */
export interface Settings {
  model: string;
  level: "sampled" | "before_end" | "before_first_token";
  temperature: number;
  /** Empty for a fresh random seed with each question. */
  seed: string;
  maxTokens: number;
  system: string;
}

/** Settings of a new browser. */
export const DEFAULTS: Settings = {
  model: "",
  level: "sampled",
  temperature: 0.7,
  seed: "",
  maxTokens: 512,
  system: "",
};

/** Reads settings that may be old, damaged or written by hand: what does not fit becomes the default. */
export function readSettings(text: string | null): Settings {
  let value: Partial<Record<keyof Settings, unknown>> = {};
  try {
    value = (JSON.parse(text ?? "{}") ?? {}) as typeof value;
  } catch {
    // Not JSON: defaults.
  }
  const level = value.level;
  const temperature = Number(value.temperature);
  const maxTokens = Number(value.maxTokens);
  return {
    model: typeof value.model === "string" ? value.model : DEFAULTS.model,
    level: level === "before_end" || level === "before_first_token" ? level : "sampled",
    temperature: value.temperature !== undefined && temperature >= 0 && temperature <= 2 ? temperature : DEFAULTS.temperature,
    seed: typeof value.seed === "string" && /^\d{0,15}$/.test(value.seed) ? value.seed : DEFAULTS.seed,
    maxTokens: Number.isInteger(maxTokens) && maxTokens >= 1 && maxTokens <= 1_048_576 ? maxTokens : DEFAULTS.maxTokens,
    system: typeof value.system === "string" ? value.system.slice(0, 100_000) : DEFAULTS.system,
  };
}

/** A value in local or session storage; reads `null` and writes nothing where storage is blocked. */
export function stored(area: "local" | "session", key: string): { get(): string | null; set(value: string | null): void } {
  const name = `assay.${key}`;
  const open = () => (area === "local" ? localStorage : sessionStorage);
  return {
    get() {
      try {
        return open().getItem(name);
      } catch {
        return null;
      }
    },
    set(value) {
      try {
        if (value === null) open().removeItem(name);
        else open().setItem(name, value);
      } catch {
        // Blocked or full: the value lives as long as the page.
      }
    },
  };
}
