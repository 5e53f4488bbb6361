// Server-sent events, as far as chat streams use them: `data` lines, events separated by blank lines.

/** Cuts text that arrives in pieces of any size into the `data` of complete events. */
export class EventParser {
  #line = "";
  #data: string[] = [];
  #sawReturn = false;

  /** Takes the next piece and returns the data of the events that it completes. */
  push(piece: string): string[] {
    const events: string[] = [];
    for (const char of piece) {
      // CR, LF and CRLF all end a line; the LF of a CRLF may come with the next piece.
      const ends = char === "\r" || (char === "\n" && !this.#sawReturn);
      if (ends) this.#endLine(events);
      else if (char !== "\n") this.#line += char;
      this.#sawReturn = char === "\r";
    }
    return events;
  }

  #endLine(events: string[]): void {
    const line = this.#line;
    this.#line = "";
    if (line === "") {
      if (this.#data.length > 0) events.push(this.#data.join("\n"));
      this.#data = [];
    } else if (line.startsWith("data:")) {
      this.#data.push(line.slice(line.startsWith("data: ") ? 6 : 5));
    }
    // Comments, ids, names and retry advice mean nothing to a chat stream.
  }
}

/** What one event of a chat stream says. */
export type StreamEvent =
  | { kind: "delta"; id: string | null; text: string; finish: string | null; assay: AssayNote | null }
  | { kind: "error"; message: string; id: string | null }
  | { kind: "done" };

/** The gateway's own note in the last event of a stream. */
export interface AssayNote {
  request_id?: string;
  nonce?: string;
  worker?: string;
  state?: string;
  level?: string;
}

/** Reads the data of one event. Throws when it is no chat event. */
export function readEvent(data: string): StreamEvent {
  if (data.trim() === "[DONE]") return { kind: "done" };
  const value = JSON.parse(data) as {
    id?: string;
    choices?: { delta?: { content?: string | null }; finish_reason?: string | null }[];
    assay?: AssayNote | null;
    error?: { message?: string; request_id?: string } | string;
  };
  if (value.error) {
    const error = typeof value.error === "string" ? { message: value.error } : value.error;
    return { kind: "error", message: error.message ?? "The answer broke off", id: error.request_id ?? null };
  }
  const choice = value.choices?.[0];
  return {
    kind: "delta",
    id: value.id ?? null,
    text: choice?.delta?.content ?? "",
    finish: choice?.finish_reason ?? null,
    assay: value.assay ?? null,
  };
}

/** Yields the events of a response until `[DONE]` or its end. */
export async function* readStream(body: ReadableStream<Uint8Array>): AsyncGenerator<StreamEvent> {
  const parser = new EventParser();
  const decoder = new TextDecoder();
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      const text = done ? decoder.decode() : decoder.decode(value, { stream: true });
      for (const data of parser.push(text)) {
        const event = readEvent(data);
        yield event;
        if (event.kind === "done") return;
      }
      if (done) return;
    }
  } finally {
    reader.releaseLock();
  }
}
