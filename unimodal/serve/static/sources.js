// What an answer came from: its share of every medium that the model was shown, and where in it.

import { action, el } from "./dom.js";
import { nounOf, typeOf } from "./media.js";

/** A button, and the block that it opens. find: asks the server, and gives [{modality, share, url}]. enlarge: shows a
    small picture in whole multiples of its size. */
export class SourcesView {
  constructor(find, enlarge) {
    this.find = find;
    this.enlarge = enlarge;
    this.block = el("div", { class: "sources", role: "group", "aria-label": "What the answer came from" });
    this.block.hidden = true;
    this.button = action("sources", "Sources", () => this.#toggle(), "Which parts of the media the words came from");
    this.button.setAttribute("aria-expanded", "false");
  }

  #toggle() {
    this.block.hidden = !this.block.hidden;
    this.button.setAttribute("aria-expanded", String(!this.block.hidden));
    if (!this.block.hidden && !this.shown) this.#load();
  }

  async #load() {
    if (this.loading) return;
    this.loading = true;
    this.block.replaceChildren(el("p", { class: "faint" }, "Looking into the model…"));
    try {
      this.#show(await this.find());
      this.shown = true;
    } catch (error) {
      this.block.replaceChildren(el("p", { class: "bad", role: "alert" }, error.message)); // the next opening tries again
    } finally {
      this.loading = false;
    }
  }

  #show(media) {
    const counts = {};
    const figures = media.map(({ modality, share, url }) => {
      counts[modality] = (counts[modality] ?? 0) + 1;
      const several = media.filter((one) => one.modality === modality).length > 1;
      const called = `${nounOf(modality)}${several ? ` ${counts[modality]}` : ""}`;
      const words = `${Math.round(100 * share)} % from the ${called}`;
      if (!typeOf(url)?.startsWith("image/")) return el("p", { class: "faint" }, words);
      const image = el("img", { alt: `The ${called}; red is where the answer came from` });
      image.addEventListener("load", () => this.enlarge(image, image.naturalWidth));
      image.src = url;
      return el("figure", { class: "media image" }, image, el("figcaption", {}, words));
    });
    const rest = Math.max(0, 1 - media.reduce((sum, { share }) => sum + share, 0));
    this.block.replaceChildren(...figures, el("p", { class: "faint" }, `${Math.round(100 * rest)} % from words and marks`));
  }
}
