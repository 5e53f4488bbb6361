// The page in a real Chromium: scenes in fresh profiles, and what a person does with keys and mouse.
import assert from "node:assert/strict";
import { mkdir, readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

export const CONTROL = "Control";
const SHOTS = process.env.SHOTS;
const ONLY = process.env.ONLY;
const AXE = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** A browser that runs scenes and counts what fails. */
export class Browser {
  #chromium;
  #waitMs;

  /** `waitMs` is how long anything on the page may take. */
  static async open({ waitMs = 20_000 } = {}) {
    const browser = new Browser();
    if (SHOTS) await mkdir(SHOTS, { recursive: true });
    browser.#waitMs = waitMs;
    browser.#chromium = await chromium.launch({
      executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
      args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
    });
    return browser;
  }

  wants(name) {
    return !ONLY || name.includes(ONLY);
  }

  /** Runs one scene in a fresh profile. Nothing may be logged as an error, blocked by the security policy, or asked of
   * another address. `settings` are what a person would have set before. */
  async scene(name, url, run, { size = { width: 1380, height: 900 }, dark = false, motion = true, touch = false, expected = [], keyWanted = false, settings = null } = {}) {
    if (!this.wants(name)) return;
    const context = await this.#chromium.newContext({
      viewport: size, colorScheme: dark ? "dark" : "light", reducedMotion: motion ? "no-preference" : "reduce", hasTouch: touch, isMobile: touch, acceptDownloads: true,
    });
    await context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: new URL(url).origin });
    if (settings) await context.addInitScript((text) => localStorage.getItem("assay.settings") ?? localStorage.setItem("assay.settings", text), JSON.stringify(settings));
    const page = await context.newPage();
    page.setDefaultTimeout(this.#waitMs);
    const errors = [];
    page.on("console", (message) => {
      if (message.type() === "error" && !expected.some((part) => message.text().includes(part))) errors.push(message.text());
    });
    page.on("pageerror", (error) => errors.push(String(error)));
    page.on("request", (request) => {
      if (!request.url().startsWith(`${url}/`) && !request.url().startsWith("blob:")) errors.push(`asked ${request.url()}`);
    });
    const shot = async (file) => {
      if (SHOTS) await page.screenshot({ path: `${SHOTS}/${file}.png` });
    };
    const started = Date.now();
    try {
      await page.goto(url);
      await page.waitForSelector("#composer");
      if (!keyWanted) await page.waitForFunction(() => (document.querySelector(".pick select")?.options[0]?.value ?? "") !== "");
      await run({ page, shot, context });
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
    }
  }

  async close() {
    await this.#chromium.close();
    console.log(process.exitCode ? "some scenes failed" : "all scenes passed");
  }
}

export const composer = (page) => page.locator("#composer");
export const answers = (page) => page.locator(".answer");
export const badge = (page, state) => page.locator(`.badge[data-state="${state}"]`);
/** What has the focus, by id, label or text. */
export const focused = (page) =>
  page.evaluate(() => document.activeElement?.id || document.activeElement?.getAttribute("aria-label") || document.activeElement?.textContent?.trim() || document.activeElement?.tagName);

/** Asks by mouse. */
export async function ask(page, text) {
  await composer(page).click();
  await composer(page).fill(text);
  await page.getByRole("button", { name: "Send (Enter)" }).click();
}

/** Waits until an answer is complete and checked. */
export async function done(page) {
  await page.waitForFunction(() => document.querySelectorAll(".answer").length > 0 && !document.querySelector(".send.stop") && !document.querySelector('[data-state="checking"]'));
}

/** Presses Tab until an element with this name has the focus. */
export async function tabTo(page, name, presses = 60, back = false) {
  for (let press = 0; press < presses; press += 1) {
    await page.keyboard.press(back ? "Shift+Tab" : "Tab");
    if (((await focused(page)) ?? "").includes(name)) return;
  }
  assert.fail(`no way by Tab to "${name}"; the focus is on "${await focused(page)}"`);
}

/** What is on screen meets WCAG 2.2 AA as far as a machine can tell: contrast, names, roles, target sizes. */
export async function accessible(page) {
  if (!(await page.evaluate(() => "axe" in globalThis))) await page.evaluate(`${AXE};0`);
  const violations = await page.evaluate(async () => {
    const { violations } = await globalThis.axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] });
    return violations.flatMap((each) => each.nodes.map((node) => `${each.id}: ${node.html.slice(0, 160)} ${node.any[0]?.message ?? ""}`));
  });
  assert.deepEqual(violations, [], "the page is accessible");
}
