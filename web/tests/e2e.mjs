// Drives the built page in Chromium against the mock gateway, by mouse and by keyboard alone, through every kind of
// trouble; `npm run real` does it against the real one.
//   SHOTS=folder   takes screenshots      ONLY=part of a scene's name      CHROMIUM=/usr/bin/chromium
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";

import { start } from "./mock_gateway.mjs";
import { CONTROL, Browser, accessible, answers, ask, badge, composer, done, focused, tabTo } from "./page.mjs";

const browser = await Browser.open();

/** A scene against a mock gateway of its own. */
async function scene(name, run, { mock = {}, ...options } = {}) {
  if (!browser.wants(name)) return;
  const gateway = await start(mock);
  try {
    await browser.scene(name, gateway.url, (tools) => run({ ...tools, gateway }), { keyWanted: Boolean(mock.keyRequired), ...options });
  } finally {
    await gateway.close();
  }
}

await scene("a proof is asked for, fetched and checked in the page", async ({ page, shot }) => {
  await ask(page, "Prove it.");
  await done(page);
  await badge(page, "mismatch").waitFor(); // the vector's receipt is for another question, and its proof holds
  await page.locator(".foot .badge").last().click();
  await page.getByRole("button", { name: "Check a proof" }).click();
  await page.locator('[data-proof="proved"]', { hasText: "a proof shows the matrix products" }).waitFor();
  await page.locator('[data-proof="proved"]', { hasText: "whoever has the model makes the same one" }).waitFor();
  await page.locator("#proof").scrollIntoViewIfNeeded();
  await shot("05-proof");
  await accessible(page);
}, { mock: { proved: true } });

await scene("a proof of another model's answer is refused in words", async ({ page }) => {
  await ask(page, "Prove it.");
  await done(page);
  await badge(page, "signed").waitFor();
  await page.locator(".foot .badge").last().click();
  await page.getByRole("button", { name: "Check a proof" }).click();
  await page.getByText("the receipt is for model", { exact: false }).or(page.getByText("model 0x", { exact: false })).first().waitFor();
  await page.getByRole("button", { name: "Check a proof" }).waitFor();
});

await scene("ask, verify, look at the receipt, by mouse", async ({ page, shot, context }) => {
  await shot("01-empty-light");
  await accessible(page);
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
  await accessible(page);
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
  await page.locator(".panel").waitFor({ state: "detached" });
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
  await page.locator(".editor").waitFor({ state: "detached" });
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
  assert.equal(gateway.seen.length, 3);
  assert.notEqual(gateway.seen[1].seed, gateway.seen[2].seed, "a fresh seed each time");
  // The receipt, and back.
  await page.keyboard.press("Alt+P");
  await page.locator(".panel").waitFor();
  assert.equal(await focused(page), "Receipt");
  await page.getByRole("heading", { name: "What this proves" }).waitFor();
  await tabTo(page, "Download");
  await page.keyboard.press("Escape");
  await page.locator(".panel").waitFor({ state: "detached" });
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
  await accessible(page);
  await page.keyboard.press("Escape");
  await page.locator("dialog").waitFor({ state: "detached" });
  // Settings: the system prompt arrives with the request and in the receipt.
  await page.waitForFunction(() => document.activeElement?.id === "composer");
  await page.keyboard.press("Alt+S");
  await page.getByRole("heading", { name: "Settings" }).waitFor();
  await tabTo(page, "", 1);
  await page.locator('textarea[placeholder*="should know"]').focus();
  await page.keyboard.type("Answer briefly.");
  await page.keyboard.press("Escape");
  await page.locator("dialog").waitFor({ state: "detached" });
  // A new conversation, then the badge reached by Tab.
  await page.keyboard.press(`${CONTROL}+K`);
  await page.waitForFunction(() => document.activeElement?.id === "composer" && document.querySelectorAll(".turn").length === 0);
  await page.keyboard.type("Hello");
  await page.keyboard.press("Enter");
  await done(page);
  assert.equal(gateway.seen.at(-1).messages[0].content, "Answer briefly.");
  await tabTo(page, "Show the receipt", 60, true);
  await shot("09-focus-on-badge");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "What this proves" }).waitFor();
  assert.equal(await page.locator(".check-failed").count(), 0);
  assert.equal(await page.locator(".entry").count(), 2, "two conversations are kept");
});

await scene("stop with Escape, then go on", async ({ page }) => {
  await composer(page).fill("slow please");
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
  await accessible(page);
  await page.getByRole("button", { name: "Undo" }).click();
  await page.locator(".entry-title", { hasText: "My harbour" }).waitFor();
  await page.reload();
  await page.locator(".entry-title", { hasText: "My harbour" }).waitFor();
});

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
  await accessible(page);
  await page.keyboard.press("Alt+W");
  await page.locator(".chip", { hasText: "Suspended" }).waitFor();
  await page.locator("tr.note", { hasText: "Not paid" }).waitFor();
  await shot("13-workers-caught");
  await accessible(page);
  const clipped = await page.locator(".table-scroll").evaluate((node) => node.scrollHeight > node.clientHeight + 1);
  assert.equal(clipped, false, "the table is not cut off");
  const saving = page.waitForEvent("download");
  await page.locator("tr.note").getByRole("button", { name: "Incident file" }).click();
  assert.match((await saving).suggestedFilename(), /^incident-chatcmpl-[0-9a-f]{32}\.json$/);
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
  assert.match(await page.locator(".panel").innerText(), /Nothing: a check failed/);
  await shot("14-tampered");
  await accessible(page);
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

await scene("a gateway that goes away", async ({ page, gateway, shot }) => {
  await gateway.close();
  await ask(page, "Are you there?");
  await page.locator(".notice", { hasText: "cannot be reached" }).waitFor();
  await page.keyboard.press("Alt+W");
  await page.locator(".panel .notice", { hasText: "cannot be reached" }).waitFor();
  await shot("18-gone");
  await accessible(page);
}, { expected: ["ERR_CONNECTION_REFUSED"] });

await scene("hostile markdown stays text", async ({ page, shot }) => {
  await ask(page, "hostile please");
  await badge(page, "signed").waitFor();
  assert.equal(await page.title(), "Assay");
  assert.equal(await page.locator(".markdown :is(img, script, form, iframe, button:not(.small-button), [style], [onerror])").count(), 0);
  const links = await page.locator(".markdown a").evaluateAll((nodes) => nodes.map((node) => node.getAttribute("href")));
  assert.ok(links.every((href) => href === null || /^https?:/.test(href)), String(links));
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

await scene("dark", async ({ page, shot }) => {
  await shot("20-empty-dark");
  await accessible(page);
  await ask(page, "Write a short Python function.");
  await done(page);
  await shot("21-answer-dark");
  await page.locator(".foot .badge").last().click();
  await page.getByRole("heading", { name: "What this proves" }).waitFor();
  await shot("22-receipt-dark");
  await accessible(page);
  await page.keyboard.press("Escape");
  await page.keyboard.press("Alt+S");
  await page.getByRole("heading", { name: "Settings" }).waitFor();
  await shot("23-settings-dark");
  await accessible(page);
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
  await accessible(page);
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
  await accessible(page);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
  assert.equal(wide, false, "nothing is wider than the phone");
}, { size: { width: 390, height: 800 }, touch: true });

await scene("a mismatch in the dark, on a narrow phone, without motion", async ({ page, shot }) => {
  await ask(page, "What is the capital of Australia? (mismatch)");
  await badge(page, "mismatch").waitFor();
  await shot("35-phone-mismatch-dark");
  await accessible(page);
  await badge(page, "mismatch").click();
  await page.locator("mark").waitFor();
  await shot("36-phone-mismatch-receipt-dark");
  await accessible(page);
  await page.getByRole("button", { name: /Close the receipt/ }).click();
  await page.getByRole("button", { name: /^Workers/ }).click();
  await page.locator(".chip", { hasText: "Suspended" }).waitFor();
  assert.equal(await page.locator(".table-scroll").evaluate((node) => node.scrollWidth > node.clientWidth), false, "the table fits");
  await shot("37-phone-workers-dark");
  await accessible(page);
  assert.equal(await page.evaluate(() => document.getAnimations().length), 0, "nothing moves");
  const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
  assert.equal(wide, false, "nothing is wider than the phone");
}, { size: { width: 320, height: 640 }, dark: true, motion: false, touch: true });

await scene("a long conversation", async ({ page, shot }) => {
  const code = "```rust\nfn main() {\n    println!(\"{}\", \"a line of code that is longer than the column is wide, so that it has to be scrolled sideways inside of its block\");\n}\n```";
  await page.evaluate(
    ({ code }) =>
      new Promise((resolve, reject) => {
        const turns = Array.from({ length: 160 }, (_, index) =>
          index % 2 === 0
            ? { id: `q${index}`, role: "user", text: `Question ${index / 2 + 1}, which goes on for a while so that it breaks into lines on a narrow screen.`, atMs: index }
            : { id: `a${index}`, role: "assistant", text: `Answer **${(index + 1) / 2}**\n\n- one\n- two\n\n${code}\n\nAn_unbroken_word_${"x".repeat(200)}`, atMs: index, state: "stopped" },
        );
        const opening = indexedDB.open("assay", 1);
        opening.onerror = () => reject(opening.error);
        opening.onsuccess = () => {
          const writing = opening.result.transaction("conversations", "readwrite");
          writing.objectStore("conversations").put({ id: "long", title: "A long one with a title that does not fit into the list at all", named: true, createdMs: 1, updatedMs: 2, turns });
          writing.oncomplete = resolve;
        };
      }),
    { code },
  );
  await page.reload();
  await page.locator(".entry-open").first().click();
  await page.waitForFunction(() => document.querySelectorAll(".turn").length === 160);
  const { atEnd, wide } = await page.evaluate(() => {
    const node = document.querySelector(".transcript");
    return { atEnd: node.scrollHeight - node.scrollTop - node.clientHeight < 4, wide: node.scrollWidth > node.clientWidth };
  });
  assert.ok(atEnd, "it opens at its end");
  assert.equal(wide, false, "long words and lines of code stay in their column");
  await shot("19-long");
  // Typing stays quick however much is on screen.
  const started = Date.now();
  await page.keyboard.type("Twenty characters ok");
  assert.ok(Date.now() - started < 4_000, "typing is not held up");
  await page.keyboard.press("Enter");
  await done(page);
  await badge(page, "signed").waitFor();
  await page.locator(".transcript").evaluate((node) => node.scrollTo(0, 0));
  await page.getByRole("button", { name: "Go to the end" }).click();
  await page.waitForFunction(() => {
    const node = document.querySelector(".transcript");
    return node.scrollHeight - node.scrollTop - node.clientHeight < 60;
  });
});

/** The inputs in a proof file: after magic and id a count, and zigzag numbers of seven bits a byte. */
function inputsOf(file) {
  const numbers = [];
  let at = 44;
  for (let left = file.readUInt32LE(40); left > 0; left -= 1) {
    let value = 0;
    let shift = 0;
    do value |= (file[at] & 127) << shift, (shift += 7);
    while (file[at++] & 128);
    numbers.push((value >>> 1) ^ -(value & 1));
  }
  return numbers;
}

await scene("a prediction whose proof is checked in the page", async ({ page, shot, gateway }) => {
  const rows = inputsOf(await readFile(new URL("../../docs/vectors/perceptron.proof", import.meta.url)));
  await page.getByRole("link", { name: "Models with proofs" }).click();
  await page.waitForFunction(() => document.querySelector("#rows")?.value.startsWith("["));
  await accessible(page);
  const predict = page.getByRole("button", { name: "Predict, with a proof" });
  await page.locator("#rows").fill(JSON.stringify({ inputs: rows }));
  await predict.click();
  await page.locator('[data-state="proved"]').waitFor();
  assert.match(await page.locator(".facts").innerText(), /north[^]*Checked here in[^]*kB[^]*0\.00002 OPG/);
  await shot("20-models-proved");
  await accessible(page);
  const downloading = page.waitForEvent("download");
  await page.getByRole("button", { name: "Proof", exact: true }).click();
  assert.deepEqual(inputsOf(await readFile(await (await downloading).path())), rows);
  // A true proof of other numbers than these.
  await page.locator("#rows").fill(JSON.stringify(rows.with(3, rows[3] > 0 ? rows[3] - 1 : rows[3] + 1)));
  await predict.click();
  await page.locator('[data-state="failed"]', { hasText: "other inputs" }).waitFor();
  await shot("21-models-not-proved");
  await accessible(page);
  for (const [typed, said] of [["[1, 2", "no JSON"], ['["a"]', "else than numbers"], ["[1, 2]", "reads 6 numbers"]]) {
    await page.locator("#rows").fill(typed);
    await predict.click();
    await page.locator(".notice.bad", { hasText: said }).waitFor();
  }
});

await scene("a digit drawn into a model of 8 by 8", async ({ page, shot }) => {
  await page.getByRole("link", { name: "Models with proofs" }).click();
  await page.locator("#model").selectOption("digits");
  const values = async () => JSON.parse(await page.locator("#rows").inputValue());
  await page.waitForFunction(() => JSON.parse(document.querySelector("#rows").value).length === 64);
  assert.ok((await values()).every((value) => value === 0));
  // A stroke down the third column, with a mouse.
  const canvas = page.getByRole("img", { name: /^Draw a digit here/ });
  const box = await canvas.boundingBox();
  const cell = box.width / 8;
  const to = (x, y) => page.mouse.move(box.x + (x + 0.5) * cell, box.y + (y + 0.5) * cell);
  await to(2, 1);
  await page.mouse.down();
  for (let y = 1; y <= 6; y += 0.5) await to(2, y);
  await page.mouse.up();
  const drawn = await values();
  const ink = (x, y) => drawn[8 * y + x];
  for (let y = 1; y <= 6; y += 1) assert.ok(ink(2, y) === 16 && ink(1, y) > 0 && ink(3, y) > 0 && ink(5, y) === 0, drawn.join(" "));
  assert.ok(ink(2, 0) < 16 && drawn.every((value) => value >= 0 && value <= 16));
  // Moving without a pressed button draws nothing; the picture is the numbers, also typed ones.
  await to(6, 6);
  assert.deepEqual(await values(), drawn);
  const shade = (x, y) => canvas.evaluate((node, at) => node.getContext("2d").getImageData(...at, 1, 1).data[0], [x, y]);
  assert.ok((await shade(2, 3)) < 30 && (await shade(6, 3)) === 255);
  await shot("22-models-drawn");
  await accessible(page);
  await page.locator("#rows").fill(JSON.stringify(drawn.with(8 * 3 + 6, 8)));
  await page.waitForFunction(() => document.querySelector("canvas").getContext("2d").getImageData(6, 3, 1, 1).data[0] < 200);
  await page.getByRole("button", { name: "Clear" }).click();
  assert.ok((await values()).every((value) => value === 0));
  await page.waitForFunction(() => document.querySelector("canvas").getContext("2d").getImageData(2, 3, 1, 1).data[0] === 255);
  // A model with other inputs has no drawing.
  await page.locator("#model").selectOption("perceptron");
  await canvas.waitFor({ state: "detached" });
});

await browser.close();
