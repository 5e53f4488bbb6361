import type { JSX } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

import { type App, focusComposer } from "../app";
import type { Turn } from "../conversation";
import { Icon, Mark } from "./icons";
import { CopyButton, IconButton, Markdown } from "./parts";
import { StateBadge } from "./state";

const PROMPTS = [
  { title: "Explain", text: "Explain in three sentences what a digital signature proves and what it does not." },
  { title: "Write", text: "Write a short, friendly note that asks a colleague to review my change before Friday." },
  { title: "Code", text: "Write a Python function that returns the n-th Fibonacci number, with a short explanation." },
  { title: "Compare", text: "Compare tea and coffee in a small table: taste, caffeine, preparation." },
];

/** The conversation on screen. */
export function Chat({ app }: { app: App }): JSX.Element {
  const { conversation } = app;
  const scroller = useRef<HTMLDivElement>(null);
  const pinned = useRef(true);
  const [away, setAway] = useState(false);
  const last = conversation.turns.at(-1);

  useEffect(() => {
    pinned.current = true;
  }, [conversation.id, conversation.turns.length]);
  useLayoutEffect(() => {
    const node = scroller.current;
    if (node && pinned.current) node.scrollTop = conversation.turns.length === 0 ? 0 : node.scrollHeight;
  }, [conversation.id, conversation.turns.length, last?.text.length, last?.state]);

  // What changes the height otherwise: a panel that opens, a verdict that arrives.
  useEffect(() => {
    const node = scroller.current;
    if (!node) return;
    const observer = new ResizeObserver(() => {
      if (pinned.current && node.querySelector(".turns")) node.scrollTop = node.scrollHeight;
    });
    observer.observe(node);
    if (node.firstElementChild) observer.observe(node.firstElementChild);
    return () => observer.disconnect();
  }, [conversation.id, conversation.turns.length === 0]);

  const toEnd = () => {
    const node = scroller.current;
    if (node) node.scrollTop = node.scrollHeight;
  };
  return (
    <div class="chat">
      <div
        class="transcript"
        ref={scroller}
        onScroll={(event) => {
          const node = event.currentTarget;
          pinned.current = node.scrollHeight - node.scrollTop - node.clientHeight < 60;
          setAway(!pinned.current);
        }}
      >
        {conversation.turns.length === 0 ? (
          <Empty app={app} />
        ) : (
          <ol class="turns" aria-label="Conversation">
            {conversation.turns.map((turn) =>
              turn.role === "user" ? (
                <Question key={turn.id} app={app} turn={turn} />
              ) : (
                <Answer key={turn.id} app={app} turn={turn} />
              ),
            )}
          </ol>
        )}
      </div>
      {away && conversation.turns.length > 0 && (
        <button type="button" class="to-end" onClick={toEnd} aria-label="Go to the end" title="Go to the end">
          <Icon name="down" />
        </button>
      )}
      <Composer app={app} />
    </div>
  );
}

function Empty({ app }: { app: App }): JSX.Element {
  return (
    <div class="empty">
      <Mark size={52} />
      <h1>Ask a model. Check its answer.</h1>
      <p>
        Every answer comes with a signed receipt that this page checks. Other operators repeat answers bit for bit, and a
        worker that gave a wrong one is caught.
      </p>
      <div class="samples">
        {PROMPTS.map((prompt) => (
          <button key={prompt.title} type="button" class="sample" onClick={() => app.send(prompt.text)} disabled={app.models.length === 0}>
            <strong>{prompt.title}</strong>
            <span>{prompt.text}</span>
          </button>
        ))}
      </div>
    </div>
  );
}

function Question({ app, turn }: { app: App; turn: Turn }): JSX.Element {
  if (app.editing === turn.id) return <Editor app={app} turn={turn} />;
  return (
    <li class="turn question">
      <div class="bubble">
        <span class="off-screen">You: </span>
        {turn.text}
      </div>
      <div class="actions">
        <CopyButton text={turn.text} label="Copy the question" plain />
        <IconButton icon="edit" label="Edit the question" disabled={app.busy} onClick={() => app.edit(turn.id)} />
      </div>
    </li>
  );
}

function Editor({ app, turn }: { app: App; turn: Turn }): JSX.Element {
  const [text, setText] = useState(turn.text);
  const area = useRef<HTMLTextAreaElement>(null);
  // Before the next key can arrive, which would otherwise land in the field below.
  useLayoutEffect(() => {
    area.current?.focus();
    area.current?.setSelectionRange(turn.text.length, turn.text.length);
  }, []);
  useLayoutEffect(() => grow(area.current, 320), [text]);
  return (
    <li class="turn question editing">
      <form
        class="editor"
        onSubmit={(event) => {
          event.preventDefault();
          app.resend(turn.id, text);
        }}
      >
        <textarea
          ref={area}
          aria-label="Edit the question; what came after it will be asked anew"
          value={text}
          rows={1}
          onInput={(event) => setText(event.currentTarget.value)}
          onKeyDown={(event) => {
            if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
              event.preventDefault();
              app.resend(turn.id, text);
            } else if (event.key === "Escape") {
              event.preventDefault();
              event.stopPropagation();
              app.edit(null);
            }
          }}
        />
        <div class="row end">
          <button type="button" class="button" onClick={() => app.edit(null)}>
            Cancel
          </button>
          <button type="submit" class="button primary" disabled={text.trim() === ""}>
            Ask anew
          </button>
        </div>
      </form>
    </li>
  );
}

function Answer({ app, turn }: { app: App; turn: Turn }): JSX.Element {
  const streaming = turn.state === "streaming";
  const open = app.panel?.kind === "receipt" && app.panel.turn === turn.id;
  const show = () => app.show(open ? null : { kind: "receipt", turn: turn.id });
  return (
    <li class={`turn answer ${turn.state === "mismatch" ? "wrong" : ""}`} aria-busy={streaming}>
      <span class="off-screen">{turn.asked?.model ?? "Model"}: </span>
      {turn.text !== "" && <Markdown text={turn.text} />}
      {streaming && turn.text === "" && (
        <p class="waiting">
          <span class="dots" aria-hidden="true">
            <i />
            <i />
            <i />
          </span>
          {turn.asked?.level === "before_first_token" ? "Answering; another operator repeats it before it is shown…" : "Waiting for the first token…"}
        </p>
      )}
      {streaming && turn.text !== "" && turn.asked?.level === "before_end" && <p class="waiting quiet">A replay is checked before the end.</p>}
      {turn.state === "error" && (
        <div class="notice bad" role="alert">
          <Icon name="warning" />
          <p>{turn.error}</p>
          <button type="button" class="button" onClick={() => app.regenerate(turn.id)} disabled={app.busy}>
            <Icon name="again" /> Try again
          </button>
        </div>
      )}
      {turn.state === "mismatch" && turn.verdict && (
        <div class="notice bad" role="alert">
          <Icon name="warning" />
          <p>
            <strong>Do not rely on this answer.</strong> {turn.verdict.summary}
          </p>
          <button type="button" class="button" onClick={() => app.regenerate(turn.id)} disabled={app.busy}>
            <Icon name="again" /> Ask another worker
          </button>
        </div>
      )}
      {turn.state === "failed" && turn.verdict && (
        <div class="notice bad" role="alert">
          <Icon name="cross" />
          <p>{turn.verdict.summary}</p>
          <button type="button" class="button" onClick={() => void app.check(turn.id, true)}>
            <Icon name="again" /> Check again
          </button>
        </div>
      )}
      {turn.finish === "length" && !streaming && (
        <p class="quiet small limit">It stopped at the limit of {turn.asked?.maxTokens} tokens; the settings can raise it.</p>
      )}
      <div class="foot">
        <StateBadge turn={turn} open={open} onOpen={show} />
        {app.canReplay(turn) && (
          <button type="button" class="small-button" disabled={app.replaying.has(turn.id)} onClick={() => void app.replay(turn.id)}>
            {app.replaying.has(turn.id) ? <span class="spinner" aria-hidden="true" /> : <Icon name="checks" size={15} />}
            <span>{app.replaying.has(turn.id) ? "Replaying…" : "Replay now"}</span>
          </button>
        )}
        {!streaming && (
          <div class="actions">
            {turn.text !== "" && <CopyButton text={turn.text} label="Copy the answer" plain />}
            {turn.state !== "error" && <IconButton icon="again" label="Regenerate" disabled={app.busy} onClick={() => app.regenerate(turn.id)} />}
          </div>
        )}
      </div>
    </li>
  );
}

function Composer({ app }: { app: App }): JSX.Element {
  const [text, setText] = useState("");
  const area = useRef<HTMLTextAreaElement>(null);
  useLayoutEffect(() => grow(area.current, 220), [text]);
  useEffect(() => focusComposer(), []);
  const { replayable } = app;
  const submit = () => {
    if (app.busy || text.trim() === "" || app.settings.model === "") return;
    app.send(text);
    setText("");
  };
  return (
    <div class="composer-place">
      {app.trouble && (
        <div class="notice bad" role="alert">
          <Icon name="warning" />
          <p>{app.trouble}</p>
          <button type="button" class="button" onClick={() => void app.refresh()}>
            <Icon name="again" /> Try again
          </button>
        </div>
      )}
      {app.signerChanged && (
        <div class="notice bad" role="alert">
          <Icon name="warning" />
          <p>The list of workers names another signer or chain than this browser remembers, so no answer counts as verified.</p>
          <button type="button" class="button" onClick={() => app.openDialog("settings")}>
            Settings
          </button>
        </div>
      )}
      <form
        class="composer"
        onSubmit={(event) => {
          event.preventDefault();
          submit();
        }}
      >
        <textarea
          id="composer"
          ref={area}
          rows={1}
          value={text}
          placeholder="Ask something"
          aria-label="Your message. Enter sends, Shift and Enter makes a new line"
          onInput={(event) => setText(event.currentTarget.value)}
          onKeyDown={(event) => {
            if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
              event.preventDefault();
              submit();
            } else if (event.key === "ArrowUp" && text === "" && app.editLast()) {
              event.preventDefault();
            } else if (event.key === "?" && text === "") {
              event.preventDefault();
              app.openDialog("shortcuts");
            }
          }}
        />
        <div class="composer-row">
          <label class="pick">
            <span class="off-screen">Model</span>
            <select value={app.settings.model} onChange={(event) => app.set({ model: event.currentTarget.value })} disabled={app.models.length === 0}>
              {app.models.length === 0 && <option value="">No model</option>}
              {app.models.map((model) => (
                <option key={model.name} value={model.name}>
                  {model.name}
                  {model.replayable ? "" : " (signed only)"}
                </option>
              ))}
            </select>
          </label>
          <label class="pick">
            <span class="off-screen">When answers are checked</span>
            <select
              value={replayable ? app.settings.level : "sampled"}
              onChange={(event) => app.set({ level: event.currentTarget.value as App["settings"]["level"] })}
              title="When another operator repeats the answer"
            >
              <option value="sampled">{replayable ? "Replay a sample" : "Signed only"}</option>
              <option value="before_end" disabled={!replayable}>
                Replay before the end
              </option>
              <option value="before_first_token" disabled={!replayable}>
                Replay before showing
              </option>
            </select>
          </label>
          {app.busy ? (
            <button type="button" class="send stop" onClick={() => app.stop()} aria-label="Stop (Esc)" title="Stop (Esc)">
              <Icon name="stop" />
            </button>
          ) : (
            <button type="submit" class="send" disabled={text.trim() === "" || app.settings.model === ""} aria-label="Send (Enter)" title="Send (Enter)">
              <Icon name="send" />
            </button>
          )}
        </div>
      </form>
      <p class="hint">
        Models err. The receipt shows who answered and whether others got the same; not that it is true.
        <span class="wide-only">
          {" "}
          Press <kbd>?</kbd> for shortcuts.
        </span>
      </p>
    </div>
  );
}

function grow(area: HTMLTextAreaElement | null, heightMax: number): void {
  if (!area) return;
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight, heightMax)}px`;
  area.style.overflowY = area.scrollHeight > heightMax ? "auto" : "hidden";
}
