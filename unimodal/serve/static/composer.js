// What goes with a question: picked, dropped, pasted and recorded media, and the box for its words.

import { mediaFigure } from "./conversation.js";
import { byId, el, icon } from "./dom.js";
import { Recorder, nouns, readFile, suffixes } from "./media.js";

const MAX_ATTACHED = 8;

const box = byId("question");

export class Composer {
  /** notify(text) tells of a mistake, say(text) what goes on. */
  constructor({ notify, say, onInput }) {
    this.attached = [];
    this.notify = notify;
    this.say = say;
    this.maxAudioS = 30;
    this.#takeFiles();
    byId("record").addEventListener("click", () => this.#record());
    box.addEventListener("input", () => {
      this.grow();
      onInput();
    });
  }

  get recording() {
    return Boolean(this.recorder);
  }

  /** What the model reads, for the labels and the choice of files. */
  describe(info) {
    this.maxAudioS = info.max_audio_s ?? 30;
    const what = `Attach: ${nouns().join(", ")}`;
    byId("attach").title = what;
    byId("attach").setAttribute("aria-label", what);
    byId("attach").hidden = !nouns().length;
    byId("drop").firstElementChild.textContent = `Drop here: ${nouns().join(", ")}`;
    byId("files").accept = suffixes().join(",");
    byId("record").hidden = !info.modalities.includes("audio");
  }

  /** Takes the words and the media out of the box. */
  take() {
    const taken = { words: box.value.trim(), attached: this.attached };
    this.fill("", []);
    return taken;
  }

  fill(words, attached) {
    box.value = words;
    this.attached = [...attached];
    this.#show();
    this.grow();
  }

  attach(item) {
    if (this.attached.length >= MAX_ATTACHED) throw new Error(`At most ${MAX_ATTACHED} media go with one question.`);
    this.attached.push(item);
    this.#show();
  }

  grow() {
    box.style.height = "auto";
    box.style.height = `${box.scrollHeight}px`;
  }

  #show() {
    byId("attachments").replaceChildren(
      ...this.attached.map((item) => {
        const remove = el("button", {
          type: "button", class: "round small", "aria-label": `Remove ${item.name}`, title: "Remove",
          on: {
            click: () => {
              this.attached = this.attached.filter((other) => other !== item);
              this.#show();
              box.focus();
            },
          },
        }, icon("close"));
        const seen = item.url.startsWith("data:image/");
        const view = seen ? mediaFigure(item.kind, item.url, item.name, { save: false, large: false }) : icon({ audio: "sound", video: "play" }[item.kind] ?? "file");
        return el("li", { class: item.kind }, view, el("span", { class: "name" }, item.name), remove);
      }),
    );
  }

  // ---- files

  async #add(files) {
    const failed = [];
    for (const file of files) {
      try {
        this.attach(await readFile(file));
      } catch (error) {
        failed.push(error.message);
      }
    }
    if (failed.length) this.notify(failed.join(" "));
    else if (files.length) this.notify("");
    box.focus();
  }

  #takeFiles() {
    byId("attach").addEventListener("click", () => byId("files").click());
    byId("files").addEventListener("change", (event) => {
      this.#add([...event.target.files]);
      event.target.value = "";
    });
    document.addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (!files.length || document.querySelector("dialog[open]")) return;
      event.preventDefault();
      this.#add(files);
    });
    let inside = 0;
    const isFiles = (event) => event.dataTransfer?.types.includes("Files");
    const isWanted = (event) => isFiles(event) && !document.querySelector("dialog[open]");
    document.addEventListener("dragenter", (event) => {
      if (isWanted(event) && ++inside === 1) byId("drop").hidden = false;
    });
    document.addEventListener("dragleave", (event) => {
      if (inside && isWanted(event) && --inside === 0) byId("drop").hidden = true;
    });
    document.addEventListener("dragover", (event) => {
      if (isFiles(event)) event.preventDefault(); // a missed drop must not leave the page
    });
    document.addEventListener("drop", (event) => {
      if (!isFiles(event)) return;
      event.preventDefault();
      inside = 0;
      byId("drop").hidden = true;
      if (!document.querySelector("dialog[open]")) this.#add([...event.dataTransfer.files]);
    });
  }

  // ---- the microphone

  async #record() {
    if (this.recorder) {
      await this.endRecording(true);
      return;
    }
    const longest = this.maxAudioS;
    const recorder = new Recorder();
    try {
      await recorder.start((seconds, full) => {
        if (this.recorder !== recorder && this.recorder) return;
        this.say(`Recording ${seconds.toFixed(1)} of ${Math.floor(longest * 10) / 10} s, Escape discards`);
        if (full && this.recorder === recorder) this.endRecording(true);
      }, longest);
      this.recorder = recorder;
      this.#showRecording(true);
      this.notify("");
    } catch (error) {
      this.notify(error.message);
    }
  }

  async endRecording(keep) {
    const { recorder } = this;
    this.recorder = null;
    this.#showRecording(false);
    this.say("");
    try {
      if (keep) this.attach(await recorder.stop());
      else await recorder.discard();
    } catch (error) {
      this.notify(error.message);
    }
    box.focus();
  }

  #showRecording(on) {
    byId("record").setAttribute("aria-pressed", String(on));
    byId("record").setAttribute("aria-label", on ? "Stop recording and attach it" : "Record from the microphone");
  }
}
