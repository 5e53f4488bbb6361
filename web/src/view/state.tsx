import type { JSX } from "preact";

import type { AnswerState, Turn } from "../conversation";
import { moment } from "../format";
import { place } from "../judge";
import { Icon, type IconName } from "./icons";

/** How each state looks: never by colour alone. */
export const LOOKS: Record<AnswerState, { icon: IconName; word: string; tone: string }> = {
  streaming: { icon: "clock", word: "Answering", tone: "quiet" },
  checking: { icon: "clock", word: "Checking", tone: "quiet" },
  signed: { icon: "check", word: "Signed", tone: "signed" },
  replayed: { icon: "checks", word: "Replayed", tone: "good" },
  mismatch: { icon: "warning", word: "Mismatch", tone: "bad" },
  failed: { icon: "cross", word: "Not verified", tone: "bad" },
  stopped: { icon: "stop", word: "Stopped", tone: "quiet" },
  error: { icon: "warning", word: "Error", tone: "bad" },
};

/** The state of an answer in a few words. */
export function stateText(turn: Turn): string {
  const verdict = turn.verdict;
  switch (turn.state) {
    case "streaming":
      return "Answering…";
    case "checking":
      return "Checking the receipt…";
    case "signed":
      return `Signed by ${verdict?.operator ?? "the worker"}`;
    case "replayed":
      return `Replayed by ${verdict?.auditors.join(" and ") || "an auditor"}${
        verdict?.auditedAtMs ? ` · ${moment(verdict.auditedAtMs, "minute")}` : ""
      }`;
    case "mismatch":
      return verdict?.difference
        ? `Mismatch at ${place(verdict.difference.field, verdict.difference.position)}`
        : "Mismatch";
    case "failed":
      return "Not verified";
    case "stopped":
      return "Stopped: no receipt for a broken answer";
    default:
      return "Error";
  }
}

/** The state beside an answer; opens its receipt. */
export function StateBadge(props: { turn: Turn; open: boolean; onOpen: () => void }): JSX.Element | null {
  const { turn } = props;
  const state = turn.state;
  if (!state || state === "streaming" || state === "error") return null;
  const look = LOOKS[state];
  const text = stateText(turn);
  if (state === "stopped") {
    return (
      <span class="badge tone-quiet">
        <Icon name={look.icon} size={15} />
        <span>{text}</span>
      </span>
    );
  }
  return (
    <button
      type="button"
      class={`badge tone-${look.tone}`}
      data-state={state}
      aria-expanded={props.open}
      aria-label={`${text}. Show the receipt`}
      onClick={props.onOpen}
    >
      {state === "checking" ? <span class="spinner" aria-hidden="true" /> : <Icon name={look.icon} size={15} />}
      <span>{text}</span>
    </button>
  );
}
