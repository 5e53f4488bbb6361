import { describe, expect, it } from "vitest";

import { EventParser, readEvent, readStream } from "../../src/sse";

const STREAM = 'data: {"a":1}\n\n: a comment\r\n\r\ndata: one\r\ndata: two\r\n\r\nevent: x\ndata:three\r\rdata: [DONE]\n\n';

describe("EventParser", () => {
  it("finds the same events however the stream is cut", () => {
    const whole = new EventParser().push(STREAM);
    expect(whole).toEqual(['{"a":1}', "one\ntwo", "three", "[DONE]"]);
    for (let step = 1; step <= 7; step += 1) {
      const parser = new EventParser();
      const events: string[] = [];
      for (let at = 0; at < STREAM.length; at += step) events.push(...parser.push(STREAM.slice(at, at + step)));
      expect(events).toEqual(whole);
    }
  });

  it("keeps an event that has not ended to itself", () => {
    expect(new EventParser().push("data: half\n")).toEqual([]);
  });
});

describe("readEvent", () => {
  it("reads deltas, notes, errors and the end", () => {
    expect(readEvent("[DONE]")).toEqual({ kind: "done" });
    expect(readEvent('{"id":"chatcmpl-1","choices":[{"delta":{"content":"hé"},"finish_reason":null}]}')).toEqual({
      kind: "delta", id: "chatcmpl-1", text: "hé", finish: null, assay: null,
    });
    expect(readEvent('{"choices":[],"assay":{"request_id":"r"}}')).toMatchObject({ text: "", assay: { request_id: "r" } });
    expect(readEvent('{"error":{"message":"no","request_id":"r"}}')).toEqual({ kind: "error", message: "no", id: "r" });
    expect(() => readEvent("{")).toThrow();
  });
});

describe("readStream", () => {
  it("joins characters that are cut between two pieces", async () => {
    const bytes = new TextEncoder().encode('data: {"choices":[{"delta":{"content":"grün 🌲"}}]}\n\ndata: [DONE]\n\n');
    const body = new ReadableStream<Uint8Array>({
      start(controller) {
        for (const byte of bytes) controller.enqueue(Uint8Array.of(byte));
        controller.close();
      },
    });
    const events = [];
    for await (const event of readStream(body)) events.push(event);
    expect(events).toMatchObject([{ kind: "delta", text: "grün 🌲" }, { kind: "done" }]);
  });
});
