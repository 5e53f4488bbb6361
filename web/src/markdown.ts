// Markdown of answers. Whatever a model writes is hostile until it went through the sanitiser: no scripts, no styles,
// no forms, and no images, whose addresses would tell others what was said here.

import DOMPurify from "dompurify";
import { Marked, type Token, type Tokens } from "marked";

/** A block of an answer: code, or sanitised HTML. */
export type Block = { kind: "code"; language: string; text: string } | { kind: "html"; html: string };

/** HTML that models write for lack of markdown; everything else is shown as the text that it is. */
const HARMLESS = /^<\/?(?:b|br|em|i|kbd|strong|sub|sup)\s*\/?>$/i;

const escape = (text: string) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");

const marked = new Marked({
  gfm: true,
  breaks: true,
  async: false,
  renderer: {
    // Named, not fetched: an image's address would tell its owner what was said here.
    image: ({ href, text }) => `<a href="${escape(href)}">image: ${escape(text || href)}</a>`,
    html: ({ text, block }) => (HARMLESS.test(text.trim()) ? text : block ? `<p>${escape(text)}</p>` : escape(text)),
  },
});

const ALLOWED = {
  ALLOWED_TAGS: [
    "a", "b", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "input", "kbd", "li",
    "ol", "p", "pre", "s", "strong", "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul",
  ],
  ALLOWED_ATTR: ["href", "title", "align", "start", "type", "checked", "disabled"],
  ADD_URI_SAFE_ATTR: ["type", "align", "start", "checked", "disabled"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
};

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") {
    // Without an address of another site it is no link: answers must not lead around in this page.
    if (node.hasAttribute("href")) {
      node.setAttribute("target", "_blank");
      node.setAttribute("rel", "noopener noreferrer nofollow");
    }
  }
  if (node.tagName === "INPUT") {
    // Task lists have boxes; anything else that takes input is no part of an answer.
    if (node.getAttribute("type") !== "checkbox") node.remove();
    else node.setAttribute("disabled", "");
  }
});

const cache = new Map<string, Block>();
const CACHE_MAX = 2_000;

function block(token: Token): Block {
  if (token.type === "code") {
    const { lang, text } = token as Tokens.Code;
    return { kind: "code", language: (lang ?? "").split(/\s/)[0] ?? "", text };
  }
  const known = cache.get(token.raw);
  if (known) return known;
  const html = DOMPurify.sanitize(marked.parser([token]), ALLOWED);
  const made: Block = { kind: "html", html };
  // Links by reference depend on other blocks, so that their HTML does not follow from the text of the block alone.
  if (!token.raw.includes("][") && !token.raw.includes("]")) {
    if (cache.size >= CACHE_MAX) cache.clear();
    cache.set(token.raw, made);
  }
  return made;
}

/** Splits an answer into blocks. */
export function blocks(text: string): Block[] {
  return marked
    .lexer(text)
    .filter((token) => token.type !== "space" && token.type !== "def")
    .map(block);
}
