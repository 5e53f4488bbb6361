// Calls to the gateway that serves this page.

import { PROOF_BYTES_MAX } from "./answer";
import type { Level } from "./conversation";
import type { Bundle, Member, Model, Roster, Standing, Suspension, WireMessage } from "./wire";

/** What went wrong, in one sentence that says what to do. */
export class Failure extends Error {
  readonly status: number;
  readonly requestId: string | null;

  constructor(message: string, status = 0, requestId: string | null = null) {
    super(message);
    this.name = "Failure";
    this.status = status;
    this.requestId = requestId;
  }
}

function sentence(text: string): string {
  const trimmed = text.trim().replace(/\s+/g, " ");
  return /[.!?]$/.test(trimmed) ? trimmed : `${trimmed}.`;
}

/** Turns an error response into one sentence. */
export function explain(status: number, body: string, retryAfter: string | null): Failure {
  let message = "";
  let requestId: string | null = null;
  try {
    const error = (JSON.parse(body) as { error?: { message?: unknown; request_id?: unknown } | string }).error;
    if (typeof error === "string") message = error;
    else if (typeof error?.message === "string") message = error.message;
    if (typeof error === "object" && typeof error.request_id === "string") requestId = error.request_id;
  } catch {
    // Not the gateway's format: the status has to do.
  }
  const wait = retryAfter && /^\d+$/.test(retryAfter) ? ` Try again in ${retryAfter} s.` : "";
  if (status === 401) message = "The gateway wants an API key: enter yours in the settings.";
  else if (status === 429) message = sentence(message || "The gateway is busy or you reached its rate limit") + (wait || " Try again shortly.");
  else if (message !== "") message = sentence(message) + (status >= 500 ? wait : "");
  else if (status >= 500) message = `The gateway failed (HTTP ${status}).${wait || " Try again."}`;
  else message = `The gateway refused the request (HTTP ${status}).`;
  return new Failure(message, status, requestId);
}

/** The gateway, with the key that it wants. */
export class Gateway {
  /** Empty for none. */
  key = "";

  async #fetch(path: string, init: RequestInit = {}): Promise<Response> {
    const headers = new Headers(init.headers);
    if (this.key !== "") headers.set("authorization", `Bearer ${this.key}`);
    let response: Response;
    try {
      response = await fetch(path, { ...init, headers, cache: "no-store" });
    } catch (error) {
      if (error instanceof DOMException && error.name === "AbortError") throw error;
      throw new Failure("The gateway cannot be reached: check that it is running and try again.");
    }
    if (!response.ok) {
      throw explain(response.status, await response.text().catch(() => ""), response.headers.get("retry-after"));
    }
    return response;
  }

  async #json(path: string, init?: RequestInit): Promise<unknown> {
    const response = await this.#fetch(path, init);
    return response.json();
  }

  /** Asks for an answer as a stream. */
  async chat(
    ask: { model: string; messages: WireMessage[]; temperature: number; seed: number; maxTokens: number; level: Level },
    signal: AbortSignal,
  ): Promise<Response> {
    const assay =
      ask.level === "sampled" ? { level: "signed", moment: "sampled" } : { level: "replayed", moment: ask.level };
    return this.#fetch("/v1/chat/completions", {
      method: "POST",
      signal,
      headers: { "content-type": "application/json", accept: "text/event-stream" },
      body: JSON.stringify({
        model: ask.model,
        messages: ask.messages,
        temperature: ask.temperature,
        seed: ask.seed,
        max_tokens: ask.maxTokens,
        stream: true,
        stream_options: { include_usage: true },
        assay,
      }),
    });
  }

  /** The bundle of an answer with its audits so far, and its size; `null` when there is none (yet). */
  async bundle(requestId: string): Promise<{ bundle: Bundle; text: string } | null> {
    try {
      const response = await this.#fetch(`/assay/receipts/${encodeURIComponent(requestId)}`);
      const text = await response.text();
      return { bundle: JSON.parse(text) as Bundle, text };
    } catch (error) {
      if (error instanceof Failure && error.status === 404) return null;
      throw error;
    }
  }

  /** Has an answer replayed now. */
  async audit(requestId: string): Promise<void> {
    await this.#fetch(`/assay/audit/${encodeURIComponent(requestId)}`, { method: "POST" });
  }

  /** Has an answer proved, unless it is, and says with which key it is checked and how many bytes the proof has. */
  async prove(requestId: string): Promise<{ key: string; bytes: number }> {
    const path = `/assay/proofs/${encodeURIComponent(requestId)}`;
    const headers = { "content-type": "application/json" };
    const { proof } = (await this.#json(path, { method: "POST", headers })) as { proof: { key: string; bytes: number } };
    return proof;
  }

  /** The proof of an answer; `progress` hears the bytes so far. */
  async proof(requestId: string, progress: (bytes: number) => void): Promise<ArrayBuffer> {
    const response = await this.#fetch(`/assay/receipts/${encodeURIComponent(requestId)}/proof`);
    const pieces: Uint8Array<ArrayBuffer>[] = [];
    let bytes = 0;
    const reader = response.body?.getReader();
    // Not every browser iterates over a body.
    for (let read = await reader?.read(); read?.value; read = await reader?.read()) {
      const piece = read.value;
      bytes += piece.length;
      if (bytes > PROOF_BYTES_MAX) throw new Failure("The proof is too large for a page: check it with assay verify --proof.");
      pieces.push(piece as Uint8Array<ArrayBuffer>);
      progress(bytes);
    }
    return new Blob(pieces).arrayBuffer();
  }

  /** The key with this id that the gateway checks proofs with. */
  async proofKey(key: string): Promise<ArrayBuffer> {
    return (await this.#fetch(`/assay/proof-keys/${encodeURIComponent(key)}`)).arrayBuffer();
  }

  /** The signed list of workers. */
  async roster(): Promise<Roster> {
    return readRoster(await this.#json("/assay/members"));
  }

  /** The workers with their records. */
  async workers(): Promise<Standing[]> {
    return readWorkers(await this.#json("/assay/workers"));
  }

  /** The incident file of a request. */
  async incident(requestId: string): Promise<string> {
    const response = await this.#fetch(`/assay/incident/${encodeURIComponent(requestId)}`);
    return response.text();
  }
}

/** Reads `/assay/members`. */
export function readRoster(value: unknown): Roster {
  const { domain, members, signer } = value as Partial<Roster>;
  if (!domain || !Array.isArray(members?.statement?.members)) {
    throw new Failure("The gateway sent no readable list of workers; is it of the same version as this page?");
  }
  return { domain, members, signer: signer ?? "" };
}

/** Reads `/assay/workers`: an array, or an object that holds one as `workers`. */
export function readWorkers(value: unknown): Standing[] {
  const rows = Array.isArray(value) ? value : (value as { workers?: unknown }).workers;
  if (!Array.isArray(rows)) throw new Failure("The gateway sent no readable list of workers' records.");
  return rows.map((raw): Standing => {
    const row = raw as Record<string, unknown>;
    const inner = (key: string) =>
      typeof row[key] === "object" && row[key] !== null ? (row[key] as Record<string, unknown>) : {};
    const all = { ...inner("member"), ...row, ...inner("record"), ...inner("standing") };
    const number = (key: string) => (typeof all[key] === "number" ? all[key] : 0);
    const maybe = (key: string) => (typeof all[key] === "number" ? all[key] : null);
    const text = (key: string) => (typeof all[key] === "string" || typeof all[key] === "number" ? String(all[key]) : "");
    const models = Array.isArray(all.models) ? all.models : [];
    return {
      operator: text("operator") || "unknown operator",
      worker: text("worker"),
      served: number("served"),
      failures: number("failures"),
      refusals: number("refusals"),
      agreed: number("audits_agreed"),
      differed: number("audits_differed"),
      made: number("audits_made"),
      disputed: number("audits_disputed"),
      firstTokenMs: maybe("first_token_ms"),
      tokenMs: maybe("token_ms"),
      earned: text("earned") || "0",
      withheld: text("withheld") || "0",
      suspended: (typeof all.suspended === "object" ? (all.suspended as Suspension | null) : null) ?? null,
      accused: typeof all.accused === "object" && all.accused !== null,
      inFlight: number("in_flight"),
      resting: all.resting === true,
      lastFault: text("last_fault") || null,
      models: models.map((model: unknown) => (typeof model === "string" ? model : String((model as { name?: unknown }).name ?? ""))),
    };
  });
}

/** The models that the workers of a list offer, by name; the lowest prices of each. */
export function modelsOf(members: Member[]): Model[] {
  const models = new Map<string, Model>();
  // Those from 2^31 on are the arithmetic of integer graphs, which write no text.
  for (const offer of members.flatMap((member) => member.models).filter(({ arithmetic }) => arithmetic < 2 ** 31)) {
    const known = models.get(offer.name);
    if (!known) {
      models.set(offer.name, {
        name: offer.name,
        id: offer.model,
        workers: 1,
        replayable: offer.arithmetic > 0,
        promptPrice: offer.prompt_price,
        completionPrice: offer.completion_price,
        context: offer.context,
      });
    } else if (known.id === offer.model) {
      known.workers += 1;
      known.replayable ||= offer.arithmetic > 0;
      known.context = Math.max(known.context, offer.context);
      if (BigInt(offer.completion_price) < BigInt(known.completionPrice)) {
        known.promptPrice = offer.prompt_price;
        known.completionPrice = offer.completion_price;
      }
    }
  }
  // What can be replayed comes first, else the order of the list: the first is what a new browser asks, and an embedder that
  // sorts before it by name would have nothing to say.
  return [...models.values()].sort((a, b) => Number(b.replayable) - Number(a.replayable));
}
