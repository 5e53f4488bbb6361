// Drives the built page in Chromium, by mouse and by keyboard alone. Against the mock gateway, or against a real one:
//   npm run e2e                                     all scenes, mock gateway
//   ASSAY_URL=http://127.0.0.1:8600 npm run e2e     what every gateway must do; ASSAY_KEY for its key
//   SHOTS=folder                                    where screenshots go (default: none are taken)
//   CHROMIUM=/usr/bin/chromium                      the browser
import assert from "node:assert/strict";
import { mkdir, readFile } from "node:fs/promises";
import { chromium } from "playwright-core";

import { start } from "./mock_gateway.mjs";

const REAL = process.env.ASSAY_URL?.replace(/\/$/, "");
const SHOTS = process.env.SHOTS;
const ONLY = process.env.ONLY;
const ANSWER_MS = REAL ? 120_000 : 15_000;
const CONTROL = "Control";

if (SHOTS) await mkdir(SHOTS, { recursive: true });
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

/** Runs one scene in a fresh browser profile; nothing may be logged as an error or blocked by the security policy. */
async function scene(name, run, { size = { width: 1380, height: 900 }, dark = false, mock = {}, expected = [] } = {}) {
  if (ONLY && !name.includes(ONLY)) return;
  const gateway = REAL ? { url: REAL, seen: [], close: async () => {} } : await start(mock);
  const context = await browser.newContext({ viewport: size, colorScheme: dark ? "dark" : "light", acceptDownloads: true });
  await context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: new URL(gateway.url).origin });
  const page = await context.newPage();
  page.setDefaultTimeout(ANSWER_MS);
  const errors = [];
  page.on("console", (message) => {
    if (message.type() === "error" && !expected.some((part) => message.text().includes(part))) errors.push(message.text());
  });
  page.on("pageerror", (error) => errors.push(String(error)));
  const shot = async (file) => {
    if (SHOTS) await page.screenshot({ path: `${SHOTS}/${file}.png` });
  };
  const started = Date.now();
  try {
    await page.goto(gateway.url);
    if (REAL && process.env.ASSAY_KEY) {
      await page.evaluate((key) => sessionStorage.setItem("assay.api_key", key), process.env.ASSAY_KEY);
      await page.reload();
    }
    await page.waitForSelector("#composer");
    if (!mock.keyRequired) await page.waitForFunction(() => (document.querySelector(".pick select")?.options[0]?.value ?? "") !== "");
    await run({ page, gateway, shot, context });
    assert.deepEqual(errors, [], "the browser logged errors");
    console.log(`ok   ${name} (${Date.now() - started} ms)`);
  } catch (error) {
    if (SHOTS) await page.screenshot({ path: `${SHOTS}/FAILED-${name.replace(/\W+/g, "-")}.png` }).catch(() => {});
    console.log(`FAIL ${name}`);
    console.log(error);
    if (errors.length) console.log("logged:", errors);
    process.exitCode = 1;
  } finally {
    await context.close();
    await gateway.close();
  }
}

const composer = (page) => page.locator("#composer");
const answers = (page) => page.locator(".answer");
const badge = (page, state) => page.locator(`.badge[data-state="${state}"]`);
const focused = (page) => page.evaluate(() => document.activeElement?.id || document.activeElement?.getAttribute("aria-label") || document.activeElement?.textContent?.trim() || document.activeElement?.tagName);

async function ask(page, text) {
  await composer(page).click();
  await composer(page).fill(text);
  await page.getByRole("button", { name: "Send (Enter)" }).click();
}
async function done(page) {
  await page.waitForFunction(() => document.querySelectorAll(".answer").length > 0 && !document.querySelector(".send.stop") && !document.querySelector('[data-state="checking"]'));
}
/** Presses Tab until an element with this name has the focus. */
async function tabTo(page, name, presses = 60, back = false) {
  for (let press = 0; press < presses; press += 1) {
    await page.keyboard.press(back ? "Shift+Tab" : "Tab");
    if (((await focused(page)) ?? "").includes(name)) return;
  }
  assert.fail(`no way by Tab to "${name}"; the focus is on "${await focused(page)}"`);
}

await scene("ask, verify, look at the receipt, by mouse", async ({ page, shot, context }) => {
  await shot("01-empty-light");
  await ask(page, "Explain in two sentences what a digital signature proves.");
  await page.waitForFunction(() => (document.querySelector(".answer .markdown")?.textContent?.length ?? 0) > 20);
  await shot("02-streaming");
  await done(page);
  await badge(page, "signed").or(badge(page, "replayed")).first().waitFor();
  await shot("03-signed");
  await page.locator(".foot .badge").last().click();
  await page.getByRole("heading", { name: "What this proves" }).waitFor();
  await page.getByRole("heading", { name: "Whom you still trust" }).waitFor();
  await page.getByRole("heading", { name: "What checking cost" }).waitFor();
  assert.equal(await page.locator(".check-failed").count(), 0, "no check may fail");
  assert.ok((await page.locator(".check-passed").count()) >= 20, "all checks are listed");
  await shot("04-receipt-signed");
  const replay = page.locator(".panel").getByRole("button", { name: "Replay now" });
  if (await replay.count()) await replay.click();
  await badge(page, "replayed").waitFor();
  await page.locator(".panel .verdict", { hasText: "bit for bit" }).waitFor();
  await shot("05-receipt-replayed");
  const downloading = page.waitForEvent("download");
  await page.getByRole("button", { name: "Download" }).click();
  const file = await downloading;
  assert.match(file.suggestedFilename(), /^receipt-chatcmpl-[0-9a-f]{32}\.json$/);
  const bundle = JSON.parse(await readFile(await file.path(), "utf8"));
  assert.equal(bundle.audits.at(-1).statement.verdict, "agrees");
  await page.getByRole("button", { name: "Copy JSON" }).click();
  const copied = await page.evaluate(() => navigator.clipboard.readText());
  assert.equal(JSON.parse(copied).receipt.signature, bundle.receipt.signature);
  await page.locator(".panel-body").evaluate((node) => node.scrollTo(0, node.scrollHeight));
  await shot("06-receipt-end");
  await page.getByRole("button", { name: /Close the receipt/ }).click();
  assert.equal(await page.locator(".panel").count(), 0);
  // What the browser keeps outlives a reload.
  await page.reload();
  await page.locator(".entry-open").first().click();
  await badge(page, "replayed").waitFor();
  assert.ok((await context.cookies()).length === 0, "no cookies");
});

await scene("everything by keyboard alone", async ({ page, shot, gateway }) => {
  assert.equal(await focused(page), "composer", "one can write at once");
  await page.keyboard.type("First line");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("second line");
  assert.equal(await composer(page).inputValue(), "First line\nsecond line");
  await page.keyboard.press("Enter");
  await done(page);
  assert.equal(await focused(page), "composer", "the focus stays in the field");
  // Edit the last question with the up arrow.
  await page.keyboard.press("ArrowUp");
  await page.locator(".editor textarea").waitFor();
  await page.keyboard.press("Escape");
  assert.equal(await page.locator(".editor").count(), 0);
  await page.waitForFunction(() => document.activeElement?.id === "composer");
  await page.keyboard.press("ArrowUp");
  await page.locator(".editor textarea").waitFor();
  await page.keyboard.press(`${CONTROL}+A`);
  await page.keyboard.type("Name three colours.");
  await shot("07-editing");
  await page.keyboard.press("Enter");
  await done(page);
  assert.equal(await page.locator(".question").count(), 1);
  assert.match(await page.locator(".bubble").innerText(), /three colours/);
  // Regenerate.
  await page.waitForFunction(() => document.activeElement?.id === "composer");
  const before = await page.locator(".answer").count();
  await page.keyboard.press("Alt+R");
  await page.waitForSelector(".send.stop");
  await done(page);
  assert.equal(await answers(page).count(), before);
  if (!REAL) assert.equal(gateway.seen.length, 3);
  if (!REAL) assert.notEqual(gateway.seen[1].seed, gateway.seen[2].seed, "a fresh seed each time");
  // The receipt, and back.
  await page.keyboard.press("Alt+P");
  await page.locator(".panel").waitFor();
  assert.equal(await focused(page), "Receipt");
  await page.getByRole("heading", { name: "What this proves" }).waitFor();
  await tabTo(page, "Download");
  await page.keyboard.press("Escape");
  assert.equal(await page.locator(".panel").count(), 0);
  await page.waitForFunction(() => document.activeElement?.id === "composer");
  // Workers.
  await page.keyboard.press("Alt+W");
  await page.locator("table.workers").waitFor();
  await page.keyboard.press("Escape");
  // Help, by the question mark.
  await page.waitForFunction(() => document.activeElement?.id === "composer");
  await page.keyboard.type("?");
  await page.getByRole("heading", { name: "Keyboard shortcuts" }).waitFor();
  await shot("08-shortcuts");
  await page.keyboard.press("Escape");
  assert.equal(await page.locator("dialog").count(), 0);
  // Settings: the system prompt arrives with the request and in the receipt.
  await page.waitForFunction(() => document.activeElement?.id === "composer");
  await page.keyboard.press("Alt+S");
  await page.getByRole("heading", { name: "Settings" }).waitFor();
  await tabTo(page, "", 1);
  await page.locator('textarea[placeholder*="should know"]').focus();
  await page.keyboard.type("Answer briefly.");
  await page.keyboard.press("Escape");
  assert.equal(await page.locator("dialog").count(), 0);
  // A new conversation, then the badge reached by Tab.
  await page.keyboard.press(`${CONTROL}+K`);
  await page.waitForFunction(() => document.activeElement?.id === "composer" && document.querySelectorAll(".turn").length === 0);
  await page.keyboard.type("Hello");
  await page.keyboard.press("Enter");
  await done(page);
  if (!REAL) assert.equal(gateway.seen.at(-1).messages[0].content, "Answer briefly.");
  await tabTo(page, "Show the receipt", 60, true);
  await shot("09-focus-on-badge");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "What this proves" }).waitFor();
  assert.equal(await page.locator(".check-failed").count(), 0);
  assert.equal(await page.locator(".entry").count(), 2, "two conversations are kept");
});

await scene("stop with Escape, then go on", async ({ page }) => {
  await composer(page).fill(REAL ? "Write a very long story about the sea." : "slow please");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => (document.querySelector(".answer .markdown")?.textContent?.length ?? 0) > 12);
  await page.keyboard.press("Escape");
  await page.locator(".badge", { hasText: "Stopped" }).waitFor();
  await ask(page, "And now something short.");
  await page.waitForFunction(() => document.querySelectorAll(".answer").length === 2);
  await done(page);
  await badge(page, "signed").or(badge(page, "replayed")).first().waitFor();
});

await scene("replayed before it is shown", async ({ page, shot }) => {
  await page.locator(".pick select").nth(1).selectOption("before_first_token");
  await ask(page, "What is a hash?");
  await page.locator(".waiting", { hasText: "repeats it before" }).waitFor();
  await done(page);
  await badge(page, "replayed").waitFor();
  await shot("10-replayed-before");
});

await scene("conversations: rename, export, delete, undo", async ({ page }) => {
  await ask(page, "Remember the harbour.");
  await done(page);
  const entry = page.locator(".entry").first();
  await entry.hover();
  await entry.getByRole("button", { name: /^Rename/ }).click();
  await page.locator(".rename").fill("My harbour");
  await page.keyboard.press("Enter");
  await page.locator(".entry-title", { hasText: "My harbour" }).waitFor();
  await entry.hover();
  const downloading = page.waitForEvent("download");
  await entry.getByRole("button", { name: /^Export/ }).click();
  const file = await downloading;
  assert.equal(file.suggestedFilename(), "my-harbour.json");
  const written = JSON.parse(await readFile(await file.path(), "utf8"));
  assert.equal(written.conversation.turns[0].text, "Remember the harbour.");
  await entry.hover();
  await entry.getByRole("button", { name: /^Delete/ }).click();
  await page.waitForFunction(() => document.querySelectorAll(".entry").length === 0);
  await page.getByRole("button", { name: "Undo" }).click();
  await page.locator(".entry-title", { hasText: "My harbour" }).waitFor();
  await page.reload();
  await page.locator(".entry-title", { hasText: "My harbour" }).waitFor();
});

if (!REAL) {
  await scene("a caught cheater is shown", async ({ page, shot }) => {
    await ask(page, "What is the capital of Australia? (mismatch)");
    await badge(page, "signed").waitFor();
    await badge(page, "mismatch").waitFor();
    await page.locator(".notice", { hasText: "Do not rely" }).waitFor();
    await shot("11-mismatch");
    await badge(page, "mismatch").click();
    await page.locator("mark").waitFor();
    await page.locator(".consequence", { hasText: "suspended" }).waitFor();
    await page.locator(".consequence", { hasText: "OPG" }).waitFor();
    await shot("12-mismatch-receipt");
    await page.keyboard.press("Alt+W");
    await page.locator(".chip", { hasText: "Suspended" }).waitFor();
    await page.locator("tr.note", { hasText: "Not paid" }).waitFor();
    await shot("13-workers-caught");
    await page.keyboard.press("Escape");
    await page.locator(".notice").getByRole("button", { name: "Ask another worker" }).click();
    await done(page);
    await badge(page, "signed").waitFor();
    assert.doesNotMatch(await badge(page, "signed").innerText(), /north/);
  });

  await scene("a sampled replay arrives by itself", async ({ page }) => {
    await ask(page, "sampled please");
    await badge(page, "signed").waitFor();
    await badge(page, "replayed").waitFor();
  });

  await scene("a receipt that is filed late is found", async ({ page }) => {
    await ask(page, "late please");
    await badge(page, "signed").waitFor();
  }, { expected: ["404"] });

  await scene("shown text that was not signed is a mismatch", async ({ page }) => {
    await ask(page, "forged please");
    await badge(page, "mismatch").waitFor();
    await page.locator(".notice", { hasText: "part at character" }).waitFor();
  });

  await scene("a tampered receipt proves nothing", async ({ page, shot }) => {
    await ask(page, "tampered please");
    await badge(page, "failed").waitFor();
    await badge(page, "failed").click();
    await page.locator(".check-failed").first().waitFor();
    await shot("14-tampered");
  });

  await scene("errors are one sentence with a way on", async ({ page, shot }) => {
    await ask(page, "busy please");
    await page.locator(".notice", { hasText: "All workers are busy. Try again in 3 s." }).waitFor();
    await shot("15-busy");
    await page.getByRole("button", { name: "Try again" }).click();
    await badge(page, "signed").waitFor();
    await page.keyboard.press(`${CONTROL}+K`);
    await ask(page, "broken please");
    await page.locator(".notice").waitFor();
    await page.keyboard.press(`${CONTROL}+K`);
    await ask(page, "fault please");
    await page.locator(".notice", { hasText: "Every worker that offers the model failed." }).waitFor();
  }, { expected: ["429", "ERR_INCOMPLETE_CHUNKED_ENCODING"] });

  await scene("a gateway that goes away", async ({ page, gateway }) => {
    await gateway.close();
    await ask(page, "Are you there?");
    await page.locator(".notice", { hasText: "cannot be reached" }).waitFor();
  }, { expected: ["ERR_CONNECTION_REFUSED"] });

  await scene("hostile markdown stays text", async ({ page, shot, gateway }) => {
    const foreign = [];
    page.on("request", (request) => {
      if (!request.url().startsWith(gateway.url) && !request.url().startsWith("blob:")) foreign.push(request.url());
    });
    await ask(page, "hostile please");
    await badge(page, "signed").waitFor();
    assert.equal(await page.title(), "Assay");
    assert.equal(await page.locator(".markdown :is(img, script, form, iframe, button:not(.small-button), [style], [onerror])").count(), 0);
    const links = await page.locator(".markdown a").evaluateAll((nodes) => nodes.map((node) => node.getAttribute("href")));
    assert.ok(links.every((href) => href === null || /^https?:/.test(href)), String(links));
    assert.deepEqual(foreign, [], "nothing is fetched from elsewhere");
    await shot("16-hostile");
  });

  await scene("an API key is asked for and kept for the tab", async ({ page, gateway }) => {
    await page.locator(".notice", { hasText: "API key" }).waitFor();
    await page.keyboard.press("Alt+S");
    await page.getByLabel("API key").fill("secret");
    await page.getByRole("button", { name: "Done" }).click();
    await ask(page, "Hello");
    await badge(page, "signed").waitFor();
    assert.equal(await page.evaluate(() => JSON.stringify(localStorage).includes("secret")), false);
    assert.equal(gateway.seen.length, 1);
  }, { mock: { keyRequired: "secret" }, expected: ["401"] });

  await scene("another signer than remembered is refused", async ({ page, shot }) => {
    await page.evaluate(() => localStorage.setItem("assay.pin", "0xdead@1/0x00"));
    await page.reload();
    await page.locator(".notice", { hasText: "another signer" }).waitFor();
    await ask(page, "Hello");
    await badge(page, "failed").waitFor();
    await shot("17-signer");
    await page.locator(".notice").getByRole("button", { name: "Settings" }).click();
    await page.getByRole("button", { name: "Accept it" }).click();
    await page.getByRole("button", { name: "Done" }).click();
    await page.getByRole("button", { name: "Check again" }).click();
    await badge(page, "signed").waitFor();
  });

  await scene("a forwarder's answer can only be signed", async ({ page }) => {
    await page.locator(".pick select").first().selectOption("forwarded-large");
    await ask(page, "Hello");
    await badge(page, "signed").click();
    await page.locator(".facts", { hasText: "cannot be replayed" }).waitFor();
    assert.equal(await page.locator(".check-failed").count(), 0);
  });
}

await scene("dark", async ({ page, shot }) => {
  await shot("20-empty-dark");
  await ask(page, "Write a short Python function.");
  await done(page);
  await shot("21-answer-dark");
  await page.locator(".foot .badge").last().click();
  await page.getByRole("heading", { name: "What this proves" }).waitFor();
  await shot("22-receipt-dark");
  await page.keyboard.press("Escape");
  await page.keyboard.press("Alt+S");
  await page.getByRole("heading", { name: "Settings" }).waitFor();
  await shot("23-settings-dark");
  await page.getByRole("radio", { name: "Light" }).check();
  assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), "light");
  await page.reload();
  assert.equal(await page.evaluate(() => getComputedStyle(document.body).backgroundColor), "rgb(247, 248, 248)");
}, { dark: true });

await scene("phone", async ({ page, shot }) => {
  await shot("30-phone-empty");
  await ask(page, "Explain briefly.");
  await done(page);
  await shot("31-phone-answer");
  await page.locator(".foot .badge").last().click();
  await page.getByRole("heading", { name: "What this proves" }).waitFor();
  await shot("32-phone-receipt");
  await page.getByRole("button", { name: /Close the receipt/ }).click();
  await page.getByRole("button", { name: "Conversations" }).click();
  await page.locator(".sidebar").getByRole("button", { name: "Workers" }).waitFor();
  await page.waitForTimeout(300);
  await shot("33-phone-sidebar");
  await page.locator(".sidebar").getByRole("button", { name: "Workers" }).click();
  await page.locator("table.workers").waitFor();
  await page.waitForTimeout(300);
  assert.equal(await page.locator(".with-sidebar").count(), 0, "the list of conversations makes room");
  await shot("34-phone-workers");
  const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
  assert.equal(wide, false, "nothing is wider than the phone");
}, { size: { width: 390, height: 800 } });

await browser.close();
if (process.exitCode) console.log("some scenes failed");
else console.log("all scenes passed");
