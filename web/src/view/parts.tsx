import type { ComponentChildren, JSX } from "preact";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";

import { blocks } from "../markdown";
import { Icon, type IconName } from "./icons";

/** A button that is only a drawing; its label is read out and shown as a tooltip. */
export function IconButton(props: {
  icon: IconName;
  label: string;
  onClick: () => void;
  disabled?: boolean;
  pressed?: boolean;
  class?: string;
  expanded?: boolean;
}): JSX.Element {
  return (
    <button
      type="button"
      class={`icon-button ${props.class ?? ""}`}
      aria-label={props.label}
      title={props.label}
      aria-pressed={props.pressed}
      aria-expanded={props.expanded}
      disabled={props.disabled}
      onClick={props.onClick}
    >
      <Icon name={props.icon} />
    </button>
  );
}

/** Copies a text and says so for a moment. */
export function CopyButton({ text, label = "Copy", plain = false }: { text: string; label?: string; plain?: boolean }): JSX.Element {
  const [done, setDone] = useState<"yes" | "no" | null>(null);
  const timer = useRef<ReturnType<typeof setTimeout> | undefined>(undefined);
  useEffect(() => () => clearTimeout(timer.current), []);
  const copy = () => {
    void copyText(text).then((copied) => {
      setDone(copied ? "yes" : "no");
      clearTimeout(timer.current);
      timer.current = setTimeout(() => setDone(null), 1_600);
    });
  };
  const word = done === "yes" ? "Copied" : done === "no" ? "Not copied" : label;
  return (
    <button type="button" class={plain ? "icon-button" : "small-button"} onClick={copy} aria-label={word} title={word}>
      <Icon name={done === "yes" ? "check" : "copy"} size={plain ? 18 : 15} />
      {!plain && <span>{word}</span>}
    </button>
  );
}

async function copyText(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Not allowed, or the page came over plain HTTP from another machine: the old way.
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "off-screen";
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
}

/** An answer. */
export function Markdown({ text }: { text: string }): JSX.Element {
  // A stream redraws the page often, and a long conversation has many answers that did not change.
  const parts = useMemo(() => blocks(text), [text]);
  return (
    <div class="markdown">
      {parts.map((block, index) =>
        block.kind === "code" ? (
          <figure class="code" key={index}>
            <figcaption>
              <span>{block.language || "text"}</span>
              <CopyButton text={block.text} label="Copy code" />
            </figcaption>
            <pre tabIndex={0}>
              <code>{block.text}</code>
            </pre>
          </figure>
        ) : (
          <Html key={index} html={block.html} />
        ),
      )}
    </div>
  );
}

function Html({ html }: { html: string }): JSX.Element {
  const ref = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    // Sanitised in `blocks`. Set here so that a block whose text did not change keeps its nodes and one's selection.
    if (ref.current) ref.current.innerHTML = html;
  }, [html]);
  return <div class="block" ref={ref} />;
}

/** A dialog of the browser's own kind: it traps the focus, closes on Escape and gives the focus back. */
export function Modal(props: { title: string; onClose: () => void; children: ComponentChildren }): JSX.Element {
  const ref = useRef<HTMLDialogElement>(null);
  useLayoutEffect(() => {
    const dialog = ref.current;
    dialog?.showModal();
    return () => {
      dialog?.close();
      // Chromium gives the focus back but, when one had typed in the dialog, not the caret: keys would go nowhere.
      queueMicrotask(() => {
        const { activeElement } = document;
        if (!(activeElement instanceof HTMLElement) || activeElement === document.body) return;
        activeElement.blur();
        activeElement.focus({ preventScroll: true });
      });
    };
  }, []);
  return (
    <dialog
      ref={ref}
      class="modal"
      aria-label={props.title}
      onClose={props.onClose}
      onClick={(event) => {
        if (event.target === ref.current) ref.current?.close();
      }}
    >
      <div class="modal-body">
        <header class="panel-head">
          <h2>{props.title}</h2>
          <IconButton icon="close" label="Close" onClick={() => ref.current?.close()} />
        </header>
        {props.children}
      </div>
    </dialog>
  );
}
