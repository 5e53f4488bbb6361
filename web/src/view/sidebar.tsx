import type { JSX } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";

import type { App } from "../app";
import type { Conversation } from "../conversation";
import { Icon, Mark } from "./icons";
import { IconButton } from "./parts";

/** The conversations that this browser keeps. */
export function Sidebar({ app }: { app: App }): JSX.Element {
  const kept = app.conversations.filter((each) => each.turns.length > 0);
  return (
    <nav class="sidebar" aria-label="Conversations">
      <div class="brand">
        <Mark />
        <span>Assay</span>
        <IconButton icon="close" label="Close the list" class="narrow-only" onClick={() => app.toggleSidebar()} />
      </div>
      <button type="button" class="button new" onClick={() => app.newConversation()}>
        <Icon name="plus" /> New conversation <kbd class="wide-only">Ctrl K</kbd>
      </button>
      <ul class="conversations">
        {kept.map((conversation) => (
          <Entry key={conversation.id} app={app} conversation={conversation} />
        ))}
      </ul>
      {kept.length === 0 && <p class="quiet small pad">Conversations stay in this browser.</p>}
      {!app.lasting && <p class="quiet small pad">This browser keeps nothing: conversations end with the page.</p>}
      <div class="sidebar-foot">
        <button type="button" class="ghost" onClick={() => app.show(app.panel?.kind === "workers" ? null : { kind: "workers" })}>
          <Icon name="people" /> Workers
        </button>
        <a class="ghost" href="/models.html">
          <Icon name="checks" /> Models with proofs
        </a>
        <button type="button" class="ghost" onClick={() => app.openDialog("settings")}>
          <Icon name="gear" /> Settings
        </button>
        <button type="button" class="ghost" onClick={() => app.openDialog("shortcuts")}>
          <Icon name="help" /> Shortcuts
        </button>
      </div>
    </nav>
  );
}

function Entry({ app, conversation }: { app: App; conversation: Conversation }): JSX.Element {
  const [renaming, setRenaming] = useState(false);
  const input = useRef<HTMLInputElement>(null);
  const current = conversation.id === app.current;
  useLayoutEffect(() => {
    if (renaming) input.current?.select();
  }, [renaming]);
  if (renaming) {
    const done = (keep: boolean) => {
      if (keep) app.rename(conversation.id, input.current?.value ?? "");
      setRenaming(false);
    };
    return (
      <li class="entry current">
        <input
          ref={input}
          class="rename"
          aria-label="Title of the conversation"
          defaultValue={conversation.title}
          maxLength={80}
          onBlur={() => done(true)}
          onKeyDown={(event) => {
            if (event.key === "Enter") done(true);
            if (event.key === "Escape") {
              event.stopPropagation();
              done(false);
            }
          }}
        />
      </li>
    );
  }
  const wrong = conversation.turns.some((turn) => turn.state === "mismatch");
  return (
    <li class={`entry ${current ? "current" : ""}`}>
      <button type="button" class="entry-open" aria-current={current ? "true" : undefined} onClick={() => app.open(conversation.id)} title={conversation.title}>
        {app.running.has(conversation.id) && <span class="spinner" aria-label="answering" />}
        {wrong && (
          <span class="bad-text" title="Holds a mismatch">
            <Icon name="warning" size={14} />
          </span>
        )}
        <span class="entry-title">{conversation.title}</span>
      </button>
      <span class="entry-actions">
        <IconButton icon="edit" label={`Rename "${conversation.title}"`} onClick={() => setRenaming(true)} />
        <IconButton icon="save" label={`Export "${conversation.title}"`} onClick={() => app.export(conversation.id)} />
        <IconButton icon="trash" label={`Delete "${conversation.title}"`} onClick={() => app.remove(conversation.id)} />
      </span>
    </li>
  );
}
