// Markdown to elements. marked only splits the text into tokens; every element is made here, so HTML in an answer is
// shown as it was written, and pictures of other servers are links.

import { action, el } from "./dom.js";
import { Lexer } from "./vendor/marked.js";

const LONGEST = 200_000; // a longer text is shown as it is
const SAFE_LINK = /^(https?:|mailto:)/i;

/** The elements of a text. */
export function render(text) {
  if (text.length > LONGEST) return [el("p", { class: "plain-words" }, text)];
  const tokens = Lexer.lex(text, { gfm: true, breaks: true });
  const depths = [...new Set(tokens.filter(({ type }) => type === "heading").map(({ depth }) => depth))].sort();
  for (const token of tokens) if (token.type === "heading") token.depth = depths.indexOf(token.depth) + 2; // no rank is left out below the page's h1
  return blocks(tokens);
}

const blocks = (tokens) => tokens.map(block).filter(Boolean);

function block(token) {
  switch (token.type) {
    case "space":
    case "def":
      return null;
    case "heading":
      return el(`h${Math.min(6, token.depth)}`, {}, ...inline(token.tokens));
    case "paragraph":
      return el("p", {}, ...inline(token.tokens));
    case "blockquote":
      return el("blockquote", {}, ...blocks(token.tokens));
    case "code":
      return code(token);
    case "hr":
      return el("hr");
    case "list":
      return list(token);
    case "table":
      return table(token);
    default: // html and what a later marked may know
      return el("p", { class: "plain-words" }, token.raw.trimEnd());
  }
}

function code({ lang, text }) {
  const name = (lang ?? "").split(/\s/)[0];
  const copy = action("copy", "Copy code", async () => {
    const said = await navigator.clipboard.writeText(text).then(() => "Copied", () => "Not allowed");
    copy.lastElementChild.textContent = said;
    setTimeout(() => (copy.lastElementChild.textContent = "Copy code"), 1500);
  });
  // what is wider than the page is scrolled: by the keyboard, too
  const box = el("pre", { tabIndex: 0, role: "region", "aria-label": name ? `Code, ${name}` : "Code" }, el("code", {}, text));
  return el("div", { class: "code" }, el("div", { class: "code-head" }, el("span", {}, name), copy), box);
}

function list({ ordered, start, items }) {
  const made = el(ordered ? "ol" : "ul", {}, ...items.map((item) => el("li", {}, ...item.tokens.flatMap(inItem))));
  if (ordered && start !== "" && start !== 1) made.start = start;
  return made;
}

/** A part of a list's item: words of a tight item are no paragraph of their own. */
function inItem(token) {
  if (token.type === "checkbox") return [token.checked ? "☑ " : "☐ "];
  return token.type === "text" ? (token.tokens ? inline(token.tokens) : [token.text]) : blocks([token]);
}

function table({ header, rows }) {
  const cell = (tag) => (one) => {
    const made = el(tag, {}, ...inline(one.tokens));
    if (one.align) made.classList.add(`to-${one.align}`);
    return made;
  };
  const head = el("thead", {}, el("tr", {}, ...header.map(cell("th"))));
  const body = el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map(cell("td")))));
  return el("div", { class: "table", tabIndex: 0, role: "region", "aria-label": "Table" }, el("table", {}, head, body));
}

const inline = (tokens = []) => tokens.map(span);

function span(token) {
  switch (token.type) {
    case "text":
    case "escape":
      return token.tokens ? el("span", {}, ...inline(token.tokens)) : token.text;
    case "strong":
    case "em":
    case "del":
      return el(token.type, {}, ...inline(token.tokens));
    case "codespan":
      return el("code", {}, token.text);
    case "br":
      return el("br");
    case "link":
      return link(token.href, inline(token.tokens)) ?? token.raw;
    case "image":
      return link(token.href, [token.text || token.href]) ?? token.raw;
    default:
      return token.raw;
  }
}

/** A link that opens beside the page; null for an address that is none of the web or of mail. */
function link(href, children) {
  if (!SAFE_LINK.test(href)) return null;
  return el("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
}
