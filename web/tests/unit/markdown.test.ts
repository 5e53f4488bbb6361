// @vitest-environment jsdom
import { describe, expect, it } from "vitest";

import { type Block, blocks } from "../../src/markdown";

const html = (text: string) => blocks(text).map((block: Block) => (block.kind === "html" ? block.html : `CODE:${block.text}`)).join("");

describe("blocks", () => {
  it("renders what models write", () => {
    expect(html("# A\n\n**b** `c`\n\n- [x] d")).toMatch(/<h1>A<\/h1>[^]*<strong>b<\/strong> <code>c<\/code>[^]*type="checkbox"/);
    expect(blocks("```py title\nx<1\n```")).toEqual([{ kind: "code", language: "py", text: "x<1" }]);
    expect(html("[a][1]\n\n[1]: https://example.org")).toContain('href="https://example.org"');
    expect(html("a<br>b H<sub>2</sub>O")).toContain("H<sub>2</sub>O");
  });
  it("renders an answer that is not finished", () => {
    for (const text of ["", "```", "```js\nlet", "| a |", "**b", "[a](", "- "]) expect(() => blocks(text)).not.toThrow();
  });
  it("lets nothing through that acts", () => {
    const attacks = [
      "<script>alert(1)</script>", '<img src=x onerror="alert(1)">', "![p](https://t.example/x.png)", "[a](javascript:alert(1))",
      '<a href="javascript:alert(1)">x</a>', '<div style="position:fixed">x</div>', '<form action="/x"><input name=a><button>b</button></form>',
      '<iframe src="/"></iframe>', "<svg onload=alert(1)>", '<a href="data:text/html,x">x</a>', "[x](vbscript:x)", "<br onclick=alert(1)>",
      '<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>',
    ];
    for (const attack of attacks) {
      const node = document.createElement("div");
      node.innerHTML = html(`before ${attack} after\n\n${attack}`);
      expect(node.querySelectorAll("script,img,form,iframe,svg,math,style,button,[style],[onerror],[onload],[onclick]").length, attack).toBe(0);
      for (const link of node.querySelectorAll("a[href]")) expect(link.getAttribute("href"), attack).toMatch(/^https?:/);
    }
  });
  it("opens links elsewhere", () => {
    expect(html("https://example.org")).toContain('target="_blank" rel="noopener noreferrer nofollow"');
  });
});
