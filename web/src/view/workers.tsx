import type { JSX } from "preact";

import type { App } from "../app";
import { count, duration, moment, opg, short } from "../format";
import { found, place } from "../judge";
import type { Standing } from "../wire";
import { Icon } from "./icons";
import { IconButton } from "./parts";

/** The workers and how they did so far. */
export function WorkersPanel({ app }: { app: App }): JSX.Element {
  const { workers } = app;
  const list = app.roster?.members.statement;
  return (
    <>
      <header class="panel-head">
        <h2>Workers</h2>
        <IconButton icon="close" label="Close the workers (Esc)" onClick={() => app.show(null)} />
      </header>
      <div class="panel-body">
        <p class="quiet">
          Who answers, and how often others repeated their answers and got the same. A worker that is caught is suspended at
          once and not paid for what it was caught with.
        </p>
        {app.workersTrouble && (
          <div class="notice bad" role="alert">
            <Icon name="warning" />
            <p>{workers ? `These records are old. ${app.workersTrouble}` : app.workersTrouble}</p>
          </div>
        )}
        {workers === null && !app.workersTrouble && (
          <p class="quiet">
            <span class="spinner" aria-hidden="true" /> Reading the records…
          </p>
        )}
        {workers?.length === 0 && <p>No worker is on the list.</p>}
        {workers !== null && workers.length > 0 && (
          <div class="table-scroll" tabIndex={0} role="region" aria-label="Workers' records">
            <table class="workers">
              <thead>
                <tr>
                  <th scope="col">Operator</th>
                  <th scope="col" class="number">
                    Served
                  </th>
                  <th scope="col" class="number">
                    Agreed
                  </th>
                  <th scope="col" class="number">
                    Differed
                  </th>
                </tr>
              </thead>
              <tbody>
                {workers.toSorted((a, b) => Number(b.suspended !== null) - Number(a.suspended !== null)).map((worker) => (
                  <Row key={worker.worker} app={app} worker={worker} />
                ))}
              </tbody>
            </table>
          </div>
        )}
        {list && (
          <section aria-labelledby="list">
            <h3 id="list">The list of workers</h3>
            <table class="facts">
              <tbody>
                <tr>
                  <th scope="row">Edition</th>
                  <td>{list.serial}</td>
                </tr>
                <tr>
                  <th scope="row">Signer</th>
                  <td>
                    <code title={app.roster?.signer}>{short(app.roster?.signer ?? "")}</code>{" "}
                    {app.signerChanged ? <strong class="bad-text">not the one this browser remembers</strong> : <span class="quiet">as remembered</span>}
                  </td>
                </tr>
                <tr>
                  <th scope="row">Issued</th>
                  <td>{moment(list.issued_at_s * 1_000)}</td>
                </tr>
                <tr>
                  <th scope="row">Expires</th>
                  <td>{moment(list.expires_at_s * 1_000)}</td>
                </tr>
                <tr>
                  <th scope="row">Domain</th>
                  <td>
                    chain {app.roster?.domain.chain_id}, <code title={app.roster?.domain.contract}>{short(app.roster?.domain.contract ?? "")}</code>
                  </td>
                </tr>
              </tbody>
            </table>
          </section>
        )}
      </div>
    </>
  );
}

function Row({ app, worker }: { app: App; worker: Standing }): JSX.Element {
  const { suspended } = worker;
  const state = suspended
    ? "Suspended"
    : worker.accused
      ? "Accused"
      : worker.resting
        ? "Resting"
        : worker.inFlight > 0
          ? "Answering"
          : "Ready";
  const tone = suspended ? "bad" : worker.resting ? "quiet" : "good";
  return (
    <>
      <tr class={suspended ? "caught" : ""} data-operator={worker.operator}>
        <th scope="row">
          {worker.operator}
          <code title={worker.worker}>{short(worker.worker)}</code>
          <span class={`chip tone-${tone}`}>
            <Icon name={suspended ? "cross" : worker.resting ? "clock" : "check"} size={13} /> {state}
          </span>
        </th>
        <td class="number">{worker.served}</td>
        <td class="number">{worker.agreed}</td>
        <td class={`number ${worker.differed > 0 ? "bad-text" : ""}`}>{worker.differed}</td>
      </tr>
      {(suspended || worker.firstTokenMs !== null || worker.failures > 0 || worker.disputed > 0) && (
        <tr class={suspended ? "caught note" : "note"}>
          <td colSpan={4}>
            {worker.firstTokenMs !== null && !suspended && (
              <p>
                {duration(worker.firstTokenMs)} to the first token
                {worker.tokenMs !== null && worker.tokenMs > 0 ? `, then ${(1_000 / worker.tokenMs).toFixed(0)} tokens a second` : ""}
              </p>
            )}
            {suspended && (
              <p>
                Caught {moment(suspended.at_ms)} by {suspended.auditors.map((auditor) => app.operatorOf(auditor)).join(" and ") || "an auditor"} at{" "}
                {place(suspended.field, suspended.position)}: claimed {found(suspended.field, suspended.claimed)}, the model gives{" "}
                {found(suspended.field, suspended.expected)}. Not paid: <strong>{opg(worker.withheld)}</strong>. Earned with other
                answers: {opg(worker.earned)}.
              </p>
            )}
            {suspended && (
              <p class="row case">
                <span>
                  Request <code class="break">{suspended.request_id}</code>
                </span>
                <button type="button" class="small-button" onClick={() => void app.saveIncident(suspended.request_id)}>
                  <Icon name="save" size={15} /> Incident file
                </button>
              </p>
            )}
            {worker.failures > 0 && (
              <p>
                {count(worker.failures, "broken answer")}
                {worker.lastFault ? `; the latest: ${worker.lastFault}` : ""}
              </p>
            )}
            {worker.disputed > 0 && <p>{count(worker.disputed, "audit")} of its own contradicted by a second auditor</p>}
          </td>
        </tr>
      )}
    </>
  );
}
