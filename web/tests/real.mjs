// Drives the page of a real network in Chromium: `assay up` with the real model, in a home of its own, on a free port.
//   ASSAY=path     the program; default: the debug build of this checkout
//   SHOTS=folder   takes screenshots; docs/images/chat.png is its chat.png
//   ONLY=part of a scene's name      CHROMIUM=/usr/bin/chromium
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { createServer } from "node:net";
import { copyFile, link, mkdir, mkdtemp, readFile, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { CONTROL, Browser, accessible, answers, ask, badge, composer, done, focused, tabTo } from "./page.mjs";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const TARGET = resolve(ROOT, process.env.CARGO_TARGET_DIR ?? "target");
const ASSAY = process.env.ASSAY ?? join(TARGET, "debug", "assay");
const WASM = createHash("sha256").update(await readFile(join(ROOT, "web/src/assay_verify.wasm"))).digest("hex");
/** Short answers: what is tested is the page, not the model. */
const SETTINGS = { model: "", level: "sampled", temperature: 0, seed: "7", maxTokens: 40, system: "" };
const run = promisify(execFile);

/** `assay up` in a home of its own; the model is pulled once, beside the other tests' files. */
class Network {
  static async start(...flags) {
    const shared = join(TARGET, "tmp", "home");
    await mkdir(shared, { recursive: true, mode: 0o700 });
    await run(ASSAY, ["--json", "model", "pull"], { env: { ...process.env, ASSAY_HOME: shared } });
    const network = new Network();
    network.home = await mkdtemp(join(tmpdir(), "assay-page-"));
    await mkdir(join(network.home, "models"), { mode: 0o700 });
    for (const name of await readdir(join(shared, "models"))) {
      const [from, to] = [join(shared, "models", name), join(network.home, "models", name)];
      await link(from, to).catch(() => copyFile(from, to));
    }
    const port = await new Promise((found, failed) => {
      const probe = createServer().on("error", failed);
      probe.listen(0, "127.0.0.1", () => {
        const { port } = probe.address();
        probe.close(() => found(port));
      });
    });
    network.process = spawn(ASSAY, ["--json", "up", "--port", String(port), ...flags], {
      env: { ...process.env, ASSAY_HOME: network.home },
      stdio: ["ignore", "pipe", "inherit"],
    });
    network.ended = new Promise((end) => network.process.once("exit", end));
    network.documents = documents(network.process.stdout);
    network.url = (await network.said()).url;
    return network;
  }

  /** The next thing that the program says. */
  async said() {
    const { value, done } = await this.documents.next();
    assert.ok(!done, "`assay up` ended early");
    return value;
  }

  async get(path) {
    const response = await fetch(`${this.url}${path}`);
    assert.ok(response.ok, `${path}: ${response.status}`);
    return response.json();
  }

  async stop() {
    this.process.kill("SIGTERM");
    await this.ended;
    await rm(this.home, { recursive: true, force: true });
  }
}

/** The JSON documents in a stream of text, each of which ends in a line that is a closing brace. */
async function* documents(stream) {
  let text = "";
  for await (const piece of stream.setEncoding("utf8")) {
    text += piece;
    for (let end = text.indexOf("\n}\n"); end >= 0; end = text.indexOf("\n}\n")) {
      yield JSON.parse(text.slice(0, end + 2));
      text = text.slice(end + 3);
    }
  }
}

/** Counts what the page's WebAssembly is asked, and which module it is. */
const SPY = () => {
  const instantiate = WebAssembly.instantiate;
  globalThis.verifier = { sha256: [], calls: 0 };
  WebAssembly.instantiate = async (bytes, imports) => {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    globalThis.verifier.sha256.push([...digest].map((byte) => byte.toString(16).padStart(2, "0")).join(""));
    const { module, instance } = await instantiate(bytes, imports);
    const { check } = instance.exports;
    const counted = (...call) => {
      globalThis.verifier.calls += 1;
      return check(...call);
    };
    return { module, instance: { exports: { ...instance.exports, check: counted } } };
  };
};

const lastText = (page) => page.evaluate(() => [...document.querySelectorAll(".answer .markdown")].at(-1)?.textContent ?? "");
const settled = (page) => badge(page, "signed").or(badge(page, "replayed"));

const browser = await Browser.open({ waitMs: 120_000 });
let network = await Network.start();
const scene = (name, act, options = {}) => browser.scene(name, network.url, act, { settings: SETTINGS, ...options });

await scene("a sampled replay arrives by itself, and conversations outlive a reload", async ({ page, shot }) => {
  // Half of the answers of a new worker are replayed, so this comes first.
  for (let round = 0; round < 12 && (await badge(page, "replayed").count()) === 0; round += 1) {
    if (round > 0) await page.waitForTimeout(3_000);
    await page.keyboard.press(`${CONTROL}+K`);
    await page.waitForFunction(() => document.querySelectorAll(".turn").length === 0);
    await page.keyboard.type(`What is ${round + 2} plus ${round + 3}?`);
    await page.keyboard.press("Enter");
    await done(page);
    await settled(page).waitFor();
    if (round > 0) await page.waitForTimeout(2_000);
  }
  await badge(page, "replayed").waitFor();
  await page.keyboard.press(`${CONTROL}+K`);
  await page.keyboard.type("Remember the harbour.");
  await page.keyboard.press("Enter");
  await done(page);
  await settled(page).waitFor();
  const kept = await page.locator(".entry-title").allInnerTexts();
  assert.ok(kept.length >= 2 && kept[0] === "Remember the harbour.");
  const text = await lastText(page);
  await page.reload();
  await page.waitForFunction((count) => document.querySelectorAll(".entry").length === count, kept.length);
  assert.deepEqual(await page.locator(".entry-title").allInnerTexts(), kept);
  await page.locator(".entry-open").first().click();
  assert.equal(await lastText(page), text);
  // What storage remembers is checked anew.
  await settled(page).click();
  await page.getByRole("heading", { name: "What this proves" }).waitFor();
  assert.equal(await page.locator(".check-failed").count(), 0);
  await shot("real-06-kept");
});

await scene("from question to replayed receipt by keyboard alone", async ({ page, shot }) => {
  assert.equal(await focused(page), "composer");
  await page.keyboard.type("Explain in two sentences why the sky is blue.");
  await page.keyboard.press("Enter");
  // It streams: the text is there before the end, and grows.
  await page.waitForFunction(() => document.querySelector(".send.stop") && (document.querySelector(".answer .markdown")?.textContent?.length ?? 0) > 3);
  const early = await lastText(page);
  await shot("real-01-streaming");
  await done(page);
  const text = await lastText(page);
  assert.ok(text.length > early.length && text.startsWith(early.trim().slice(0, 3)), "the answer grew while it streamed");
  await settled(page).waitFor();
  assert.equal(await focused(page), "composer");
  await shot("real-02-signed");
  // A sampled replay may have come first.
  if (await badge(page, "signed").count()) {
    await tabTo(page, "Replay now", 60, true);
    await page.keyboard.press("Enter");
  }
  await badge(page, "replayed").waitFor();
  assert.match(await badge(page, "replayed").innerText(), /^Replayed by operator-[123]/);
  await page.keyboard.press("Alt+P");
  const panel = page.locator(".panel");
  for (const title of ["What this proves", "Whom you still trust", "What checking cost"]) await panel.getByRole("heading", { name: title }).waitFor();
  await panel.getByText(/The answer is this model's, bit for bit/).waitFor();
  await panel.getByText(/one honest auditor is enough/).waitFor();
  await panel.getByRole("row", { name: /^Replay by operator-\d/ }).first().waitFor();
  assert.equal(await panel.locator(".check-failed").count(), 0, "no check fails");
  assert.ok((await panel.locator(".check-passed").count()) >= 25, "all checks are listed");
  await accessible(page);
  await shot("real-03-replayed");
  // The file says the same to the program, offline.
  await tabTo(page, "Download");
  const downloading = page.waitForEvent("download");
  await page.keyboard.press("Enter");
  const verified = await run(ASSAY, ["--json", "verify", await (await downloading).path()], { env: { ...process.env, ASSAY_HOME: network.home } });
  assert.match(verified.stdout, /"replayed"/);
  await page.keyboard.press("Escape");
  await panel.waitFor({ state: "detached" });
});

await scene("one altered byte anywhere is found, by the WebAssembly", async ({ page, shot, context }) => {
  await context.addInitScript(SPY);
  await page.reload();
  await page.waitForFunction(() => (document.querySelector(".pick select")?.options[0]?.value ?? "") !== "");
  await page.locator(".pick select").nth(1).selectOption("before_first_token");
  await ask(page, "Name three colours.");
  await done(page);
  await badge(page, "replayed").waitFor();
  const seen = await page.evaluate(() => globalThis.verifier);
  assert.deepEqual(seen.sha256, [WASM], "the verifier is the committed one, loaded once");
  assert.ok(seen.calls >= 2, "it checked the receipt and the list of workers");
  /** Another hex digit, or another letter, at the end of a text. */
  const nudge = (text) => text.slice(0, -1) + (text.endsWith("1") ? "2" : "1");
  const lies = {
    "the worker's signature": ["failed", (bundle) => (bundle.receipt.signature = bundle.receipt.signature.slice(0, 10) + nudge(bundle.receipt.signature.slice(10, 11)) + bundle.receipt.signature.slice(11))],
    "the price": ["failed", (bundle) => (bundle.receipt.statement.price = nudge(bundle.receipt.statement.price))],
    "the salt": ["failed", (bundle) => (bundle.salt = nudge(bundle.salt))],
    "the seed": ["failed", (bundle) => (bundle.request.sampling.seed = "8")],
    "a token": ["failed", (bundle) => (bundle.output.tokens[0] += 1)],
    "a chunk": ["failed", (bundle) => (bundle.chunks[0].chunk.text = nudge(bundle.chunks[0].chunk.text))],
    // An audit that does not hold counts for nothing; the receipt stands.
    "the auditor's verdict": ["signed", (bundle) => (bundle.audits[0].statement.verdict = "unable")],
    "the auditor": ["signed", (bundle) => (bundle.audits[0].statement.auditor = bundle.receipt.statement.worker)],
    "the answer": ["mismatch", (bundle) => (bundle.output.text = nudge(bundle.output.text))],
  };
  for (const [what, [state, alter]] of Object.entries(lies)) {
    const before = (await page.evaluate(() => globalThis.verifier)).calls;
    await page.route("**/assay/receipts/*", async (route) => {
      const bundle = await (await route.fetch()).json();
      alter(bundle);
      await route.fulfill({ json: bundle });
    });
    await page.keyboard.press("Alt+P");
    await badge(page, state).waitFor();
    assert.ok((await page.evaluate(() => globalThis.verifier)).calls > before, `${what}: the WebAssembly was asked`);
    const row = { failed: ".check-failed", mismatch: ".check-failed", signed: ".check-not_counted" }[state];
    await page.locator(`.panel ${row}`).first().waitFor();
    if (what === "the price") await shot("real-04-tampered");
    await page.keyboard.press("Alt+P");
    await page.unroute("**/assay/receipts/*");
    await page.keyboard.press("Alt+P");
    await badge(page, "replayed").waitFor();
    await page.keyboard.press("Alt+P");
  }
  // A list of workers that its signer did not sign proves nothing either.
  await page.route("**/assay/members", async (route) => {
    const roster = await (await route.fetch()).json();
    roster.members.statement.members[0].operator = "somebody else";
    await route.fulfill({ json: roster });
  });
  await page.keyboard.press("Alt+P");
  await badge(page, "failed").waitFor();
  await page.locator(".panel .check-failed", { hasText: "List's signature" }).waitFor();
});

await scene("without the verifier nothing counts as checked", async ({ page }) => {
  await page.route("**/*.wasm", (route) => route.fulfill({ body: Buffer.from("0061736d01000000", "hex"), contentType: "application/wasm" }));
  await ask(page, "Say hello.");
  await done(page);
  await badge(page, "failed").waitFor();
  await page.locator(".notice", { hasText: "could not be checked" }).waitFor();
  await page.unroute("**/*.wasm");
  await page.getByRole("button", { name: "Check again" }).click();
  await settled(page).waitFor();
});

await scene("stop, regenerate, edit", async ({ page }) => {
  await page.keyboard.type("Write a very long story about the sea.");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => (document.querySelector(".answer .markdown")?.textContent?.length ?? 0) > 12);
  await page.keyboard.press("Escape");
  await page.locator(".badge", { hasText: "Stopped" }).waitFor();
  const stopped = await lastText(page);
  await page.keyboard.press("ArrowUp");
  await page.locator(".editor textarea").waitFor();
  await page.keyboard.press(`${CONTROL}+A`);
  await page.keyboard.type("Say hello in French.");
  await page.keyboard.press("Enter");
  await done(page);
  await settled(page).waitFor();
  assert.equal(await page.locator(".question").count(), 1);
  const first = await lastText(page);
  assert.notEqual(first, stopped);
  // The seed is fixed and the model made of integers: the same question has the same answer, whoever gives it.
  await page.waitForFunction(() => document.activeElement?.id === "composer");
  await page.keyboard.press("Alt+R");
  await page.waitForSelector(".send.stop");
  await done(page);
  await settled(page).waitFor();
  assert.equal(await answers(page).count(), 1);
  assert.equal(await lastText(page), first, "regenerated with the same seed it is the same to the letter");
}, { settings: { ...SETTINGS, temperature: 0.9, maxTokens: 200 } });

await scene("model and level are what the gateway is asked for", async ({ page, shot }) => {
  const { models } = await network.get("/assay/models");
  assert.deepEqual(await page.locator(".pick select").first().locator("option").evaluateAll((nodes) => nodes.map((node) => node.value)), models.map(({ name }) => name));
  for (const [presses, moment, level] of [[0, "sampled", "signed"], [1, "before_end", "replayed"], [1, "before_first_token", "replayed"]]) {
    await page.waitForFunction(() => document.activeElement?.id === "composer");
    if (presses) {
      await tabTo(page, "Replay a sample");
      await page.keyboard.press("ArrowDown");
      await tabTo(page, "composer", 60, true);
    }
    await page.keyboard.type(`Count to ${moment.length}.`);
    await page.keyboard.press("Enter");
    await page.waitForFunction((count) => document.querySelectorAll(".answer").length === count, ["sampled", "before_end", "before_first_token"].indexOf(moment) + 1);
    await done(page);
    const { receipts } = await network.get("/assay/receipts?limit=1");
    assert.equal(receipts[0].policy.level, level);
    assert.equal(receipts[0].policy.moment, moment);
    if (level === "replayed") assert.match(await page.locator(".answer").last().locator(".badge").getAttribute("data-state"), /^replayed$/);
  }
  await shot("real-05-levels");
});

await scene("the picture in the README", async ({ page, shot }) => {
  await page.locator(".pick select").nth(1).selectOption("before_end");
  await ask(page, "What is the capital of France?");
  await done(page);
  await ask(page, "Tell me one sentence about Paris.");
  await page.waitForFunction(() => document.querySelectorAll(".answer").length === 2);
  await done(page);
  await badge(page, "replayed").nth(1).waitFor();
  await badge(page, "replayed").nth(1).click();
  await page.getByRole("heading", { name: "What this proves" }).waitFor();
  await page.mouse.move(600, 20);
  await shot("chat");
}, { settings: { ...SETTINGS, maxTokens: 160 }, size: { width: 1280, height: 800 } });

await network.stop();

if (browser.wants("a cheater")) {
  network = await Network.start("--with-cheater");
  await scene("a cheater is caught and shown", async ({ page, shot }) => {
    // The program asks the questions; the page watches.
    await page.keyboard.press("Alt+W");
    await page.locator("table.workers").waitFor();
    const { caught } = await network.said();
    const row = page.locator("tr.caught").first();
    await row.waitFor();
    assert.equal(await row.getAttribute("data-operator"), caught.operator);
    await page.locator(".chip", { hasText: "Suspended" }).waitFor();
    const note = page.locator("tr.caught.note");
    const words = await note.innerText();
    assert.match(words, /Caught .* at .*: claimed .*, the model gives/);
    assert.match(words, new RegExp(caught.suspended.request_id));
    assert.match(words, /Not paid: 0\.0+[1-9]\d* OPG/);
    await page.locator(".top", { hasText: "1 caught" }).waitFor();
    await accessible(page);
    await shot("real-07-cheater");
    const saving = page.waitForEvent("download");
    await note.getByRole("button", { name: "Incident file" }).click();
    const incident = JSON.parse(await readFile(await (await saving).path(), "utf8"));
    assert.equal(incident.request_id, caught.suspended.request_id);
    assert.ok(incident.audits.some(({ audit }) => audit.statement.verdict === "differs"));
    // Whoever is asked now, it is not the cheater.
    await page.keyboard.press("Escape");
    await ask(page, "What is the capital of France?");
    await done(page);
    await settled(page).waitFor();
    assert.ok(!(await settled(page).innerText()).includes(`Signed by ${caught.operator}`));
  });
  await network.stop();
}
await browser.close();
