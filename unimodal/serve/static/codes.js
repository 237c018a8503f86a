// The codes of a picture, sound or clip: which number stands where, what it changes, what the first ones decode to.

import { ApiError, detokenize, tokenize } from "./api.js";
import { byId, el, icon } from "./dom.js";
import { enlarge, mediaFigure } from "./conversation.js";
import { nounOf, typeOf } from "./media.js";

const NUMBERED = 300; // more codes than this are shown as plain colours
const CELL_PX = 50; // the most that a cell of a grid takes
const HOVER_MS = 70;
const FRAME_MS = 120;
const LEAST_CHANGE = 6; // of 255: what changes less is not told apart from rounding
const GOLDEN_DEG = 137.508; // neighbours in number are far apart in colour

export class CodesView {
  constructor(key) {
    this.key = key; // a function: the API key now
    this.dialog = byId("codes");
    this.slider = byId("prefix");
    this.slider.addEventListener("input", () => this.#prefix(Number(this.slider.value)));
    byId("play").addEventListener("click", () => (this.playing ? this.#pause() : this.#play()));
    this.dialog.addEventListener("close", () => this.#leave());
    const list = byId("codes-list");
    list.addEventListener("pointerover", (event) => this.#point(event.target.closest("[data-index]")));
    list.addEventListener("pointerleave", () => this.#point(null));
    list.addEventListener("focusin", (event) => this.#point(event.target.closest("[data-index]")));
    list.addEventListener("focusout", () => this.#point(null));
    list.addEventListener("click", (event) => this.#choose(event.target.closest("[data-index]")));
    list.addEventListener("keydown", (event) => this.#move(event));
  }

  async open(url) {
    this.#leave();
    this.abort = new AbortController();
    const { signal } = this.abort;
    this.found = null;
    this.cells = [];
    byId("codes-list").replaceChildren(el("p", { class: "faint" }, "Reading the codes…"));
    byId("codes-media").replaceChildren();
    byId("codes-summary").textContent = "";
    byId("codes-prefix").hidden = true;
    this.#say("");
    if (!this.dialog.open) this.dialog.showModal();
    try {
      const found = await tokenize(url, this.key(), signal);
      if (signal.aborted) return;
      this.found = found;
    } catch (error) {
      if (error.name !== "AbortError") this.#failed(error);
      return;
    }
    const { modality, codes, ordered, groups = 1 } = this.found;
    this.total = codes.length / groups; // code steps, each of one code per group
    this.decoded = new Map();
    byId("codes-summary").textContent = `${this.total} codes${ordered ? ", from coarse to fine" : ""}`;
    this.#list();
    if (modality === "image") {
      this.picture = el("img", { alt: "what the codes decode to" });
      this.picture.addEventListener("load", () => enlarge(this.picture, this.picture.naturalWidth));
      this.mark = el("canvas", { class: "mark", "aria-hidden": "true", width: 1, height: 1 });
      byId("codes-media").replaceChildren(el("div", { class: "stack" }, this.picture, this.mark));
    } else {
      this.picture = null;
      byId("codes-media").replaceChildren(mediaFigure(modality, url, nounOf(modality), { save: false }));
    }
    const sliding = modality === "image" && ordered;
    byId("codes-prefix").hidden = !sliding;
    this.slider.max = this.total;
    this.slider.value = this.total;
    if (sliding) this.#prefix(this.total);
    else if (modality === "image") this.#show(null);
    this.#point(null);
  }

  // ---- the list of numbers

  #list() {
    const { segments } = this.found;
    const list = byId("codes-list");
    list.classList.toggle("plain-cells", this.total > NUMBERED);
    list.replaceChildren();
    const options = el("div", { class: "segments", role: "listbox", "aria-label": "Codes", "aria-orientation": "horizontal" });
    for (const segment of segments) {
      const { name, start, count, grid } = segment;
      const cells = el("div", { class: "cells", role: "presentation" });
      if (grid) {
        cells.style.gridTemplateColumns = `repeat(${grid[2]}, minmax(0, 1fr))`;
        cells.style.maxWidth = `${grid[2] * CELL_PX}px`;
      }
      cells.classList.toggle("gridded", Boolean(grid));
      for (let index = start; index < start + count; index++) cells.append(this.#cell(index, segment));
      const shape = grid ? ` in ${grid[0] > 1 ? `${grid[0]} × ` : ""}${grid[1]} × ${grid[2]}` : "";
      options.append(
        el("div", { role: "group", "aria-label": name },
          el("p", { class: "segment" }, el("strong", {}, name), ` ${count} ${count === 1 ? "code" : "codes"}${shape}`), cells),
      );
    }
    list.append(options);
    if (this.cells.length) this.cells[0].tabIndex = 0;
  }

  #cell(index, segment) {
    const { codes, groups = 1 } = this.found;
    const step = codes.slice(index * groups, (index + 1) * groups);
    const number = step.join(" ");
    const hue = (step[0] * GOLDEN_DEG) % 360;
    const cell = el("div", {
      class: "cell", role: "option", tabIndex: -1, "aria-selected": "false",
      "aria-label": `code ${index + 1} of ${this.total}, ${segment.name}, number ${number}`,
    }, el("span", {}, number));
    cell.dataset.index = index;
    cell.style.setProperty("--hue", hue.toFixed(1));
    this.cells[index] = cell;
    return cell;
  }

  #move(event) {
    const at = Number(event.target.dataset?.index);
    if (Number.isNaN(at)) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.#choose(event.target);
      return;
    }
    const row = this.#columns(at);
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: row, ArrowUp: -row, Home: -at, End: this.total - 1 - at }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const next = this.cells[Math.max(0, Math.min(this.total - 1, at + step))];
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  #columns(at) {
    const siblings = [...this.cells[at].parentElement.children];
    const second = siblings.findIndex((cell) => cell.offsetTop > siblings[0].offsetTop);
    return second < 0 ? siblings.length : second;
  }

  #choose(cell) {
    if (!cell || byId("codes-prefix").hidden) return;
    this.#pause();
    this.#prefix(Number(cell.dataset.index) + 1);
  }

  // ---- one code: its number, and where it shows in the picture

  #point(cell) {
    if (this.pointed === cell && cell) return;
    this.pointed?.classList.remove("pointed");
    this.pointed = cell;
    clearTimeout(this.hovering);
    this.mark?.getContext("2d").clearRect(0, 0, this.mark.width, this.mark.height);
    this.mark?.parentElement.classList.remove("marked");
    if (!this.found) return;
    if (!cell) {
      this.#say(this.found.ordered && this.picture ? "Point at a code to see what it changes; click to decode up to it." : "Point at a code to see its number.");
      return;
    }
    cell.classList.add("pointed");
    const index = Number(cell.dataset.index);
    const segment = this.found.segments.find(({ start, count }) => index >= start && index < start + count);
    const place = this.#place(index, segment);
    this.#say(`Code ${index + 1} of ${this.total} · ${segment.name}${place ? ` · ${place.words}` : ""} · number ${cell.textContent}`, cell);
    if (!this.picture) return;
    if (place) this.#outline(place);
    else if (this.found.ordered) this.hovering = setTimeout(() => this.#difference(index, cell), HOVER_MS);
  }

  #place(index, { start, grid }) {
    if (!grid) return null;
    const [frames, rows, columns] = grid;
    const offset = index - start;
    const row = Math.floor(offset / columns) % rows;
    const column = offset % columns;
    const frame = frames > 1 ? `frame ${Math.floor(offset / columns / rows) + 1}, ` : "";
    return { row, column, rows, columns, words: `${frame}row ${row + 1}, column ${column + 1}` };
  }

  #outline({ row, column, rows, columns }) {
    const scale = Math.max(4, Math.ceil(256 / Math.max(rows, columns)));
    const canvas = this.mark;
    canvas.width = columns * scale;
    canvas.height = rows * scale;
    const pen = canvas.getContext("2d");
    pen.lineWidth = Math.max(2, scale / 8);
    pen.strokeStyle = getComputedStyle(canvas).color;
    pen.strokeRect(column * scale + pen.lineWidth / 2, row * scale + pen.lineWidth / 2, scale - pen.lineWidth, scale - pen.lineWidth);
  }

  /** Marks the pixels that change when this code follows those before it. */
  async #difference(index, cell) {
    if (index < 1) return;
    try {
      const [before, after] = await Promise.all([index, index + 1].map((n) => this.#pixels(n)));
      if (this.pointed !== cell) return;
      const changed = after.data.map((value, i) => Math.abs(value - before.data[i]));
      const strength = new Float32Array(after.width * after.height);
      for (let i = 0; i < strength.length; i++) strength[i] = Math.max(changed[4 * i], changed[4 * i + 1], changed[4 * i + 2]);
      const most = strength.reduce((a, b) => Math.max(a, b), 0);
      if (most < LEAST_CHANGE) return;
      const [red, green, blue] = getComputedStyle(this.mark).color.match(/\d+/g).map(Number);
      const marked = new ImageData(after.width, after.height);
      strength.forEach((value, i) => marked.data.set([red, green, blue, 235 * (value / most) ** 1.4], 4 * i));
      this.mark.width = after.width;
      this.mark.height = after.height;
      this.mark.getContext("2d").putImageData(marked, 0, 0);
      this.mark.parentElement.classList.add("marked");
    } catch (error) {
      if (error.name !== "AbortError") this.#failed(error);
    }
  }

  async #pixels(n) {
    const image = new Image();
    image.src = await this.#decode(n);
    await image.decode();
    const canvas = el("canvas", { width: image.naturalWidth, height: image.naturalHeight });
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.drawImage(image, 0, 0);
    return pen.getImageData(0, 0, canvas.width, canvas.height);
  }

  // ---- prefixes

  #decode(n) {
    const { modality, codes } = this.found;
    const cache = this.decoded;
    if (!cache.has(n)) {
      const asked = detokenize(modality, codes, n, this.key(), this.abort.signal).then(({ url }) => {
        if (!typeOf(url)?.startsWith("image/")) throw new ApiError("The codes decoded to something that is no picture.");
        return url;
      });
      asked.catch(() => cache.delete(n));
      cache.set(n, asked);
    }
    return cache.get(n);
  }

  #prefix(n) {
    this.slider.value = n;
    byId("prefix-value").textContent = `${n} / ${this.total}`;
    this.slider.setAttribute("aria-valuetext", `the first ${n} of ${this.total} codes`);
    this.cells.forEach((cell, index) => {
      cell.classList.toggle("beyond", index >= n);
      cell.setAttribute("aria-selected", String(index === n - 1));
    });
    return this.#show(n);
  }

  /** Shows a prefix; while one is decoded only the latest wish is kept. */
  async #show(n) {
    this.wanted = n;
    if (this.showing) return this.showing.catch(() => {}); // told once, below
    const { signal } = this.abort;
    this.showing = (async () => {
      let shown;
      while (!signal.aborted && shown !== this.wanted) {
        shown = this.wanted;
        const url = await this.#decode(shown);
        if (!signal.aborted) this.picture.src = url;
      }
    })();
    try {
      await this.showing;
    } catch (error) {
      if (error.name !== "AbortError") this.#failed(error);
    } finally {
      this.showing = null;
    }
  }

  async #play() {
    const run = (this.playing = {});
    this.#button("pause", "Pause");
    let n = Number(this.slider.value);
    if (n >= this.total) n = 0;
    const step = Math.max(1, Math.round(this.total / 64));
    while (this.playing === run && n < this.total) {
      n = Math.min(this.total, n + step);
      await Promise.all([this.#prefix(n), new Promise((resolve) => setTimeout(resolve, FRAME_MS))]);
    }
    if (this.playing === run) this.#pause();
  }

  #pause() {
    this.playing = null;
    this.#button("play", "Play from the first code to the last");
  }

  #button(name, label) {
    byId("play").replaceChildren(icon(name));
    byId("play").setAttribute("aria-label", label);
  }

  #leave() {
    this.#pause();
    this.abort?.abort();
    clearTimeout(this.hovering);
    this.pointed = this.mark = null;
  }

  #say(text, cell) {
    const swatch = el("i", { class: "swatch", "aria-hidden": "true" });
    if (cell) swatch.style.setProperty("--hue", cell.style.getPropertyValue("--hue"));
    byId("codes-hover").classList.remove("bad");
    byId("codes-hover").replaceChildren(...(cell ? [swatch, text] : [text]));
  }

  #failed(error) {
    if (!this.found) byId("codes-list").replaceChildren();
    byId("codes-hover").textContent = error.message;
    byId("codes-hover").classList.add("bad");
  }
}
