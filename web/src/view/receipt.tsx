import type { JSX } from "preact";

import { type App, type Evidence, download } from "../app";
import type { Turn } from "../conversation";
import { count, duration, moment, opg, percent, short, size, tidy } from "../format";
import { checkTitle, costOf, place, textPosition } from "../judge";
import type { Check } from "../verify";
import { Icon } from "./icons";
import { CopyButton, IconButton } from "./parts";
import { LOOKS, stateText } from "./state";

/** Everything about one answer: what was checked, what that proves, whom one still trusts and what checking cost. */
export function ReceiptPanel({ app, turn }: { app: App; turn: Turn }): JSX.Element {
  const evidence = app.evidence.get(turn.id);
  const look = LOOKS[turn.state ?? "failed"];
  const verdict = turn.verdict;
  return (
    <>
      <header class="panel-head">
        <h2>Receipt</h2>
        <IconButton icon="close" label="Close the receipt (Esc)" onClick={() => app.show(null)} />
      </header>
      <div class="panel-body">
        <section class={`verdict tone-${look.tone}`} aria-label="Verdict">
          <p class="verdict-head">
            <Icon name={look.icon} size={22} />
            <strong>{stateText(turn)}</strong>
          </p>
          {verdict && <p>{verdict.summary}</p>}
          {!verdict && turn.state === "stopped" && (
            <p>You stopped this answer. Receipts are for complete answers; the worker signs the break instead.</p>
          )}
          {!verdict && turn.state === "error" && <p>{turn.error}</p>}
        </section>
        {turn.state === "mismatch" && <Difference app={app} turn={turn} evidence={evidence} />}
        {app.canReplay(turn) && (
          <button type="button" class="button wide" disabled={app.replaying.has(turn.id)} onClick={() => void app.replay(turn.id)}>
            {app.replaying.has(turn.id) ? <span class="spinner" aria-hidden="true" /> : <Icon name="again" />}
            {app.replaying.has(turn.id) ? "Another operator repeats it…" : "Replay now"}
          </button>
        )}
        {evidence ? (
          <Body app={app} evidence={evidence} turn={turn} />
        ) : turn.state === "checking" ? (
          <p class="quiet">
            <span class="spinner" aria-hidden="true" /> Fetching and checking…
          </p>
        ) : (
          turn.requestId && (
            <div class="row">
              {turn.state === "failed" && (
                <button type="button" class="button" onClick={() => void app.check(turn.id, true)}>
                  <Icon name="again" /> Check again
                </button>
              )}
              <button type="button" class="button" onClick={() => void app.saveIncident(turn.requestId ?? "")}>
                <Icon name="save" /> Incident file
              </button>
            </div>
          )
        )}
      </div>
    </>
  );
}

function Difference({ app, turn, evidence }: { app: App; turn: Turn; evidence: Evidence | undefined }): JSX.Element | null {
  const difference = turn.verdict?.difference;
  if (!difference) return null;
  const standing = app.workers?.find((each) => each.worker.toLowerCase() === turn.verdict?.worker?.toLowerCase());
  const at = evidence ? textPosition(evidence.bundle, difference.field, difference.position) : difference.at;
  const text = turn.text;
  return (
    <section aria-labelledby="difference">
      <h3 id="difference">Where it differs</h3>
      <table class="facts">
        <tbody>
          <tr>
            <th scope="row">First difference</th>
            <td>{place(difference.field, difference.position)}</td>
          </tr>
          <tr>
            <th scope="row">{difference.field === "shown text" ? "Signed" : "The model gives"}</th>
            <td>
              <code>{difference.expected}</code>
            </td>
          </tr>
          <tr>
            <th scope="row">{difference.field === "shown text" ? "Shown here" : "The worker claimed"}</th>
            <td>
              <code>{difference.claimed}</code>
            </td>
          </tr>
        </tbody>
      </table>
      {at !== null && text !== "" && (
        <p class="excerpt">
          {at > 160 && "…"}
          {text.slice(Math.max(0, at - 160), at)}
          <mark>{text.slice(at, at + 40) || " (the end) "}</mark>
          {text.slice(at + 40, at + 120)}
          {text.length > at + 120 && "…"}
        </p>
      )}
      {standing && (
        <p class="consequence">
          <Icon name="people" size={16} />
          <span>
            {standing.suspended
              ? `${standing.operator} is suspended: it gets no more requests from this gateway`
              : `${standing.operator} is not suspended yet: a second auditor has to confirm it`}
            {BigInt(standing.withheld || "0") > 0n ? `, and ${opg(standing.withheld)} that it claimed is not paid.` : "."}
          </span>
        </p>
      )}
      <button type="button" class="button wide" disabled={app.busy} onClick={() => app.regenerate(turn.id)}>
        <Icon name="again" /> Ask another worker
      </button>
    </section>
  );
}

function Body({ app, evidence, turn }: { app: App; evidence: Evidence; turn: Turn }): JSX.Element {
  const { bundle, report, own } = evidence;
  const receipt = bundle.receipt.statement;
  const cost = costOf(bundle, app.members);
  const model = app.models.find((each) => each.id === receipt.model);
  // The page knows half of the nonce, by the request's id, and has compared that itself.
  const checks = [...own, ...report.checks.filter((check) => check.name !== "nonce" || check.outcome !== "skipped")];
  const failed = checks.filter((check) => check.outcome === "failed").length;
  const passed = checks.filter((check) => check.outcome === "passed").length;
  const uncounted = checks.filter((check) => check.outcome === "not_counted").length;
  const proven = report.state !== "rejected" && failed === 0;
  const fileName = `receipt-${turn.requestId ?? "unknown"}.json`;
  return (
    <>
      <section aria-labelledby="proves">
        <h3 id="proves">What this proves</h3>
        <ul class={`plain-list ${proven ? "ticks" : "crosses"}`}>
          {(proven ? report.proves : ["Nothing: a check failed, so the receipt cannot be relied on."]).map((line) => (
            <li key={line}>
              <Icon name={proven ? "check" : "cross"} size={16} />
              <span>{tidy(line)}</span>
            </li>
          ))}
        </ul>
      </section>
      <section aria-labelledby="trusted">
        <h3 id="trusted">Whom you still trust</h3>
        <ul class="plain-list">
          {proven && report.trusted.map((line) => (
            <li key={line}>
              <Icon name="people" size={16} />
              <span>{tidy(line)}</span>
            </li>
          ))}
          <li>
            <Icon name="people" size={16} />
            <span>
              This page's code, which came from the gateway, and your browser. <code>assay verify</code> checks the same file without
              them.
            </span>
          </li>
        </ul>
      </section>
      <section aria-labelledby="cost">
        <h3 id="cost">What checking cost</h3>
        <table class="facts">
          <tbody>
            <tr>
              <th scope="row">Generating the answer</th>
              <td>{duration(cost.generationMs)}</td>
            </tr>
            {cost.audits.map((audit, index) => (
              <tr key={index}>
                <th scope="row">Replay by {audit.operator}</th>
                <td>
                  {duration(audit.computeMs)} <span class="quiet">({percent(audit.computeMs, cost.generationMs)} of generating)</span>
                </td>
              </tr>
            ))}
            {cost.replayMs === null && (
              <tr>
                <th scope="row">Replay</th>
                <td class="quiet">none yet</td>
              </tr>
            )}
            <tr>
              <th scope="row">All checks in this page</th>
              <td>{duration(evidence.checkMs)}</td>
            </tr>
            <tr>
              <th scope="row">Receipt's size</th>
              <td>{size(new Blob([evidence.text]).size)}</td>
            </tr>
          </tbody>
        </table>
      </section>
      <ProofOf app={app} turn={turn} arithmetic={receipt.arithmetic} />
      <section aria-labelledby="facts">
        <h3 id="facts">{proven ? "What was signed" : "What the receipt says"}</h3>
        <table class="facts">
          <tbody>
            <tr>
              <th scope="row">Worker</th>
              <td>
                {report.operator ?? app.operatorOf(receipt.worker)} <code title={receipt.worker}>{short(receipt.worker)}</code>
              </td>
            </tr>
            <tr>
              <th scope="row">Model</th>
              <td>
                {model?.name ?? turn.asked?.model} <code title={receipt.model}>{short(receipt.model)}</code>
              </td>
            </tr>
            <tr>
              <th scope="row">Arithmetic</th>
              <td>{receipt.arithmetic === 0 ? "a forwarder: cannot be replayed" : `version ${receipt.arithmetic}, integers: can be replayed`}</td>
            </tr>
            <tr>
              <th scope="row">Price</th>
              <td>{opg(receipt.price)}</td>
            </tr>
            <tr>
              <th scope="row">Tokens</th>
              <td>
                {receipt.prompt_tokens.toLocaleString("en")} in, {receipt.completion_tokens.toLocaleString("en")} out
              </td>
            </tr>
            <tr>
              <th scope="row">First token after</th>
              <td>{duration(receipt.first_token_at_ms - receipt.received_at_ms)}</td>
            </tr>
            <tr>
              <th scope="row">Finished</th>
              <td>
                {moment(receipt.finished_at_ms)} <span class="quiet">by the worker's clock</span>
              </td>
            </tr>
            <tr>
              <th scope="row">Speed</th>
              <td>{speed(receipt.completion_tokens, receipt.finished_at_ms - receipt.first_token_at_ms)}</td>
            </tr>
            <tr>
              <th scope="row">Seed</th>
              <td>
                <code>{bundle.request.sampling.seed}</code>
              </td>
            </tr>
            <tr>
              <th scope="row">Receipt hash</th>
              <td>
                <code title={report.hash}>{short(report.hash, 10, 8)}</code>
              </td>
            </tr>
            <tr>
              <th scope="row">Request</th>
              <td>
                <code class="break">{turn.requestId}</code>
              </td>
            </tr>
          </tbody>
        </table>
      </section>
      <section aria-labelledby="checks">
        <h3 id="checks">
          Checks <span class="quiet">{failed > 0 ? `${failed} of ${passed + failed} failed` : uncounted > 0 ? `${passed} passed, an audit is not counted` : `${count(passed, "check")}, all passed`}</span>
        </h3>
        <table class="checks">
          <thead class="off-screen">
            <tr>
              <th scope="col">Outcome</th>
              <th scope="col">Check</th>
              <th scope="col">What it saw</th>
            </tr>
          </thead>
          <tbody>
            {checks.map((check, index) => (
              <CheckRow key={index} check={check} />
            ))}
          </tbody>
        </table>
      </section>
      <section aria-labelledby="raw">
        <h3 id="raw">receipt.json</h3>
        <p class="quiet">
          Holds your messages and the answer in the clear. Check it anywhere: <code>assay verify {fileName}</code>
        </p>
        <div class="row">
          <button type="button" class="button" onClick={() => download(fileName, evidence.text)}>
            <Icon name="save" /> Download
          </button>
          <CopyButton text={evidence.text} label="Copy JSON" />
          {turn.requestId && (
            <button type="button" class="small-button" onClick={() => void app.saveIncident(turn.requestId ?? "")}>
              <Icon name="save" size={15} /> Incident file
            </button>
          )}
        </div>
        <details class="raw">
          <summary>Show the JSON</summary>
          <pre tabIndex={0}>{pretty(bundle)}</pre>
        </details>
      </section>
    </>
  );
}

/** The proof of an answer: asked for, fetched and checked here. */
function ProofOf({ app, turn, arithmetic }: { app: App; turn: Turn; arithmetic: number }): JSX.Element | null {
  const proving = app.proving.get(turn.id);
  if (arithmetic === 0 || !turn.requestId) return null;
  const waiting = (text: string) => (
    <p class="quiet" role="status">
      <span class="spinner" aria-hidden="true" /> {text}
    </p>
  );
  const again = proving === undefined || proving.step === "failed";
  const holds = proving?.step === "done" && proving.report.state === "proved";
  return (
    <section aria-labelledby="proof">
      <h3 id="proof">Proof</h3>
      {proving?.step === "asked" && waiting("A worker makes the proof…")}
      {proving?.step === "fetching" && (
        <>
          {waiting(`Fetching the proof: ${size(proving.bytes)} of ${size(proving.of)}…`)}
          <progress class="wide" max={proving.of} value={proving.bytes} aria-label="Fetching the proof" />
        </>
      )}
      {proving?.step === "checking" && waiting(`Checking ${size(proving.of)} in this page: every step of the model between its products…`)}
      {proving?.step === "failed" && (
        <p>
          <Icon name="warning" size={16} /> {tidy(proving.why)}
        </p>
      )}
      {proving?.step === "done" && (
        <>
          <ul class={`plain-list ${holds ? "ticks" : "crosses"}`} data-proof={proving.report.state}>
            {(holds ? proving.report.proves : proving.report.checks.filter((check) => check.outcome === "failed").map((check) => check.detail)).map(
              (line) => (
                <li key={line}>
                  <Icon name={holds ? "check" : "cross"} size={16} />
                  <span>{tidy(line)}</span>
                </li>
              ),
            )}
            {holds &&
              proving.report.trusted.map((line) => (
                <li key={line}>
                  <Icon name="people" size={16} />
                  <span>{tidy(line)}</span>
                </li>
              ))}
          </ul>
          <p class="quiet">
            {size(proving.of)}, checked in this page in {duration(proving.checkMs)} with the key <code title={proving.key}>{short(proving.key)}</code>.
            {(turn.state === "mismatch" || turn.state === "failed") && " It is about the answer in the receipt, which is not what this page shows."}
          </p>
        </>
      )}
      {again && (
        <>
          <p class="quiet">
            A worker proves, at its price, that the answer is the model's. The proof is checked here, without the model and without trust in
            any worker.
          </p>
          <button type="button" class="button" onClick={() => void app.prove(turn.id)}>
            <Icon name="checks" /> Check a proof
          </button>
        </>
      )}
    </section>
  );
}

function CheckRow({ check }: { check: Check }): JSX.Element {
  const words = { passed: "passed", failed: "failed", skipped: "skipped", not_counted: "not counted" } as const;
  const icons = { passed: "check", failed: "cross", skipped: "dash", not_counted: "dash" } as const;
  return (
    <tr class={`check-${check.outcome}`}>
      <td>
        <Icon name={icons[check.outcome]} size={16} />
        <span class="off-screen">{words[check.outcome]}</span>
      </td>
      <th scope="row">{checkTitle(check.name)}</th>
      <td>{tidy(check.detail)}</td>
    </tr>
  );
}

function speed(tokens: number, ms: number): string {
  return ms > 0 && tokens > 1 ? `${(((tokens - 1) * 1_000) / ms).toFixed(1)} tokens a second` : "too short to tell";
}

/** Bundles of long answers have thousands of signatures: enough is shown, the file has all. */
function pretty(bundle: Evidence["bundle"]): string {
  const { chunks, ...rest } = bundle;
  const shown = chunks.slice(0, 3);
  const json = JSON.stringify({ ...rest, chunks: shown }, null, 2);
  return chunks.length > shown.length ? `${json}\n// ${chunks.length - shown.length} more chunks are in the file` : json;
}
