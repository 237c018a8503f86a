// What is on the page of a question and of an answer that is being written.

import { action, el, icon } from "./dom.js";
import { render } from "./markdown.js";
import { blobOf, isKnown, nounOf, suffixOf, typeOf } from "./media.js";
import { clipPlayer, soundPlayer } from "./player.js";
import { SourcesView } from "./sources.js";
import { zoom } from "./zoom.js";

const SMALL = 128; // pixels a side up to which a picture is shown enlarged, each pixel a square
const SHOWN = 256;

const kindOf = (part) => part.type.replace(/_url$/, "");

/** A picture, player, clip or file with what can be done with it. `url` is checked: anything but media is refused. */
export function mediaFigure(kind, url, called, { onCodes, onAsk, save = true, large = true } = {}) {
  const type = typeOf(url);
  const suffix = type ? suffixIn(type) : suffixOf(kind, url);
  if (suffix === null) return el("p", { class: "unusable" }, `A ${nounOf(kind)} came in a form that cannot be shown.`);
  const [view, toggle] = type ? player(type, url, called, large) : [el("p", { class: "file" }, icon("file"), called)];
  const figure = el("figure", { class: `media ${type?.split("/")[0] ?? "other"}` }, view);
  const buttons = el("figcaption", { class: "actions" });
  if (toggle) buttons.append(toggle);
  if (onCodes) buttons.append(action("codes", "Codes", onCodes, "Which code stands where, and what the first ones decode to"));
  if (onAsk) buttons.append(action("ask", "Ask", onAsk, "Attach it to the next question"));
  if (save) buttons.append(action("save", "Save", () => saveFile(url, suffix, called), "Save as a file"));
  if (buttons.childElementCount) figure.append(buttons);
  return figure;
}

function player(type, url, called, large) {
  if (type.startsWith("image/")) {
    const image = el("img", { alt: called, decoding: "async" });
    image.addEventListener("load", () => enlarge(image, image.naturalWidth));
    image.src = url;
    if (!large) return [image];
    return [el("button", { type: "button", class: "enlarge", title: "Enlarge", "aria-label": `Enlarge ${called}`, on: { click: () => zoom(url, called) } }, image)];
  }
  if (type.startsWith("audio/")) return [soundPlayer(url, called)];
  const { video, toggle } = clipPlayer(url, called, enlarge);
  return [video, toggle];
}

/** Small pictures in whole multiples of their size, so that every pixel stays a square. */
export function enlarge(element, width) {
  if (!width || width > SMALL) return;
  element.classList.add("crisp");
  element.style.width = `${Math.max(1, Math.floor(SHOWN / width)) * width}px`;
}

const suffixIn = (type) => type.split("/")[1].replace(/^x-/, "").replace("jpeg", "jpg").replace("mpeg", "mp3");

function saveFile(url, suffix, called) {
  const name = called.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40).toLowerCase() || "unimodal";
  download(blobOf(url), suffix ? `${name}.${suffix}` : name);
}

export function download(blob, name) {
  const address = URL.createObjectURL(blob);
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** The user's turn: words, small views of what was attached, and what the server says it left out of that. */
export class Question {
  constructor({ words, attached, notes }, { onCodes, onEdit }) {
    this.article = el("article", { class: "turn user", "aria-label": "You" });
    if (attached.length) {
      const views = attached.map(({ kind, url, name }) => mediaFigure(kind, url, name, { onCodes: () => onCodes(url), save: false }));
      this.article.append(el("div", { class: "given" }, ...views));
    }
    this.notes = el("ul", { class: "notes", "aria-label": "What the model was not shown" });
    this.article.append(this.notes);
    if (words) this.article.append(el("p", { class: "words" }, words));
    this.article.append(el("div", { class: "actions" }, action("edit", "Edit", onEdit, "Change this question and ask again")));
    this.note(notes);
  }

  note(notes) {
    this.notes.replaceChildren(...notes.map((note) => el("li", {}, note)));
  }
}

/** An answer while it is written and after: words, coarse pictures, finished media, then a line of actions. */
export class Answer {
  constructor(handlers) {
    this.handlers = handlers; // onCodes(url), onAsk(kind, url), onRetry(), onSettings(), onSources(text), hasMedia()
    this.parts = []; // what the next question is told of this answer
    this.partial = new Map();
    this.body = el("div", { class: "body" });
    this.waiting = el("p", { class: "waiting" }, el("span", { class: "squares", "aria-hidden": "true" }, el("i"), el("i"), el("i"), el("i")), el("span", {}, "Writing"));
    this.article = el("article", { class: "turn answer", "aria-label": "Answer", "aria-busy": "true" }, this.body, this.waiting);
  }

  get text() {
    return this.parts.filter((part) => part.type === "text").map((part) => part.text).join("\n").trim();
  }

  take(delta, asked) {
    if (typeof delta.content === "string" && delta.content) this.#words(delta.content);
    if (delta.partial_image) this.#coarse(delta.partial_image);
    if (delta.audio?.data) this.show([{ type: "audio_url", audio_url: { url: `data:audio/wav;base64,${delta.audio.data}` } }], asked);
    this.show(delta.content_parts ?? [], asked);
  }

  /** Whole parts, of an answer that is written or of one that was. */
  show(parts, asked) {
    for (const part of parts) {
      if (part.type === "text") this.#words(part.text);
      else this.#medium(part, asked);
    }
  }

  #words(text) {
    let last = this.parts.at(-1);
    if (last?.type !== "text") {
      if (!text.trim()) return;
      last = { type: "text", text: "" };
      this.parts.push(last);
      this.written = el("div", { class: "words" });
      this.body.append(this.written);
    }
    last.text = last.text ? last.text + text : text.trimStart();
    this.frame ??= requestAnimationFrame(() => this.#settle()); // several pieces come between two frames
  }

  #render(text) {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    this.written.replaceChildren(...render(text));
  }

  /** Shows words that wait for the next frame, before something else follows them. */
  #settle() {
    const last = this.parts.findLast(({ type }) => type === "text");
    if (this.frame && last) this.#render(last.text);
  }

  #coarse({ index, url }) {
    if (!typeOf(url)?.startsWith("image/")) return;
    let view = this.partial.get(index);
    if (!view) {
      const image = el("img", { alt: "" });
      image.addEventListener("load", () => enlarge(image, image.naturalWidth));
      view = { image, figure: el("figure", { class: "media image coarse" }, image, el("figcaption", {}, "coarse, more codes follow")) };
      this.partial.set(index, view);
      this.body.append(view.figure);
    }
    view.image.src = url;
  }

  #medium(part, asked) {
    const kind = kindOf(part);
    const url = part[part.type]?.url;
    if (!isKnown(kind) && !typeOf(url)) return;
    this.#settle();
    this.parts.push(part);
    const called = asked ? `${nounOf(kind)}: ${asked}` : nounOf(kind);
    const figure = mediaFigure(kind, url, called, {
      onCodes: () => this.handlers.onCodes(url),
      onAsk: () => this.handlers.onAsk(kind, url),
    });
    const [index, view] = typeOf(url)?.startsWith("image/") ? (this.partial.entries().next().value ?? []) : [];
    if (view) {
      this.partial.delete(index);
      view.figure.replaceWith(figure);
    } else this.body.append(figure);
  }

  /** The end of an answer, as the turn says it ended: done, stopped or failed. */
  finish({ state, seed, seconds, error }) {
    this.#settle();
    this.waiting.remove();
    for (const { figure } of this.partial.values()) figure.querySelector("figcaption").textContent = "coarse, not finished";
    this.article.removeAttribute("aria-busy");
    if (state === "failed") this.#fail(error);
    else {
      if (!this.parts.length && state === "done")
        this.body.append(el("p", { class: "words faint" }, "The model has nothing to say to that. Ask in other words."));
      const facts = [state === "stopped" ? "stopped" : "", `seed ${seed}`, `${seconds.toFixed(1)} s`];
      this.#end(el("span", { class: "facts" }, facts.filter(Boolean).join(" · ")));
    }
  }

  #fail(error) {
    this.article.classList.add("failed");
    const card = el("div", { class: "error", role: "alert" }, icon("warn"), el("p", {}, error.message));
    if (error.status === 401) card.append(el("button", { type: "button", class: "filled", on: { click: this.handlers.onSettings } }, "Open settings"));
    this.body.append(card);
    this.#end();
  }

  #end(facts) {
    const line = el("div", { class: "actions" });
    if (this.text) line.append(this.#copy());
    if (facts && this.text && this.handlers.hasMedia()) {
      const sources = new SourcesView(() => this.handlers.onSources(this.text), enlarge);
      line.append(sources.button);
      this.body.append(sources.block);
    }
    const retry = action("retry", "Retry", this.handlers.onRetry, "Answer again");
    retry.classList.add("retry"); // shown on the last answer and on failed ones: later ones build on the others
    line.append(retry);
    if (facts) line.append(facts);
    this.article.append(line);
  }

  #copy() {
    const button = action("copy", "Copy", async () => {
      const label = button.lastElementChild;
      try {
        await navigator.clipboard.writeText(this.text);
        label.textContent = "Copied";
      } catch {
        label.textContent = "Not allowed";
      }
      setTimeout(() => (label.textContent = "Copy"), 1500);
    }, "Copy the words");
    return button;
  }
}
