// The chat: composer, settings, keyboard; the parts of a conversation are in conversation.js, the codes in codes.js.

import * as api from "./api.js";
import { CodesView } from "./codes.js";
import { Answer, mediaFigure, question } from "./conversation.js";
import { action, byId, el, icon } from "./dom.js";
import { Recorder, fromAnswer, readFile, setMaxBody } from "./media.js";

const MODALITIES = { text: ["text"], image: ["image"], audio: ["audio"], video: ["video"] };
const EXAMPLES = [
  ["image", "a red apple"],
  ["image", "a smiling face with hearts"],
  ["audio", "the sun is in the garden"],
  ["video", "a red heart"],
];
const NAMES = { image: "Picture", audio: "Speech", video: "Clip" };
const MAX_SEED = 2 ** 31 - 1;
const MAX_ATTACHED = 8;

const log = byId("log");
const box = byId("question");
const scroll = byId("scroll");
const codes = new CodesView(() => settings.key);
const state = { model: "", turns: [], attached: [], running: null, recorder: null, info: null };

// ---- settings: kept by the browser, the key only for this tab

const settings = {
  read(name, store = localStorage) {
    try {
      return store.getItem(`unimodal.${name}`) ?? "";
    } catch {
      return "";
    }
  },
  write(name, value, store = localStorage) {
    try {
      if (value === "") store.removeItem(`unimodal.${name}`);
      else store.setItem(`unimodal.${name}`, value);
    } catch {
      // storage is blocked: they hold until the page is left
    }
    this.now[name] = value;
  },
  now: {},
  get key() {
    return this.now.key;
  },
  number(name) {
    const value = this.now[name];
    return value === "" || value === undefined ? undefined : Number(value);
  },
};
for (const name of ["temperature", "guidance", "seed", "voice", "make"]) settings.now[name] = settings.read(name);
settings.now.key = settings.read("key", sessionStorage);

const making = () => document.querySelector("input[name=make]:checked").value;

function openSettings() {
  for (const name of ["temperature", "guidance", "seed", "voice", "key"]) byId(name).value = settings.now[name] ?? "";
  const own = state.info?.sampling?.[making() === "auto" ? "image" : making()];
  for (const name of ["temperature", "guidance"]) byId(name).placeholder = own?.[name] === undefined ? "" : `the model’s own, ${own[name]}`;
  byId("settings").showModal();
}

byId("open-settings").addEventListener("click", openSettings);
byId("settings-form").addEventListener("submit", () => {
  for (const name of ["temperature", "guidance", "seed", "voice"]) settings.write(name, byId(name).value);
  const key = byId("key").value.trim();
  const changed = key !== settings.key;
  settings.write("key", key, sessionStorage);
  if (changed || !state.info) connect();
});
byId("reset").addEventListener("click", () => {
  for (const name of ["temperature", "guidance", "seed", "voice", "key"]) byId(name).value = "";
});
for (const input of document.querySelectorAll("input[name=make]")) {
  input.checked = input.value === (settings.now.make || "auto");
  input.addEventListener("change", () => settings.write("make", input.value));
}

// ---- theme

const THEMES = ["system", "light", "dark"];

function showTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme-icon").setAttribute("href", `#i-${theme}`);
  byId("theme-name").textContent = `Theme: ${theme}`;
  byId("theme").title = `Theme: ${theme}`;
}

let theme = THEMES.includes(settings.read("theme")) ? settings.read("theme") : "system";
showTheme(theme);
byId("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  settings.write("theme", theme === "system" ? "" : theme);
  showTheme(theme);
});

// ---- what the server is

async function connect() {
  try {
    state.info = await api.settings(settings.key);
  } catch (error) {
    notify(error.message, error.status === 401 ? ["Open settings", openSettings] : ["Try again", connect]);
    return;
  }
  notify("");
  state.model = state.info.model;
  setMaxBody(state.info.limits?.max_body_bytes);
  byId("alone").hidden = state.info.history_turns !== 0;
  byId("model").textContent = state.model.split("/").at(-1);
  byId("model").title = state.model;
  document.title = `${byId("model").textContent} · unimodal`;
  const can = new Set(["auto", "text", ...state.info.modalities]);
  for (const input of document.querySelectorAll("input[name=make]")) {
    input.parentElement.hidden = !can.has(input.value);
    if (input.checked && !can.has(input.value)) document.querySelector("input[name=make]").checked = true;
  }
  const voices = can.has("audio") ? state.info.voices : [];
  byId("voice").replaceChildren(
    el("option", { value: "" }, "the model’s own"),
    ...voices.map((name) => el("option", { value: name }, name)),
  );
  byId("voice-field").hidden = !voices.length;
  if (!voices.includes(settings.now.voice)) settings.now.voice = ""; // another model's
  byId("examples").replaceChildren(
    ...EXAMPLES.filter(([kind]) => can.has(kind)).map(([kind, words]) =>
      el("li", {}, el("button", { type: "button", class: "example", on: { click: () => ask(words, [], kind) } }, el("small", {}, NAMES[kind]), words)),
    ),
  );
}

// ---- notices

function notify(text, button) {
  byId("notice").replaceChildren();
  if (!text) return;
  byId("notice").append(el("p", {}, text));
  if (button) byId("notice").append(el("button", { type: "button", class: "plain", on: { click: button[1] } }, button[0]));
  const close = el("button", { type: "button", class: "round small", "aria-label": "Dismiss", on: { click: () => notify("") } }, icon("close"));
  byId("notice").append(close);
}

/** Tells the user what goes on; `unseen` only to a screen reader. */
function say(text, unseen = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("hidden", unseen);
}

// ---- asking

function below() {
  return scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight;
}

let scrolledTo = 0; // where the page was scrolled to when we last looked

function follow(always) {
  if (!always && !state.following) return;
  scroll.scrollTop = scroll.scrollHeight;
  scrolledTo = scroll.scrollTop;
}

// Media get their height some time after they were added.
new ResizeObserver(() => follow(false)).observe(log);
// The event of our own scrolling may come when the log has grown further: only upwards is a reader who leaves.
scroll.addEventListener("scroll", () => {
  if (scroll.scrollTop < scrolledTo && below() > 3) state.following = false;
  else if (below() < 120) state.following = true;
  scrolledTo = scroll.scrollTop;
});

function send() {
  if (state.running) {
    say("Escape stops this answer first");
    return;
  }
  const words = box.value.trim();
  if (!words && !state.attached.length) {
    say("Type a question or attach something");
    box.focus();
    return;
  }
  const attached = state.attached;
  state.attached = [];
  showAttached();
  box.value = "";
  grow();
  ask(words, attached, making());
}

function ask(words, attached, make) {
  if (state.running) return;
  byId("welcome").hidden = true;
  notify("");
  log.append(question(words, attached, (url) => codes.open(url)));
  answer({ words, attached, make, before: state.turns });
}

function answerView(asked) {
  const view = new Answer({
    onCodes: (url) => codes.open(url),
    onAsk: attachAnswer,
    onSettings: openSettings,
    onRetry: () => retry(asked, view),
  });
  log.append(view.article);
  return view;
}

async function answer(asked) {
  const seed = settings.number("seed") ?? Math.floor(Math.random() * MAX_SEED);
  const controller = (state.running = new AbortController());
  const view = answerView(asked);
  busy(true);
  state.following = true;
  follow(true);
  const begun = performance.now();
  const seconds = () => (performance.now() - begun) / 1000;
  const end = (note) => {
    view.finish(note);
    const { words, attached, make } = asked;
    remember([...asked.before, { words, attached, make, parts: view.parts, note }]);
  };
  try {
    for await (const delta of api.chat(request(asked, seed), settings.key, controller.signal)) {
      view.take(delta, asked.words);
      follow(false);
    }
    end({ seed, seconds: seconds() });
    say("Answer finished", true);
  } catch (error) {
    if (controller.signal.aborted) {
      end({ seed, seconds: seconds(), stopped: true });
      say("Stopped");
    } else {
      if (!(error instanceof api.ApiError)) console.error(error);
      view.fail(error instanceof api.ApiError ? error : new api.ApiError("The answer cannot be shown."));
      remember(asked.before);
      say("");
    }
  } finally {
    if (state.running === controller) {
      state.running = null;
      busy(false);
    }
    follow(false);
  }
}

function request({ words, attached, make, before }, seed) {
  const count = state.info?.history_turns ?? before.length; // as many exchanges as the model looks back at
  const messages = before.slice(Math.max(0, before.length - count)).flatMap((turn) => {
    const asked = askedIn(turn);
    return turn.parts.length ? [asked, { role: "assistant", content: told(turn.parts) }] : [asked];
  });
  const body = { model: state.model, messages: [...messages, askedIn({ words, attached })], seed, stream: true, stream_partial: true };
  if (MODALITIES[make]) body.modalities = MODALITIES[make];
  for (const name of ["temperature", "guidance"]) if (settings.number(name) !== undefined) body[name] = settings.number(name);
  if (make === "audio" && settings.now.voice) body.audio = { voice: settings.now.voice, format: "wav" };
  return body;
}

/** A question as a message: plain words, or parts. */
function askedIn({ words, attached }) {
  if (!attached.length) return { role: "user", content: words };
  const parts = attached.map(({ part }) => part);
  return { role: "user", content: words ? [...parts, { type: "text", text: words }] : parts };
}

/** An answer as a message: plain words, or parts. */
const told = (parts) => (parts.every(({ type }) => type === "text") ? parts.map(({ text }) => text).join("\n") : parts);

function retry(asked, view) {
  if (state.running) return;
  view.article.remove();
  answer(asked);
}

function busy(yes) {
  byId("send").hidden = yes;
  byId("stop").hidden = !yes;
  log.classList.toggle("busy", yes);
  if (yes) say("Writing the answer");
}

byId("stop").addEventListener("click", () => {
  state.running?.abort();
  box.focus();
});
byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});

byId("clear").addEventListener("click", () => {
  if (!log.childElementCount) return;
  state.running?.abort();
  const turns = [...log.children];
  const kept = state.turns;
  log.replaceChildren();
  remember([]);
  byId("welcome").hidden = false;
  state.following = false;
  scroll.scrollTop = 0;
  say("");
  const undo = () => {
    if (state.running || log.childElementCount) return notify("A new conversation has begun; the old one is gone.");
    log.append(...turns);
    remember(kept);
    byId("welcome").hidden = true;
    notify("");
    follow(true);
  };
  notify("The conversation was cleared.", ["Undo", undo]);
  box.focus();
});

// ---- the conversation outlives a reload, as long as its tab

function remember(turns) {
  state.turns = turns;
  for (let first = 0; first <= turns.length; first++) {
    try {
      sessionStorage.setItem("unimodal.turns", JSON.stringify(turns.slice(first)));
      return;
    } catch {
      // over the browser's limit, or blocked: the oldest are not kept
    }
  }
}

function restore() {
  let turns = [];
  try {
    turns = JSON.parse(sessionStorage.getItem("unimodal.turns") ?? "[]");
  } catch {
    return;
  }
  turns.forEach((turn, number) => {
    log.append(question(turn.words, turn.attached, (url) => codes.open(url)));
    const view = answerView({ words: turn.words, attached: turn.attached, make: turn.make, before: turns.slice(0, number) });
    view.show(turn.parts, turn.words);
    view.finish(turn.note);
  });
  state.turns = turns;
  byId("welcome").hidden = turns.length > 0;
  state.following = true;
  follow(true);
}

// ---- media that go with the question

function attach(item) {
  if (state.attached.length >= MAX_ATTACHED) throw new Error(`At most ${MAX_ATTACHED} media go with one question.`);
  state.attached.push(item);
  showAttached();
}

function showAttached() {
  byId("attachments").replaceChildren(
    ...state.attached.map((item) => {
      const remove = el("button", {
        type: "button", class: "round small", "aria-label": `Remove ${item.name}`, title: "Remove",
        on: {
          click: () => {
            state.attached = state.attached.filter((other) => other !== item);
            showAttached();
            box.focus();
          },
        },
      }, icon("close"));
      const view = item.kind === "image" ? mediaFigure("image", item.url, item.name, { save: false }) : icon(item.kind === "audio" ? "sound" : "play");
      return el("li", { class: item.kind }, view, el("span", { class: "name" }, item.name), remove);
    }),
  );
}

async function addFiles(files) {
  const failed = [];
  for (const file of files) {
    try {
      attach(await readFile(file));
    } catch (error) {
      failed.push(error.message);
    }
  }
  if (failed.length) notify(failed.join(" "));
  else if (files.length) notify("");
  box.focus();
}

async function attachAnswer(kind, url) {
  try {
    attach(await fromAnswer(kind, url, { image: "that picture", audio: "that sound", video: "that clip" }[kind]));
  } catch (error) {
    notify(error.message);
  }
  const words = document.querySelector("input[name=make][value=text]");
  if (making() !== "auto") words.checked = true; // one asks about it in order to be told
  box.focus();
}

byId("attach").addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", (event) => {
  addFiles([...event.target.files]);
  event.target.value = "";
});
document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (!files.length || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  addFiles(files);
});

let inside = 0;
const carriesFiles = (event) => event.dataTransfer?.types.includes("Files") && !document.querySelector("dialog[open]");
document.addEventListener("dragenter", (event) => {
  if (carriesFiles(event) && ++inside === 1) byId("drop").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (inside && carriesFiles(event) && --inside === 0) byId("drop").hidden = true;
});
document.addEventListener("dragover", (event) => {
  if (event.dataTransfer?.types.includes("Files")) event.preventDefault(); // a missed drop must not leave the page
});
document.addEventListener("drop", (event) => {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  inside = 0;
  byId("drop").hidden = true;
  if (!document.querySelector("dialog[open]")) addFiles([...event.dataTransfer.files]);
});

// ---- the microphone

function recording(on) {
  byId("record").setAttribute("aria-pressed", String(on));
  byId("record").setAttribute("aria-label", on ? "Stop recording and attach it" : "Record from the microphone");
}

async function endRecording(keep) {
  const { recorder } = state;
  state.recorder = null;
  recording(false);
  say("");
  try {
    if (keep) attach(await recorder.stop());
    else await recorder.discard();
  } catch (error) {
    notify(error.message);
  }
  box.focus();
}

byId("record").addEventListener("click", async () => {
  if (state.recorder) {
    await endRecording(true);
    return;
  }
  const longest = state.info?.max_audio_s ?? 30;
  const recorder = new Recorder();
  try {
    await recorder.start((seconds, full) => {
      if (state.recorder !== recorder && state.recorder) return;
      say(`Recording ${seconds.toFixed(1)} of ${Math.floor(longest * 10) / 10} s, Escape discards`);
      if (full && state.recorder === recorder) endRecording(true);
    }, longest);
    state.recorder = recorder;
    recording(true);
    notify("");
  } catch (error) {
    notify(error.message);
  }
});

// ---- keyboard

function grow() {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}

box.addEventListener("input", () => {
  grow();
  if (!state.running && !state.recorder) say("");
});
box.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (state.recorder) endRecording(false);
  else state.running?.abort();
});

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // the backdrop
  });
}

restore();
connect();
if (matchMedia("(pointer: fine)").matches) box.focus(); // on a phone the keyboard would cover the page
