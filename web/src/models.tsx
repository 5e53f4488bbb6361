// Models from ONNX: choose one, give it numbers, and see its prediction with a proof that is checked here.
import "./styles.css";

import { type JSX, render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { explain } from "./api";
import { duration, opg, short } from "./format";
import { loadProofVerifier, type Proved, type ProofVerifier } from "./proof";
import { stored } from "./storage";
import { Icon, Mark } from "./view/icons";
import { IconButton } from "./view/parts";

/** Side of the drawing, for models that read an image of 8 by 8 with values from 0 to 16, as scikit-learn's digits. */
const SIDE = 8;
const INK = 16;
/** Most values that are shown of an output. */
const SHOWN = 12;

const keyStore = stored("session", "api_key");
const themeStore = stored("local", "theme");

interface About {
  name: string;
  inputs: number;
  id: string;
}

/** What came back, and what this page found. */
interface Result {
  proved: Proved;
  proof: Uint8Array;
  /** From sending the numbers to having the answer. */
  answeredMs: number;
  checkedMs: number;
  about: About;
  worker: string | null;
  operator: string | null;
  price: string | null;
  requestId: string | null;
}

async function call(path: string, body?: object): Promise<Response> {
  const headers = new Headers(body ? { "content-type": "application/json" } : {});
  const key = keyStore.get();
  if (key) headers.set("authorization", `Bearer ${key}`);
  const init: RequestInit = body ? { method: "POST", body: JSON.stringify(body), headers } : { headers };
  const response = await fetch(path, { ...init, cache: "no-store" });
  if (!response.ok) throw explain(response.status, await response.text().catch(() => ""), response.headers.get("retry-after"));
  return response;
}

const text = (value: unknown): string | null => (typeof value === "string" ? value : null);

/** The numbers of `[..]`, `[[..], ..]` or `{"inputs": ..}`, flat. Throws a sentence. */
export function readRows(source: string): number[] {
  let value: unknown;
  try {
    value = JSON.parse(source);
  } catch {
    throw new Error("This is no JSON: write a row of numbers, such as [5.1, 3.5, 1.4, 0.2].");
  }
  if (typeof value === "object" && value !== null && "inputs" in value) value = value.inputs;
  const flat: unknown[] = Array.isArray(value) ? value.flat(Infinity) : [value];
  const numbers = flat.filter((each) => typeof each === "number");
  if (numbers.length !== flat.length) throw new Error("There is something else than numbers in it.");
  return numbers;
}

async function predict(verify: ProofVerifier, about: About, rows: number[]): Promise<Result> {
  const started = performance.now();
  const input = { name: "input", shape: [rows.length / about.inputs, about.inputs], datatype: "FP64", data: rows };
  const name = encodeURIComponent(about.name);
  const answer = call(`/v2/models/${name}/infer`, { parameters: { assay_level: "proved" }, inputs: [input] });
  const { parameters } = (await (await answer).json()) as { parameters: Record<string, unknown> };
  const answeredMs = performance.now() - started;
  const proof = Uint8Array.from(atob(text(parameters.assay_proof) ?? ""), (byte) => byte.charCodeAt(0));
  const model = new Uint8Array(await (await call(`/v2/models/${name}/assay`)).arrayBuffer());
  const checking = performance.now();
  // What is shown comes from the proof and the model's file alone, not from the gateway's words.
  const proved = verify(model, proof, rows);
  return {
    proved,
    proof,
    answeredMs,
    checkedMs: performance.now() - checking,
    about,
    worker: text(parameters.assay_worker),
    operator: text(parameters.assay_operator),
    price: text(parameters.assay_price),
    requestId: text(parameters.assay_request_id),
  };
}

function Models(): JSX.Element {
  const [names, setNames] = useState<string[] | null>(null);
  const [about, setAbout] = useState<About | null>(null);
  const [source, setSource] = useState("");
  const [busy, setBusy] = useState(false);
  const [result, setResult] = useState<Result | null>(null);
  const [trouble, setTrouble] = useState<string | null>(null);
  const verifier = useRef<Promise<ProofVerifier> | null>(null);
  const say = (error: unknown) => setTrouble(error instanceof Error ? error.message : String(error));

  const choose = async (name: string): Promise<void> => {
    setResult(null);
    setTrouble(null);
    const model = (await (await call(`/v2/models/${encodeURIComponent(name)}`)).json()) as {
      inputs: { shape: number[] }[];
      parameters: { assay_model: string };
    };
    const inputs = model.inputs[0]?.shape[1] ?? 0;
    setAbout({ name, inputs, id: model.parameters.assay_model });
    setSource(JSON.stringify(Array.from({ length: inputs }, () => 0)));
  };

  useEffect(() => {
    verifier.current = loadProofVerifier();
    verifier.current.catch(say);
    call("/v2/repository/index", {})
      .then((response) => response.json())
      .then(async (rows: { name: string }[]) => {
        setNames(rows.map((row) => row.name));
        if (rows[0]) await choose(rows[0].name);
      })
      .catch(say);
  }, []);

  const run = async (): Promise<void> => {
    if (!about || !verifier.current) return;
    setBusy(true);
    setTrouble(null);
    setResult(null);
    try {
      const rows = readRows(source);
      if (rows.length === 0 || rows.length % about.inputs !== 0) {
        throw new Error(`${about.name} reads ${about.inputs} numbers an example, and ${rows.length} are here.`);
      }
      setResult(await predict(await verifier.current, about, rows));
    } catch (error) {
      say(error);
    } finally {
      setBusy(false);
    }
  };

  const drop = (event: DragEvent) => {
    const file = event.dataTransfer?.files[0];
    if (!file) return;
    event.preventDefault();
    file.text().then(setSource, say);
  };
  const theme = () => {
    const root = document.documentElement;
    const dark = root.dataset.theme === "dark" || (!root.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    root.dataset.theme = dark ? "light" : "dark";
    themeStore.set(root.dataset.theme);
  };

  return (
    <main class="models">
      <header class="top">
        <Mark />
        <h1 class="top-title">Models with proofs</h1>
        <a class="ghost" href="/">
          Chat
        </a>
        <IconButton icon="sun" label="Light or dark mode" onClick={theme} />
      </header>
      <div class="models-body">
        <form
          class="models-form"
          onSubmit={(event) => {
            event.preventDefault();
            void run();
          }}
        >
          <label class="field">
            <span>Model</span>
            <select id="model" value={about?.name ?? ""} disabled={!names?.length || busy} onChange={(event) => void choose(event.currentTarget.value).catch(say)}>
              {(names ?? []).map((name) => (
                <option key={name} value={name}>
                  {name}
                </option>
              ))}
            </select>
          </label>
          {names?.length === 0 && <p class="quiet">There is none yet: import one with `assay model import model.onnx`.</p>}
          {about?.inputs === SIDE * SIDE && <Drawing source={source} onDraw={setSource} />}
          <label class="field">
            <span>Numbers, {about?.inputs ?? "?"} an example</span>
            <textarea id="rows" spellcheck={false} rows={5} value={source} onInput={(event) => setSource(event.currentTarget.value)} onDragOver={(event) => event.preventDefault()} onDrop={drop} />
          </label>
          <p class="quiet small">A row, several rows, or a file with them, dropped here.</p>
          <button type="submit" class="button primary" disabled={!about || busy}>
            {busy && <span class="spinner" />} {busy ? "Proving" : "Predict, with a proof"}
          </button>
        </form>
        <section class="models-result" aria-live="polite" aria-label="Result">
          {trouble && (
            <div class="notice bad">
              <Icon name="warning" />
              <p>{trouble}</p>
            </div>
          )}
          {result && <Shown result={result} />}
          {!result && !trouble && (
            <p class="quiet">
              The prediction comes with a proof that the model really gives it. This page checks the proof itself, without running the model and without
              trusting whoever ran it.
            </p>
          )}
        </section>
      </div>
    </main>
  );
}

/** An image of 8 by 8 that one draws into. */
function Drawing(props: { source: string; onDraw: (source: string) => void }): JSX.Element {
  const canvas = useRef<HTMLCanvasElement>(null);
  let values: number[] = [];
  try {
    values = readRows(props.source);
  } catch {
    // Half-typed numbers: the drawing waits.
  }
  useEffect(() => {
    const brush = canvas.current?.getContext("2d");
    if (!brush) return;
    for (let at = 0; at < SIDE * SIDE; at += 1) {
      const light = Math.round(255 - (Math.min(Math.max(values[at] ?? 0, 0), INK) / INK) * 235);
      brush.fillStyle = `rgb(${light} ${light} ${light})`;
      brush.fillRect(at % SIDE, Math.floor(at / SIDE), 1, 1);
    }
  });
  const draw = (event: PointerEvent) => {
    const box = canvas.current?.getBoundingClientRect();
    if (!box || (event.type !== "pointerdown" && event.buttons === 0)) return;
    const x = ((event.clientX - box.left) / box.width) * SIDE - 0.5;
    const y = ((event.clientY - box.top) / box.height) * SIDE - 0.5;
    const next = Array.from({ length: SIDE * SIDE }, (_, at) => {
      // A pen somewhat wider than a cell, so that lines get soft edges as scanned ones have.
      const far = Math.hypot((at % SIDE) - x, Math.floor(at / SIDE) - y);
      const ink = Math.round(INK * Math.min(Math.max(1.35 - far, 0), 1));
      return Math.max(values[at] ?? 0, ink);
    });
    props.onDraw(JSON.stringify(next));
  };
  return (
    <div class="drawing">
      <canvas ref={canvas} width={SIDE} height={SIDE} role="img" aria-label="Draw a digit here; the numbers below are the same image" onPointerDown={draw} onPointerMove={draw} />
      <button type="button" class="small-button" onClick={() => props.onDraw(JSON.stringify(Array.from({ length: SIDE * SIDE }, () => 0)))}>
        Clear
      </button>
    </div>
  );
}

function Shown({ result }: { result: Result }): JSX.Element {
  const { proved, about } = result;
  if (!proved.valid) {
    return (
      <div class="verdict tone-bad" data-state="failed">
        <h2 class="verdict-head">
          <Icon name="cross" /> Not proved
        </h2>
        <p>The proof that came shows nothing: {proved.reason}. Do not rely on the prediction.</p>
      </div>
    );
  }
  if (proved.model !== about.id) {
    return (
      <div class="verdict tone-bad" data-state="failed">
        <h2 class="verdict-head">
          <Icon name="cross" /> Not proved
        </h2>
        <p>The gateway's file is another model than it said: {short(proved.model)} in place of {short(about.id)}.</p>
      </div>
    );
  }
  const first = proved.outputs[0] ?? [];
  const [low, high] = [Math.min(...first), Math.max(...first)];
  return (
    <>
      <p class="prediction">
        {proved.labels[0] ?? first.slice(0, SHOWN).map((value) => value.toPrecision(4)).join(", ")}
        {proved.examples > 1 && <span class="quiet small"> and {proved.examples - 1} more</span>}
      </p>
      {first.length > 1 && (
        <table class="bars" aria-label="Outputs of the first example">
          <tbody>
            {first.slice(0, SHOWN).map((value, at) => (
              <tr key={at}>
                <th scope="row">{at}</th>
                <td>
                  <meter min={0} max={1} value={high > low ? (value - low) / (high - low) : 1} aria-label={`Output ${at}`} />
                </td>
                <td class="number">{value.toPrecision(4)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      <div class="verdict tone-good" data-state="proved">
        <h2 class="verdict-head">
          <Icon name="checks" /> Proved, and checked in this page
        </h2>
        <p>
          The model {short(proved.model)} gives exactly these outputs for your numbers. A false proof would take about 2<sup>{Math.floor(proved.security_bits)}</sup> tries.{" "}
          {proved.hides_weights ? "The proof tells nothing else about the model's weights. It holds your numbers." : "The proof hides nothing: it holds your numbers."}
        </p>
      </div>
      <table class="facts">
        <tbody>
          <Fact name="Proved by">{result.operator ? `${result.operator} (${short(result.worker ?? "")})` : "this gateway"}</Fact>
          <Fact name="Answer after">{duration(result.answeredMs)}</Fact>
          <Fact name="Checked here in">{duration(result.checkedMs)}</Fact>
          <Fact name="Proof">{(result.proof.length / 1_000).toFixed(1)} kB</Fact>
          {result.price !== null && <Fact name="Price">{opg(result.price)}</Fact>}
          <Fact name="Model">
            <code class="break">{proved.model}</code>
          </Fact>
        </tbody>
      </table>
      <p class="row">
        <Download name={`${about.name}.proof`} bytes={result.proof} label="Proof" />
        {result.requestId && (
          <a class="small-button" href={`/assay/receipts/${encodeURIComponent(result.requestId)}`} download={`receipt-${result.requestId}.json`}>
            <Icon name="save" size={15} /> Receipt
          </a>
        )}
      </p>
    </>
  );
}

function Fact(props: { name: string; children: preact.ComponentChildren }): JSX.Element {
  return (
    <tr>
      <th scope="row">{props.name}</th>
      <td>{props.children}</td>
    </tr>
  );
}

function Download(props: { name: string; bytes: Uint8Array; label: string }): JSX.Element {
  const save = () => {
    const url = URL.createObjectURL(new Blob([props.bytes as BufferSource]));
    const link = document.createElement("a");
    link.href = url;
    link.download = props.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  };
  return (
    <button type="button" class="small-button" onClick={save}>
      <Icon name="save" size={15} /> {props.label}
    </button>
  );
}

const root = document.getElementById("app");
if (root) render(<Models />, root);
