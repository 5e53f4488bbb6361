import { readFileSync } from "node:fs";
import { afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";

import { modelsOf, readRoster, readWorkers, explain } from "../../src/api";
import type { Asked } from "../../src/conversation";
import { duration, opg, percent, short } from "../../src/format";
import { costOf, firstDifference, isOfRequest, judge, pageChecks, pin, rosterChecks, textPosition } from "../../src/judge";
import { type Verifier, verifierFromBytes } from "../../src/verify";
import type { Bundle, Roster } from "../../src/wire";
// @ts-expect-error plain JavaScript
import { start } from "../mock_gateway.mjs";

let gateway: { url: string; close(): Promise<void> };
let verify: Verifier;
let roster: Roster;

beforeAll(async () => {
  verify = await verifierFromBytes(readFileSync(new URL("../../src/assay_verify.wasm", import.meta.url)));
});
// A fresh one each time: it remembers whom it caught.
beforeEach(async () => {
  gateway = (await start({ tokenMs: 0 })) as typeof gateway;
  roster = readRoster(await (await fetch(`${gateway.url}/assay/members`)).json());
});
afterEach(() => gateway.close());

async function answer(question: string, level = "signed") {
  const offer = modelsOf(roster.members.statement.members)[0];
  const asked: Asked = { model: offer?.name ?? "", modelId: offer?.id ?? null, system: "", temperature: 0.7, seed: 5, maxTokens: 512, level: "sampled" };
  const messages = [{ role: "user", content: question }];
  const response = await fetch(`${gateway.url}/v1/chat/completions`, {
    method: "POST",
    body: JSON.stringify({ model: asked.model, messages, temperature: 0.7, seed: 5, max_tokens: 512, assay: { level, moment: "sampled" } }),
  });
  const requestId = /chatcmpl-[0-9a-f]+/.exec(await response.text())?.[0] ?? "";
  const bundle = (await (await fetch(`${gateway.url}/assay/receipts/${requestId}`)).json()) as Bundle;
  return { bundle, seen: { requestId, asked, messages, shown: bundle.output.text, finish: "stop" } };
}

type Case = Awaited<ReturnType<typeof answer>>;

function verdict({ bundle, seen }: Case) {
  const members = roster.members.statement.members;
  const report = verify.check(bundle, { domain: roster.domain, workers: members, model: seen.asked.modelId });
  return judge(bundle, report, pageChecks(bundle, seen), members, seen.shown, 1);
}

describe("the verdict, from real signatures", () => {
  it("is signed for an honest answer", async () => {
    expect(verdict(await answer("hi"))).toMatchObject({ state: "signed", operator: "north", difference: null });
  });
  it("is replayed when another operator agrees", async () => {
    expect(verdict(await answer("hi", "replayed"))).toMatchObject({ state: "replayed", auditors: ["harbour"] });
  });
  it("is a mismatch when a replay differs, with the place", async () => {
    const found = verdict(await answer("mismatch", "replayed"));
    expect(found).toMatchObject({ state: "mismatch", auditors: ["harbour"], difference: { field: "tokens", position: 9 } });
    expect(found.difference?.at).toBe("The capital of Australia is Sydney, a city on ".length);
  });
  it("is a mismatch when something else was shown", async () => {
    const one = await answer("hi");
    one.seen.shown = one.seen.shown.replace("digital", "digitel");
    expect(verdict(one)).toMatchObject({ state: "mismatch", difference: { field: "shown text", position: 7, at: 7 } });
  });
});

describe("a request that was steered", () => {
  const additions: Record<string, (request: Bundle["request"]) => void> = {
    "a constraint": (request) => void (request.constraint = { regex: "Buy\\." }),
    tools: ({ prompt }) => void (prompt.chat && (prompt.chat.tools = "[]")),
    "a stop string": ({ stop }) => void stop.push("."),
    "a logit bias": ({ sampling }) => void sampling.logit_bias.push([1, 100_000]),
    "a penalty": ({ sampling }) => void (sampling.presence_penalty_milli = 5),
    "top_k": ({ sampling }) => void (sampling.top_k = 1),
    "top_p": ({ sampling }) => void (sampling.top_p_ppm = 1),
    "min_p": ({ sampling }) => void (sampling.min_p_ppm = 1),
    "log-probabilities": (request) => void (request.logprobs = 1),
  };
  for (const [what, add] of Object.entries(additions)) {
    it(`is not what this page sent: ${what}`, async () => {
      const { bundle, seen } = await answer("hi");
      const outcome = () => pageChecks(bundle, seen).find(({ name }) => name === "page_nothing_added")?.outcome;
      expect(outcome()).toBe("passed");
      add(bundle.request);
      expect(outcome()).toBe("failed");
    });
  }
});

describe("one thing altered, and the verdict is failed", () => {
  const alterations: Record<string, (one: Case) => void> = {
    "the price": ({ bundle }) => void (bundle.receipt.statement.price = "1"),
    "a token count": ({ bundle }) => void (bundle.receipt.statement.completion_tokens -= 1),
    "the signed answer": ({ bundle, seen }) => {
      bundle.output.text += "!";
      seen.shown += "!";
    },
    "a chunk": ({ bundle }) => void (bundle.chunks[1] as Bundle["chunks"][0]).chunk.tokens.push(1),
    "the signature of a chunk": ({ bundle }) => void ((bundle.chunks[0] as Bundle["chunks"][0]).signature = bundle.receipt.signature),
    "the model": ({ seen }) => void (seen.asked.modelId = `0x${"00".repeat(32)}`),
    "what was asked": ({ seen }) => void (seen.messages = [{ role: "user", content: "something else" }]),
    "a message more": ({ seen }) => void seen.messages.push({ role: "user", content: "more" }),
    "the seed": ({ seen }) => void (seen.asked.seed = 6),
    "the temperature": ({ seen }) => void (seen.asked.temperature = 0.8),
    "the token limit": ({ seen }) => void (seen.asked.maxTokens = 1),
    "the request's id": ({ seen }) => void (seen.requestId = `chatcmpl-${"0".repeat(32)}`),
    "why it ended": ({ seen }) => void (seen.finish = "length"),
  };
  for (const [what, alter] of Object.entries(alterations)) {
    it(what, async () => {
      const one = await answer("hi");
      alter(one);
      expect(verdict(one).state).toBe("failed");
    });
  }
  it("an audit of the worker's own operator counts for nothing", async () => {
    const one = await answer("hi", "replayed");
    const auditor = one.bundle.audits[0]?.statement.auditor;
    const members = structuredClone(roster.members.statement.members);
    for (const member of members) if (member.worker === auditor) member.operator = "north";
    const report = verify.check(one.bundle, { domain: roster.domain, workers: members });
    const found = judge(one.bundle, report, [], members, one.seen.shown, 1);
    expect([found.state, found.auditors]).toEqual(["signed", []]);
  });
});

describe("the list of workers", () => {
  it("must be current and by the remembered signer", () => {
    const now = roster.members.statement.issued_at_s * 1_000 + 1;
    const signer = (list: Roster) => verify.signer(list.domain, list.members);
    const outcome = (pinned: string | null, at: number) => rosterChecks(roster, signer(roster), pinned, at).map((check) => check.outcome);
    expect(outcome(null, now)).toEqual(["passed", "passed", "passed"]);
    expect(outcome(pin(roster), now)).toEqual(["passed", "passed", "passed"]);
    expect(outcome("other", now)).toEqual(["passed", "passed", "failed"]);
    expect(outcome(pin(roster), roster.members.statement.expires_at_s * 1_000)).toEqual(["passed", "failed", "passed"]);
  });
  it("checks who signed the list of workers", () => {
    const now = roster.members.statement.issued_at_s * 1_000 + 1;
    const altered = structuredClone(roster);
    const member = altered.members.statement.members[0];
    if (member) member.operator = "somebody else";
    const signer = verify.signer(altered.domain, altered.members);
    expect(signer).not.toBe(roster.signer);
    expect(rosterChecks(altered, signer, pin(roster), now)[0]).toMatchObject({ name: "list_signature", outcome: "failed" });
    const claimed = { ...altered, signer };
    expect(rosterChecks(claimed, signer, pin(roster), now).map((check) => check.outcome)).toEqual(["passed", "passed", "failed"]);
    expect(() => verify.signer(roster.domain, { statement: {}, signature: "0x" })).toThrow();
    expect(rosterChecks(roster, new Error("no list"), pin(roster), now)[0]?.outcome).toBe("failed");
  });
  it("gives the models, those that can be replayed first", () => {
    const models = modelsOf(roster.members.statement.members);
    expect(models.map(({ name, workers, replayable }) => [name, workers, replayable])).toEqual([
      ["smollm2-135m", 3, true],
      ["forwarded-large", 1, false],
    ]);
  });
});

describe("small parts", () => {
  it("finds differences", () => {
    expect([firstDifference("ab", "ab"), firstDifference("ab", "ac"), firstDifference("ab", "abc")]).toEqual([-1, 1, 2]);
  });
  it("ties a request to its nonce", () => {
    const half = "ab".repeat(16);
    expect(isOfRequest(`chatcmpl-${half}`, `0x${half}${"00".repeat(16)}`)).toBe(true);
    expect(isOfRequest("chatcmpl-", `0x${half}`)).toBe(false);
    expect(isOfRequest(`chatcmpl-${half}`, `0x00${half}`)).toBe(false);
  });
  it("finds bytes of a text that is not ASCII", async () => {
    const { bundle } = await answer("hi");
    bundle.output.text = "é€x";
    expect(textPosition(bundle, "text", 5)).toBe(2);
    expect(textPosition(bundle, "usage", 0)).toBeNull();
  });
  it("reads the cost off a bundle", async () => {
    const cost = costOf((await answer("hi", "replayed")).bundle, roster.members.statement.members);
    expect(cost).toMatchObject({ replayMs: 37, audits: [{ operator: "harbour", verdict: "agrees" }] });
    expect(cost.generationMs).toBeGreaterThan(0);
  });
  it("writes numbers for people", () => {
    expect(opg("0")).toBe("0 OPG");
    expect(opg("1500000000000000000")).toBe("1.5 OPG");
    expect(opg("1")).toBe("0.000000000000000001 OPG");
    expect(opg("x")).toBe("unknown");
    expect([duration(3.21), duration(999), duration(1_500), duration(61_000)]).toEqual(["3.2 ms", "999 ms", "1.50 s", "1 min 1 s"]);
    expect([percent(1, 40), percent(1, 2), percent(1, 0)]).toEqual(["2.5 %", "50 %", "unknown"]);
    expect(short("0x1234567890abcdef1234")).toBe("0x1234…1234");
  });
  it("explains errors in one sentence", () => {
    const openai = JSON.stringify({ error: { message: "All workers are busy", request_id: "chatcmpl-1" } });
    expect(explain(429, openai, "3").message).toBe("All workers are busy. Try again in 3 s.");
    expect(explain(429, openai, "3").requestId).toBe("chatcmpl-1");
    expect(explain(401, "", null).message).toMatch(/API key/);
    expect(explain(503, "<html>", null).message).toBe("The gateway failed (HTTP 503). Try again.");
    expect(explain(400, '{"error":{"message":"Bad seed"}}', null).message).toBe("Bad seed.");
  });
  it("reads workers' records in every arrangement", () => {
    const record = { served: 3, audits_agreed: 2, withheld: "5", suspended: null };
    const flat = readWorkers([{ operator: "o", worker: "0x1", ...record }]);
    const nested = readWorkers({ workers: [{ member: { operator: "o", worker: "0x1" }, record }] });
    expect(flat).toEqual(nested);
    expect(flat[0]).toMatchObject({ operator: "o", served: 3, agreed: 2, withheld: "5", suspended: null });
    expect(() => readWorkers({})).toThrow();
  });
});
