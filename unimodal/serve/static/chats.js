// The list of conversations: open, rename, delete, export, import.

import { download } from "./conversation.js";
import { byId, el, icon } from "./dom.js";
import * as exchange from "./exchange.js";
import * as store from "./store.js";

const dialog = byId("conversations");
const when = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

export class Chats {
  /** onOpen(id), onRename(conversation), onDelete(id) act on what is shown; notify(text, button) tells. */
  constructor({ current, notify, onOpen, onRename, onDelete }) {
    Object.assign(this, { current, notify, onOpen, onRename, onDelete });
    byId("open-conversations").addEventListener("click", () => this.open());
    byId("import").addEventListener("click", () => byId("import-file").click());
    byId("import-file").addEventListener("change", async (event) => {
      const [file] = event.target.files;
      event.target.value = "";
      if (file) await this.#import(file);
    });
    byId("export-all").addEventListener("click", async () => this.#export(await store.list(), "conversations"));
  }

  async open() {
    this.#tell("");
    await this.#show();
    dialog.showModal();
  }

  /** Deletes a conversation; the notice brings it back. */
  async delete(conversation) {
    const turns = await store.turns(conversation.id);
    await store.remove(conversation.id);
    await this.onDelete(conversation.id);
    await this.#show();
    const undo = async () => {
      await store.save(conversation, ...turns);
      this.notify("");
      this.onOpen(conversation.id);
    };
    this.notify(`“${conversation.name}” was deleted.`, ["Undo", undo]);
  }

  async #show() {
    const all = await store.list().catch(() => null);
    byId("export-all").disabled = !all?.length;
    const empty = all === null ? "This browser keeps no conversations for this page." : "No conversation yet. It begins with your first question and is kept in this browser only.";
    byId("conversations-list").replaceChildren(...(all?.length ? all.map((one) => this.#entry(one)) : [el("li", { class: "faint" }, empty)]));
  }

  #entry(conversation) {
    const { id, name, updated } = conversation;
    const button = (symbol, label, act) =>
      el("button", { type: "button", class: "round", title: label, "aria-label": `${label}: ${name}`, on: { click: act } }, icon(symbol));
    const open = el("button", { type: "button", class: "open", "aria-current": id === this.current() ? "true" : null, on: {
      click: () => {
        dialog.close();
        this.onOpen(id);
      },
    } }, el("strong", {}, name), el("small", {}, when.format(updated)));
    const entry = el("li", {}, open);
    entry.append(
      button("edit", "Rename", () => this.#rename(conversation, entry)),
      button("save", "Export", () => this.#export([conversation], name)),
      button("clear", "Delete", async () => {
        dialog.close();
        await this.delete(conversation);
      }),
    );
    return entry;
  }

  #rename(conversation, entry) {
    const input = el("input", { value: conversation.name, maxLength: 200, "aria-label": "Name of the conversation" });
    let over = false;
    const end = async (keep) => {
      if (over) return;
      over = true;
      const name = input.value.trim();
      if (keep && name) {
        const renamed = { ...((await store.find(conversation.id)) ?? conversation), name };
        await store.save(renamed);
        this.onRename(renamed);
      }
      await this.#show();
      byId("conversations-list").querySelector("button")?.focus();
    };
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.preventDefault(); // Escape would close the list
      event.stopPropagation();
      end(event.key === "Enter");
    });
    input.addEventListener("blur", () => end(true));
    entry.replaceChildren(input);
    input.focus();
    input.select();
  }

  async #export(conversations, name) {
    const whole = await Promise.all(conversations.map(async (conversation) => ({ conversation, turns: await store.turns(conversation.id) })));
    const short = name.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40).toLowerCase() || "conversation";
    download(new Blob([exchange.write(whole)], { type: "application/json" }), `${short}.json`);
  }

  async #import(file) {
    let read;
    try {
      read = exchange.read(await file.text());
      for (const { conversation, turns } of read) await store.save(conversation, ...turns);
    } catch (error) {
      this.#tell(`${file.name} was not imported: ${error.message || "the browser cannot keep it"}.`, true);
      return;
    }
    await this.#show();
    this.#tell(read.length === 1 ? `“${read[0].conversation.name}” was imported.` : `${read.length} conversations were imported.`);
  }

  #tell(text, bad = false) {
    byId("conversations-told").textContent = text;
    byId("conversations-told").classList.toggle("bad", bad);
  }
}
