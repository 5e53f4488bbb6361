// The state of the page and everything that changes it. Components only read it and call its methods.

import { checkAnswer } from "./answer";
import { Failure, Gateway, modelsOf } from "./api";
import {
  type Asked,
  type Conversation,
  type Turn,
  bounded,
  cut,
  exportJson,
  messagesBefore,
  newConversation,
  newId,
  titleOf,
  TITLE_MAX,
} from "./conversation";
import { judge, operatorOf, pageChecks, pin, rosterChecks } from "./judge";
import { readStream } from "./sse";
import { type Settings, Storage, readSettings, stored } from "./storage";
import { type Check, type Report, type Verifier, loadVerifier } from "./verify";
import type { Bundle, Member, Model, Roster, Standing } from "./wire";

/** The evidence for one answer, kept while the page is open. */
export interface Evidence {
  bundle: Bundle;
  /** `receipt.json`, as the gateway sent it. */
  text: string;
  report: Report;
  own: Check[];
  /** Time that checking took in this page, in milliseconds. */
  checkMs: number;
}

/** Where the check of an answer's proof is. */
export type Proving =
  | { step: "asked" }
  | { step: "fetching"; bytes: number; of: number }
  | { step: "checking"; of: number }
  | { step: "done"; report: Report; key: string; of: number; checkMs: number }
  | { step: "failed"; why: string };

/** What is open at the side. */
export type Panel = { kind: "receipt"; turn: string } | { kind: "workers" } | null;

/** What is open in front. */
export type Dialog = "settings" | "shortcuts" | null;

/** A short message with an optional way back. */
export interface Toast {
  text: string;
  undo?: () => void;
}

/** Most answers whose evidence is kept in memory; the rest is fetched again when it is looked at. */
const EVIDENCE_MAX = 24;
/** When to look for an audit after an answer, in milliseconds: about three minutes in all. */
const LOOKS_MS = [1_000, 1_500, 2_500, 4_000, 6_000, 8_000, 12_000, 16_000, 20_000, 25_000, 30_000, 30_000, 30_000];
/** How long the gateway may take to file a receipt after the stream ended, in milliseconds between tries. */
const FILING_MS = [0, 150, 400, 1_000, 2_000];
/** How often the workers' records are read while they are shown, in milliseconds. */
const WORKERS_MS = 3_000;

const settingsStore = stored("local", "settings");
const themeStore = stored("local", "theme");
const pinStore = stored("local", "pin");
const keyStore = stored("session", "api_key");

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** The page. */
export class App {
  conversations: Conversation[] = [];
  /** Id of the conversation on screen. */
  current = "";
  settings: Settings = readSettings(settingsStore.get());
  theme: "system" | "light" | "dark" = readTheme();
  models: Model[] = [];
  roster: Roster | null = null;
  pinned: string | null = pinStore.get();
  workers: Standing[] | null = null;
  /** Why the workers' records could not be read. */
  workersTrouble: string | null = null;
  /** Why the gateway's lists could not be read. */
  trouble: string | null = null;
  panel: Panel = null;
  dialog: Dialog = null;
  sidebar = false;
  toast: Toast | null = null;
  /** Turn that is being written, and how to stop it; one a conversation. */
  readonly running = new Map<string, { turn: string; abort: AbortController }>();
  /** Answers whose proof was asked for, by turn. */
  readonly proving = new Map<string, Proving>();
  /** Turns that are being replayed on request. */
  readonly replaying = new Set<string>();
  readonly evidence = new Map<string, Evidence>();
  /** Question that is being edited. */
  editing: string | null = null;
  /** Text for screen readers. */
  announcement = "";
  ready = false;
  lasting = true;

  readonly #gateway = new Gateway();
  readonly #listeners = new Set<() => void>();
  #storage: Storage | null = null;
  #verifier: Promise<Verifier> | null = null;
  #frame = 0;
  #toastTimer: ReturnType<typeof setTimeout> | undefined;
  #workersTimer: ReturnType<typeof setInterval> | undefined;
  readonly #watched = new Set<string>();

  constructor() {
    this.#gateway.key = keyStore.get() ?? "";
  }

  /** Calls `listener` after every change; returns how to stop that. */
  subscribe(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #changed(): void {
    for (const listener of this.#listeners) listener();
  }

  /** Like `changed`, at most once a frame: for streams. */
  #soon(): void {
    if (this.#frame !== 0) return;
    // A timer rather than an animation frame, so that hidden tabs go on as well.
    this.#frame = window.setTimeout(() => {
      this.#frame = 0;
      this.#changed();
    }, 33);
  }

  /** Loads what the browser keeps and what the gateway lists. */
  async start(): Promise<void> {
    this.#storage = await Storage.open();
    this.lasting = this.#storage.lasting;
    this.conversations = (await this.#storage.all()).sort((a, b) => b.updatedMs - a.updatedMs);
    this.newConversation();
    this.ready = true;
    this.#changed();
    for (const conversation of this.conversations) {
      for (const turn of conversation.turns) if (turn.state === "checking") void this.check(turn.id, false);
    }
    await this.refresh();
  }

  /** Reads the gateway's lists again. */
  async refresh(): Promise<void> {
    try {
      const roster = await this.#gateway.roster();
      this.roster = roster;
      this.models = modelsOf(roster.members.statement.members);
      if (this.pinned === null) {
        this.pinned = pin(roster);
        pinStore.set(this.pinned);
      }
      if (!this.models.some((model) => model.name === this.settings.model) && this.models[0]) {
        this.set({ model: this.models[0].name });
      }
      this.trouble = null;
    } catch (error) {
      this.trouble = say(error);
    }
    this.#changed();
  }

  /** Whether the list of workers names another signer than the one remembered. */
  get signerChanged(): boolean {
    return this.roster !== null && this.pinned !== null && pin(this.roster) !== this.pinned;
  }

  /** Takes the list's present signer for the right one from now on. */
  acceptSigner(): void {
    if (!this.roster) return;
    this.pinned = pin(this.roster);
    pinStore.set(this.pinned);
    this.evidence.clear();
    this.#changed();
  }

  /** Whether answers of the chosen model can be replayed; a forwarder's cannot. */
  get replayable(): boolean {
    return this.models.find((each) => each.name === this.settings.model)?.replayable ?? true;
  }

  /** Whether a replay of this answer can be asked for. */
  canReplay(turn: Turn): boolean {
    const model = this.models.find((each) => each.id === turn.asked?.modelId);
    const arithmetic = this.evidence.get(turn.id)?.bundle.receipt.statement.arithmetic;
    return turn.state === "signed" && turn.requestId !== undefined && model?.replayable !== false && arithmetic !== 0;
  }

  get members(): Member[] {
    return this.roster?.members.statement.members ?? [];
  }

  get conversation(): Conversation {
    const found = this.conversations.find((each) => each.id === this.current);
    if (found) return found;
    const fresh = newConversation(Date.now());
    this.conversations = [fresh, ...this.conversations];
    this.current = fresh.id;
    return fresh;
  }

  get busy(): boolean {
    return this.running.has(this.current);
  }

  turn(id: string): { conversation: Conversation; turn: Turn; index: number } | null {
    for (const conversation of this.conversations) {
      const index = conversation.turns.findIndex((turn) => turn.id === id);
      const turn = conversation.turns[index];
      if (turn) return { conversation, turn, index };
    }
    return null;
  }

  #keep(conversation: Conversation): void {
    if (conversation.turns.length === 0) return;
    void this.#storage?.put(conversation).catch(() => this.notify("This browser did not keep the conversation: its storage is full or blocked."));
    const { kept, dropped } = bounded(this.conversations, this.current);
    if (dropped.length === 0) return;
    this.conversations = kept;
    for (const each of dropped) void this.#storage?.remove(each.id);
    this.notify(`The oldest conversation was removed to make room: export what you want to keep.`);
  }

  // Conversations.

  newConversation(): void {
    const empty = this.conversations.find((each) => each.turns.length === 0);
    if (empty) this.current = empty.id;
    else {
      const fresh = newConversation(Date.now());
      this.conversations = [fresh, ...this.conversations];
      this.current = fresh.id;
    }
    this.editing = null;
    this.sidebar = false;
    if (this.panel?.kind === "receipt") this.panel = null;
    this.#changed();
    focusComposer();
  }

  open(id: string): void {
    this.current = id;
    this.editing = null;
    this.sidebar = false;
    if (this.panel?.kind === "receipt") this.panel = null;
    this.#changed();
    focusComposer();
  }

  rename(id: string, title: string): void {
    const conversation = this.conversations.find((each) => each.id === id);
    const text = title.trim().slice(0, TITLE_MAX);
    if (!conversation || text === "") return;
    conversation.title = text;
    conversation.named = true;
    this.#keep(conversation);
    this.#changed();
  }

  remove(id: string): void {
    const conversation = this.conversations.find((each) => each.id === id);
    if (!conversation) return;
    this.running.get(id)?.abort.abort();
    this.conversations = this.conversations.filter((each) => each.id !== id);
    void this.#storage?.remove(id);
    if (this.current === id) this.newConversation();
    this.notify(`"${conversation.title}" was deleted.`, () => {
      this.conversations = [conversation, ...this.conversations].sort((a, b) => b.updatedMs - a.updatedMs);
      this.current = id;
      this.#keep(conversation);
      this.#changed();
    });
  }

  export(id: string): void {
    const conversation = this.conversations.find((each) => each.id === id);
    if (conversation) download(`${fileName(conversation.title)}.json`, exportJson(conversation));
  }

  // Asking.

  /** Asks a question in the conversation on screen. */
  send(text: string): void {
    if (this.busy || text.trim() === "") return;
    const conversation = this.conversation;
    const now = Date.now();
    if (conversation.turns.length === 0 && !conversation.named) conversation.title = titleOf(text);
    conversation.turns.push({ id: newId(), role: "user", text: text.trim(), atMs: now });
    void this.#answer(conversation);
  }

  /** Asks again for the answer `id`, or for the one to the last question. */
  regenerate(id?: string): void {
    const conversation = this.conversation;
    if (this.busy) return;
    const last = conversation.turns.findLastIndex((turn) => turn.role === "assistant");
    const index = id ? conversation.turns.findIndex((turn) => turn.id === id) : last;
    if (index < 0) return;
    if (conversation.turns[index]?.role !== "assistant") return;
    conversation.turns = cut(conversation.turns, index);
    void this.#answer(conversation);
  }

  edit(id: string | null): void {
    this.editing = id;
    this.#changed();
    if (id === null) focusComposer();
  }

  editLast(): boolean {
    const last = this.conversation.turns.findLast((turn) => turn.role === "user");
    if (!last || this.busy) return false;
    this.edit(last.id);
    return true;
  }

  /** Replaces a question; what came after it goes. */
  resend(id: string, text: string): void {
    const conversation = this.conversation;
    const index = conversation.turns.findIndex((turn) => turn.id === id);
    if (this.busy || index < 0 || text.trim() === "") return;
    conversation.turns = cut(conversation.turns, index);
    this.editing = null;
    if (index === 0 && !conversation.named) conversation.title = titleOf(text);
    conversation.turns.push({ id: newId(), role: "user", text: text.trim(), atMs: Date.now() });
    void this.#answer(conversation);
    focusComposer();
  }

  stop(): void {
    this.running.get(this.current)?.abort.abort();
  }

  async #answer(conversation: Conversation): Promise<void> {
    const { settings } = this;
    const model = this.models.find((each) => each.name === settings.model);
    const asked: Asked = {
      model: settings.model,
      modelId: model?.id ?? null,
      system: settings.system,
      temperature: settings.temperature,
      seed: settings.seed === "" ? randomSeed() : Number(settings.seed),
      maxTokens: settings.maxTokens,
      level: model?.replayable === false ? "sampled" : settings.level,
    };
    const turn: Turn = { id: newId(), role: "assistant", text: "", atMs: Date.now(), asked, state: "streaming" };
    const messages = messagesBefore(conversation.turns, conversation.turns.length, asked.system);
    conversation.turns.push(turn);
    conversation.updatedMs = Date.now();
    const abort = new AbortController();
    this.running.set(conversation.id, { turn: turn.id, abort });
    this.conversations.sort((a, b) => b.updatedMs - a.updatedMs);
    this.announcement = "The answer begins.";
    this.#keep(conversation);
    this.#changed();

    const voice = new Sentences((sentence) => {
      this.announcement = sentence;
    });
    let complete = false;
    try {
      const response = await this.#gateway.chat({ ...asked, messages }, abort.signal);
      if (!response.body) throw new Failure("The gateway sent an empty response; try again.");
      for await (const event of readStream(response.body)) {
        if (event.kind === "error") throw new Failure(event.message, 0, event.id);
        if (event.kind === "done") complete = true;
        if (event.kind === "delta") {
          if (event.id) turn.requestId = event.id;
          if (event.assay?.request_id) turn.requestId = event.assay.request_id;
          if (event.assay?.nonce) turn.nonce = event.assay.nonce;
          if (event.finish) turn.finish = event.finish;
          if (event.text) {
            turn.text += event.text;
            voice.push(event.text);
          }
        }
        this.#soon();
      }
      if (!complete) throw new Failure("The answer broke off before its end; try again.");
      turn.state = "checking";
      voice.end();
    } catch (error) {
      if (abort.signal.aborted) {
        turn.state = "stopped";
        this.announcement = "Stopped.";
      } else {
        turn.state = "error";
        turn.error = say(error);
        if (error instanceof Failure && error.requestId) turn.requestId = error.requestId;
        this.announcement = turn.error;
      }
    }
    this.running.delete(conversation.id);
    conversation.updatedMs = Date.now();
    this.#keep(conversation);
    this.#changed();
    if (turn.state === "checking") await this.check(turn.id, true);
  }

  // Checking.

  #verify(): Promise<Verifier> {
    this.#verifier ??= loadVerifier().catch((error: unknown) => {
      this.#verifier = null; // The next answer tries again.
      throw error;
    });
    return this.#verifier;
  }

  /** Fetches and checks the receipt of an answer; with `watch`, looks for audits for a while. */
  async check(id: string, watch: boolean): Promise<void> {
    const found = this.turn(id);
    if (!found) return;
    const { turn, conversation } = found;
    try {
      await this.#examine(id, FILING_MS);
    } catch (error) {
      if (this.evidence.has(id)) {
        this.notify(`The answer could not be checked again: ${say(error)}`);
        return;
      }
      turn.state = "failed";
      turn.verdict = {
        state: "failed",
        summary: `The answer could not be checked: ${say(error)}`,
        operator: null,
        worker: null,
        auditors: [],
        auditedAtMs: null,
        difference: null,
        price: null,
        checkedAtMs: Date.now(),
      };
      this.announcement = turn.verdict.summary;
    }
    this.#keep(conversation);
    this.#changed();
    if (watch) void this.#watch(id);
  }

  async #examine(id: string, triesMs: number[]): Promise<void> {
    const found = this.turn(id);
    if (!found) return;
    const { conversation, turn, index } = found;
    const { asked } = turn;
    if (!asked) throw new Failure("This page did not record what it asked.");
    const { requestId } = turn;
    if (!requestId) throw new Failure("The gateway named no request id, so there is no receipt to look for.");
    const verify = await this.#verify();
    const roster = await this.#gateway.roster();
    this.roster = roster;
    let filed: { bundle: Bundle; text: string } | null = null;
    for (const ms of triesMs) {
      if (ms > 0) await sleep(ms);
      filed = await this.#gateway.bundle(requestId);
      if (filed) break;
    }
    if (!filed) throw new Failure("The gateway has no receipt for it.");
    const { bundle, text } = filed;
    const started = performance.now();
    const members = roster.members.statement.members;
    let report: Report;
    try {
      report = verify.check(bundle, { domain: roster.domain, workers: members, model: asked.modelId, nonce: turn.nonce ?? null });
    } catch (error) {
      if (error instanceof WebAssembly.RuntimeError) this.#verifier = null; // It gave up half-way: the next check gets a fresh one.
      throw error;
    }
    const now = Date.now();
    const messages = messagesBefore(conversation.turns, index, asked.system);
    const own = [
      ...rosterChecks(roster, signerOf(verify, roster), this.pinned, now),
      ...pageChecks(bundle, { requestId, asked, messages, shown: turn.text, finish: turn.finish ?? null }),
    ];
    const checkMs = performance.now() - started;
    const verdict = judge(bundle, report, own, members, turn.text, now);
    const news = turn.state !== verdict.state;
    turn.state = verdict.state;
    turn.verdict = verdict;
    this.evidence.delete(id);
    this.evidence.set(id, { bundle, text, report, own, checkMs });
    for (const old of this.evidence.keys()) {
      if (this.evidence.size <= EVIDENCE_MAX) break;
      this.evidence.delete(old);
    }
    if (news) {
      this.announcement = verdict.summary;
      if (verdict.state === "mismatch" && verdict.auditors.length > 0) void this.readWorkers();
    }
    this.#keep(conversation);
    this.#changed();
  }

  async #watch(id: string): Promise<void> {
    if (this.#watched.has(id)) return;
    this.#watched.add(id);
    try {
      for (const ms of LOOKS_MS) {
        await sleep(ms);
        const turn = this.turn(id)?.turn;
        if (!turn || turn.state !== "signed") return;
        await this.#examine(id, [0]).catch(() => undefined); // A look that fails is followed by another.
      }
    } finally {
      this.#watched.delete(id);
    }
  }

  /** Has an answer replayed now. */
  async replay(id: string): Promise<void> {
    const turn = this.turn(id)?.turn;
    if (!turn?.requestId || this.replaying.has(id)) return;
    this.replaying.add(id);
    this.#changed();
    try {
      await this.#gateway.audit(turn.requestId);
      const before = this.evidence.get(id)?.bundle.audits.length ?? 0;
      for (const ms of [0, 500, 1_000, 2_000, 4_000, 8_000]) {
        await sleep(ms);
        await this.#examine(id, [0]);
        if ((this.evidence.get(id)?.bundle.audits.length ?? 0) > before || turn.state !== "signed") break;
      }
    } catch (error) {
      this.notify(say(error));
    } finally {
      this.replaying.delete(id);
      this.#changed();
    }
  }

  /** Has an answer proved, fetches the proof and the model's key, and checks them here. */
  async prove(id: string): Promise<void> {
    const requestId = this.turn(id)?.turn.requestId;
    const evidence = this.evidence.get(id);
    const before = this.proving.get(id);
    if (!requestId || !evidence || (before && before.step !== "failed")) return;
    const set = (proving: Proving) => {
      this.proving.set(id, proving);
      this.#changed();
    };
    set({ step: "asked" });
    try {
      const { key: keyId, bytes: of } = await this.#gateway.prove(requestId);
      set({ step: "fetching", bytes: 0, of });
      const key = await this.#gateway.proofKey(keyId);
      const proof = await this.#gateway.proof(requestId, (bytes) => set({ step: "fetching", bytes, of }));
      set({ step: "checking", of });
      const { roster } = this;
      if (!roster) throw new Failure("The list of workers is not known yet: try again.");
      const expected = { domain: roster.domain, workers: roster.members.statement.members };
      const started = performance.now();
      const report = await checkAnswer({ key, proof, about: { bundle: evidence.bundle, expected } });
      set({ step: "done", report, key: report.key, of, checkMs: performance.now() - started });
      this.announcement = report.state === "proved" ? "The proof holds." : "The proof does not hold.";
    } catch (error) {
      set({ step: "failed", why: say(error) });
    }
  }

  // Panels and dialogs.

  show(panel: Panel): void {
    this.panel = panel;
    this.sidebar = false;
    clearInterval(this.#workersTimer);
    if (panel?.kind === "workers") {
      void this.readWorkers();
      this.#workersTimer = setInterval(() => void this.readWorkers(), WORKERS_MS);
    }
    if (panel?.kind === "receipt") {
      const turn = this.turn(panel.turn)?.turn;
      // Every look at a receipt checks it anew: what storage remembers of an earlier check proves nothing.
      if (turn?.requestId && turn.state !== "stopped" && turn.state !== "error") void this.check(panel.turn, false);
      void this.readWorkers();
    }
    this.#changed();
  }

  showLastReceipt(): void {
    const last = this.conversation.turns.findLast((turn) => turn.role === "assistant");
    if (last) this.show({ kind: "receipt", turn: last.id });
  }

  async readWorkers(): Promise<void> {
    try {
      this.workers = await this.#gateway.workers();
      this.workersTrouble = null;
    } catch (error) {
      this.workersTrouble = say(error);
    }
    this.#changed();
  }

  async saveIncident(requestId: string): Promise<void> {
    try {
      download(`incident-${requestId}.json`, await this.#gateway.incident(requestId));
    } catch (error) {
      this.notify(say(error));
    }
  }

  operatorOf(worker: string): string {
    return operatorOf(this.members, worker);
  }

  openDialog(dialog: Dialog): void {
    this.dialog = dialog;
    this.sidebar = false;
    this.#changed();
  }

  toggleSidebar(): void {
    this.sidebar = !this.sidebar;
    this.#changed();
  }

  notify(text: string, undo?: () => void): void {
    clearTimeout(this.#toastTimer);
    this.toast = { text, undo };
    this.announcement = text;
    this.#toastTimer = setTimeout(() => this.dismiss(), undo ? 8_000 : 5_000);
    this.#changed();
  }

  dismiss(): void {
    this.toast = null;
    this.#changed();
  }

  // Settings.

  set(change: Partial<Settings>): void {
    this.settings = readSettings(JSON.stringify({ ...this.settings, ...change }));
    settingsStore.set(JSON.stringify(this.settings));
    this.#changed();
  }

  get key(): string {
    return this.#gateway.key;
  }

  setKey(key: string): void {
    this.#gateway.key = key.trim();
    keyStore.set(this.#gateway.key || null);
    this.#changed();
    if (this.trouble) void this.refresh();
  }

  setTheme(theme: App["theme"]): void {
    this.theme = theme;
    themeStore.set(theme === "system" ? null : theme);
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    this.#changed();
  }
}

/** Calls back with whole sentences, so that a screen reader does not stutter along with the stream. */
class Sentences {
  #text = "";
  readonly #speak: (sentence: string) => void;

  constructor(speak: (sentence: string) => void) {
    this.#speak = speak;
  }

  push(text: string): void {
    this.#text += text;
    const end = this.#text.search(/[.!?\n]\s[^]*$/);
    if (end < 0) return;
    this.#speak(this.#text.slice(0, end + 1).trim());
    this.#text = this.#text.slice(end + 1);
  }

  end(): void {
    if (this.#text.trim() !== "") this.#speak(this.#text.trim());
    this.#text = "";
  }
}

/** Who signed a list of workers, or why that cannot be said. */
function signerOf(verify: Verifier, roster: Roster): string | Error {
  try {
    return verify.signer(roster.domain, roster.members);
  } catch (error) {
    return error instanceof Error ? error : new Error(String(error));
  }
}

function readTheme(): App["theme"] {
  const theme = themeStore.get();
  return theme === "light" || theme === "dark" ? theme : "system";
}

function randomSeed(): number {
  return crypto.getRandomValues(new Uint32Array(1))[0] ?? 0;
}

function say(error: unknown): string {
  if (error instanceof Error) {
    const text = error.message.trim();
    return /[.!?]$/.test(text) ? text : `${text}.`;
  }
  return "Something went wrong; try again.";
}

function fileName(title: string): string {
  return title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60).toLowerCase() || "conversation";
}

/** Hands a text to the browser as a file. */
export function download(name: string, text: string): void {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Puts the cursor where one writes, once the page is drawn. Not on phones, where the keyboard would cover the page. */
export function focusComposer(): void {
  if (matchMedia("(hover: none) and (pointer: coarse)").matches) return;
  setTimeout(() => document.getElementById("composer")?.focus({ preventScroll: true }), 0);
}
