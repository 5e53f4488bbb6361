import { describe, expect, it } from "vitest";

import {
  type Conversation,
  type Turn,
  bounded,
  characters,
  cut,
  exportJson,
  messagesBefore,
  newConversation,
  readConversation,
  titleOf,
} from "../../src/conversation";
import { DEFAULTS, readSettings } from "../../src/storage";

const turn = (role: Turn["role"], text: string, more: Partial<Turn> = {}): Turn => ({ id: text, role, text, atMs: 1, ...more });

function conversation(id: string, updatedMs: number, text = "x"): Conversation {
  return { ...newConversation(updatedMs), id, turns: [turn("user", text)] };
}

describe("messagesBefore", () => {
  const turns = [turn("user", "a"), turn("assistant", ""), turn("user", "b"), turn("assistant", "c"), turn("user", "d")];
  it("holds the system prompt and the turns before that have text", () => {
    expect(messagesBefore(turns, 3, " ")).toEqual([{ role: "user", content: "a" }, { role: "user", content: "b" }]);
    expect(messagesBefore(turns, 5, "be brief").map((message) => message.content)).toEqual(["be brief", "a", "b", "c", "d"]);
  });
});

describe("bounded", () => {
  it("drops the oldest beyond the count, never the one on screen", () => {
    const all = [conversation("old", 1), conversation("mid", 2), conversation("new", 3)];
    expect(bounded(all, null, 2).dropped.map((each) => each.id)).toEqual(["old"]);
    const { kept, dropped } = bounded(all, "old", 2);
    expect(kept.map((each) => each.id)).toEqual(["new", "old"]);
    expect(dropped.map((each) => each.id)).toEqual(["mid"]);
  });
  it("drops beyond the size", () => {
    const all = [conversation("big", 1, "x".repeat(5_000)), conversation("small", 2)];
    expect(bounded(all, null, 9, characters(all[1] as Conversation) + 10).kept.map((each) => each.id)).toEqual(["small"]);
    expect(bounded(all, "big", 9, 10).kept.map((each) => each.id)).toEqual(["big"]);
  });
});

describe("titles and cuts", () => {
  it("takes the first line, shortened", () => {
    expect(titleOf("  Hello\nworld")).toBe("Hello");
    expect(titleOf("x".repeat(90))).toHaveLength(48);
    expect(titleOf(" \n ")).toBe("New conversation");
  });
  it("keeps what came before", () => {
    const turns = [turn("user", "a"), turn("assistant", "b")];
    expect(cut(turns, 1)).toEqual([turns[0]]);
    expect(cut(turns, -1)).toEqual([]);
  });
});

describe("readConversation", () => {
  it("reads what export writes, and settles an answer that was running", () => {
    const one = conversation("one", 5);
    one.turns.push(turn("assistant", "half", { state: "streaming" }));
    const file = JSON.parse(exportJson(one)) as { conversation: unknown };
    const read = readConversation(file.conversation);
    expect(read?.turns[1]?.state).toBe("stopped");
    expect(read?.title).toBe(one.title);
  });
  it("refuses what is none", () => {
    const good = conversation("one", 5);
    const bad: unknown[] = [
      null, 1, [], {}, { ...good, turns: {} }, { ...good, turns: [null] }, { ...good, id: 4 }, { ...good, updatedMs: "now" },
      { ...good, turns: [{ id: "a", role: "system", text: "" }] },
    ];
    for (const value of bad) expect(readConversation(value)).toBeNull();
  });
});

describe("readSettings", () => {
  it("falls back to the defaults for whatever does not fit", () => {
    expect(readSettings(null)).toEqual(DEFAULTS);
    expect(readSettings("not json")).toEqual(DEFAULTS);
    expect(readSettings("null")).toEqual(DEFAULTS);
    expect(readSettings('{"temperature":9,"maxTokens":0,"seed":"1e5","level":"root","system":4}')).toEqual(DEFAULTS);
  });
  it("keeps what fits", () => {
    const settings = { ...DEFAULTS, temperature: 0, seed: "42", maxTokens: 9, level: "before_end" as const, system: "s" };
    expect(readSettings(JSON.stringify(settings))).toEqual(settings);
  });
});
