import "./styles.css";

import { type JSX, render } from "preact";
import { useEffect, useLayoutEffect, useReducer, useRef } from "preact/hooks";

import { App, focusComposer } from "./app";
import { Chat } from "./view/chat";
import { SettingsDialog, ShortcutsDialog } from "./view/dialogs";
import { Icon } from "./view/icons";
import { IconButton } from "./view/parts";
import { ReceiptPanel } from "./view/receipt";
import { Sidebar } from "./view/sidebar";
import { WorkersPanel } from "./view/workers";

function Page({ app }: { app: App }): JSX.Element {
  const [, draw] = useReducer((count: number, _: void) => count + 1, 0);
  useEffect(() => app.subscribe(() => draw(undefined)), [app]);
  useEffect(() => {
    const listener = (event: KeyboardEvent) => onKey(app, event);
    document.addEventListener("keydown", listener);
    return () => document.removeEventListener("keydown", listener);
  }, [app]);
  const receiptTurn = app.panel?.kind === "receipt" ? app.turn(app.panel.turn)?.turn : undefined;
  const caught = app.workers?.filter((worker) => worker.suspended).length ?? 0;
  return (
    <div class={`page ${app.sidebar ? "with-sidebar" : ""} ${app.panel ? "with-panel" : ""}`}>
      <a class="skip" href="#composer" onClick={(event) => { event.preventDefault(); focusComposer(); }}>
        Skip to the message field
      </a>
      <Sidebar app={app} />
      {app.sidebar && <button type="button" class="shade" aria-label="Close the list" onClick={() => app.toggleSidebar()} />}
      <main class="main">
        <header class="top">
          <IconButton icon="menu" label="Conversations" class="narrow-only" expanded={app.sidebar} onClick={() => app.toggleSidebar()} />
          <h1 class="top-title">{app.conversation.turns.length === 0 ? "Assay" : app.conversation.title}</h1>
          <button type="button" class={`ghost ${caught > 0 ? "bad-text" : ""}`} onClick={() => app.show(app.panel?.kind === "workers" ? null : { kind: "workers" })} aria-expanded={app.panel?.kind === "workers"} aria-label={caught > 0 ? `Workers: ${caught} caught` : undefined}>
            <Icon name="people" />
            <span>
              {caught > 0 && <span class="wide-only">Workers: </span>}
              {caught > 0 ? `${caught} caught` : "Workers"}
            </span>
          </button>
          <ThemeButton app={app} />
        </header>
        {app.ready && <Chat app={app} />}
      </main>
      {app.panel && (
        <Side key={app.panel.kind === "receipt" ? app.panel.turn : "workers"} label={app.panel.kind === "receipt" ? "Receipt" : "Workers"}>
          {app.panel.kind === "workers" && <WorkersPanel app={app} />}
          {receiptTurn && <ReceiptPanel app={app} turn={receiptTurn} />}
        </Side>
      )}
      {app.dialog === "settings" && <SettingsDialog app={app} />}
      {app.dialog === "shortcuts" && <ShortcutsDialog app={app} />}
      <div class="off-screen" role="status" aria-live="polite">
        {app.announcement}
      </div>
      {app.toast && (
        <div class="toast" role="region" aria-label="Message">
          <span>{app.toast.text}</span>
          {app.toast.undo && (
            <button type="button" class="ghost" onClick={() => { app.toast?.undo?.(); app.dismiss(); }}>
              Undo
            </button>
          )}
          <IconButton icon="close" label="Dismiss" onClick={() => app.dismiss()} />
        </div>
      )}
    </div>
  );
}

/** A panel at the side: takes the focus when it opens and gives it back when it closes. */
function Side(props: { label: string; children: preact.ComponentChildren }): JSX.Element {
  const ref = useRef<HTMLElement>(null);
  useLayoutEffect(() => {
    const before = document.activeElement;
    ref.current?.focus({ preventScroll: true });
    return () => {
      if (before instanceof HTMLElement && before.isConnected && before !== document.body) before.focus({ preventScroll: true });
      else focusComposer();
    };
  }, []);
  return (
    <aside class="panel" ref={ref} tabIndex={-1} aria-label={props.label}>
      {props.children}
    </aside>
  );
}

function ThemeButton({ app }: { app: App }): JSX.Element {
  const dark = app.theme === "dark" || (app.theme === "system" && matchMedia("(prefers-color-scheme: dark)").matches);
  return <IconButton icon={dark ? "sun" : "moon"} label={dark ? "Light mode" : "Dark mode"} onClick={() => app.setTheme(dark ? "light" : "dark")} />;
}

function onKey(app: App, event: KeyboardEvent): void {
  if (event.defaultPrevented || event.isComposing) return;
  const writing = event.target instanceof HTMLElement && /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
  const control = event.ctrlKey || event.metaKey;
  const handled = () => event.preventDefault();
  if (control && !event.shiftKey && !event.altKey && event.key.toLowerCase() === "k") {
    handled();
    app.openDialog(null);
    app.newConversation();
  } else if (event.altKey && !control && !app.dialog) {
    // `code` rather than `key`: with Alt some layouts type another letter.
    switch (event.code) {
      case "KeyR":
        handled();
        app.regenerate();
        break;
      case "KeyP":
        handled();
        if (app.panel?.kind === "receipt") app.show(null);
        else app.showLastReceipt();
        break;
      case "KeyW":
        handled();
        app.show(app.panel?.kind === "workers" ? null : { kind: "workers" });
        break;
      case "KeyS":
        handled();
        app.openDialog("settings");
        break;
    }
  } else if (event.key === "Escape" && !app.dialog) {
    if (app.sidebar) app.toggleSidebar();
    else if (app.busy) app.stop();
    else if (app.panel) app.show(null);
    else return;
    handled();
  } else if (!writing && !control && !event.altKey && !app.dialog) {
    if (event.key === "?") {
      handled();
      app.openDialog("shortcuts");
    } else if (event.key === "/") {
      handled();
      focusComposer();
    }
  }
}

const root = document.getElementById("app");
if (root) {
  const app = new App();
  render(<Page app={app} />, root);
  void app.start();
}
