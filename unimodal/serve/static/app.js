// The chat: asking, answers, and the conversation that is shown. Its views are in conversation.js, the box for a question
// in composer.js, the list of conversations in chats.js, the codes in codes.js; store.js keeps what was said.

import * as api from "./api.js";
import { Chats } from "./chats.js";
import { CodesView } from "./codes.js";
import { Composer } from "./composer.js";
import { Answer, Question } from "./conversation.js";
import { byId, el, icon } from "./dom.js";
import { fromAnswer, nounOf, partOf, setMaxBody, setMedia } from "./media.js";
import * as settings from "./settings.js";
import * as store from "./store.js";

const EXAMPLES = [
  ["image", "a red apple"],
  ["image", "a smiling face with hearts"],
  ["audio", "the sun is in the garden"],
  ["video", "a red heart"],
];
const MAX_SEED = 2 ** 31 - 1;
const SAVE_MS = 1000; // how often a growing answer is saved
const PATIENCE_MS = 3000; // that a silent server may keep the conversation from being shown

const log = byId("log");
const box = byId("question");
const scroll = byId("scroll");
const codes = new CodesView(settings.key);
// turns: those of the conversation that is shown, with their views; edited: the turn whose question is changed
const state = { info: null, conversation: null, turns: [], running: null, edited: null, following: false };
const composer = new Composer({ notify, say, onInput: () => !state.running && !composer.recording && say("") });
const chats = new Chats({
  current: () => state.conversation?.id,
  notify,
  onOpen: show,
  onRename: (renamed) => renamed.id === state.conversation?.id && nameConversation(renamed),
  onDelete: (id) => id === state.conversation?.id && forget(),
});

// ---- what is made: a button for everything that the model writes

const making = () => document.querySelector("input[name=make]:checked")?.value ?? "auto";
const capital = (word) => word[0].toUpperCase() + word.slice(1);

function offer(writes) {
  const either = writes.length > 1 && writes.join() !== "text,audio"; // the server takes those two for speech
  const all = either ? ["auto", ...writes] : writes;
  const wanted = settings.get("make");
  const label = (name) => (name === "auto" || name === "text" ? capital(name) : capital(nounOf(name)));
  const choices = all.map((name) => {
    const input = el("input", { type: "radio", name: "make", value: name, on: { change: () => settings.write("make", name) } });
    input.checked = name === (all.includes(wanted) ? wanted : all[0]);
    return el("label", {}, input, el("span", {}, label(name)));
  });
  byId("make").replaceChildren(el("legend", { class: "hidden" }, "What to make"), ...choices);
}

function openSettings() {
  settings.describe(state.info, making() === "auto" ? "image" : making());
  settings.open();
}

byId("open-settings").addEventListener("click", openSettings);
settings.whenDone((another) => {
  if (another || !state.info) connect();
});

// ---- what the server is

async function connect() {
  try {
    state.info = await api.settings(settings.key());
  } catch (error) {
    notify(error.message, error.status === 401 ? ["Open settings", openSettings] : ["Try again", connect]);
    return;
  }
  notify("");
  const { model, modalities, media = {}, limits, history_turns, voices = [] } = state.info;
  setMaxBody(limits?.max_body_bytes);
  setMedia(media);
  const writes = ["text", ...modalities.filter((name) => name !== "text" && media[name]?.writes !== false)];
  state.writes = writes;
  byId("alone").hidden = history_turns !== 0;
  byId("model").textContent = model.split("/").at(-1);
  byId("model").title = model;
  nameConversation(state.conversation);
  offer(writes);
  composer.describe(state.info);
  settings.offerVoices(writes.includes("audio") ? voices : []);
  byId("examples").replaceChildren(
    ...EXAMPLES.filter(([kind]) => writes.includes(kind)).map(([kind, words]) =>
      el("li", {}, el("button", { type: "button", class: "example", on: { click: () => ask(words, [], kind) } }, el("small", {}, capital(nounOf(kind))), words)),
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

// ---- the end of the conversation stays in view

const below = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight;

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

// ---- the conversation that is shown

function nameConversation(conversation) {
  state.conversation = conversation;
  const model = byId("model").textContent;
  if (model) document.title = [conversation?.name, model, "unimodal"].filter(Boolean).join(" · ");
}

/** Leaves what is shown, which stays in the list, for a conversation without a turn. */
function begin() {
  state.running?.abort();
  stopEditing();
  log.replaceChildren();
  state.turns = [];
  nameConversation(null);
  settings.showConversation("");
  byId("welcome").hidden = false;
  state.following = false;
  scroll.scrollTop = 0;
  say("");
  box.focus();
}

/** Leaves what is shown, which was deleted. */
function forget() {
  for (const turn of state.turns) turn.gone = true; // an answer that is still written is not saved
  begin();
}

async function show(id) {
  if (id === state.conversation?.id) return;
  const [conversation, turns] = await Promise.all([store.find(id), store.turns(id)]);
  if (!conversation) return;
  begin();
  nameConversation(conversation);
  settings.showConversation(id);
  for (const turn of turns) {
    if (turn.state === "writing") Object.assign(turn, { state: "failed", error: { message: "The page was left before this answer had ended.", status: 0 } });
    append(turn);
  }
  byId("welcome").hidden = turns.length > 0;
  state.following = true;
  follow(true);
}

/** Saves turns of the conversation that is shown, all or none; tells once where the browser does not let us. */
async function save(conversation, ...turns) {
  const kept = turns.filter((turn) => !turn.gone).map(({ views, gone, ...one }) => one);
  if (!kept.length) return;
  conversation.updated = Date.now();
  try {
    await store.save(conversation, ...kept);
  } catch (error) {
    if (state.unkept) return;
    state.unkept = true;
    const full = error?.name === "QuotaExceededError";
    notify(full ? "The browser’s storage is full: this conversation is not kept beyond this page. Delete others." : "This browser does not keep conversations: they are gone when the page is left.");
  }
}

/** Puts a turn that has ended, or begins, behind the others. */
function append(turn) {
  turn.views = {};
  turn.views.question = new Question(turn, { onCodes: (url) => codes.open(url), onEdit: () => edit(turn) });
  state.turns.push(turn);
  log.append(turn.views.question.article);
  placeAnswer(turn);
  if (turn.state !== "writing") {
    const { parts } = turn;
    turn.views.answer.show(parts, turn.words);
    turn.views.answer.finish(turn);
  }
}

function placeAnswer(turn) {
  const old = turn.views.answer;
  turn.views.answer = new Answer({
    onCodes: (url) => codes.open(url),
    onAsk: attachAnswer,
    onSettings: openSettings,
    onRetry: () => !state.running && answer(turn),
    onSources: (text) => findSources(turn, text),
    hasMedia: () => [...before(turn), turn].some(holdsMedia),
  });
  if (old) old.article.replaceWith(turn.views.answer.article);
  else turn.views.question.article.after(turn.views.answer.article);
}

// ---- asking

function send() {
  if (state.running) {
    say("Escape stops this answer first");
    return;
  }
  if (!box.value.trim() && !composer.attached.length) {
    say("Type a question or attach something");
    box.focus();
    return;
  }
  const { words, attached } = composer.take();
  if (state.edited) replaceFrom(state.edited);
  else notify("");
  ask(words, attached, making());
}

function ask(words, attached, make) {
  if (state.running) return;
  byId("welcome").hidden = true;
  const now = Date.now();
  if (!state.conversation) {
    const name = words.split("\n")[0].slice(0, 60) || attached.map(({ name }) => name).join(", ").slice(0, 60);
    nameConversation({ id: store.newId(), name, created: now, updated: now });
    settings.showConversation(state.conversation.id);
  }
  const turn = {
    id: store.newId(), conversation: state.conversation.id, place: (state.turns.at(-1)?.place ?? -1) + 1,
    words, attached, make, parts: [], notes: [], state: "writing", seed: 0, seconds: 0,
  };
  append(turn);
  answer(turn);
}

/** Has a turn answered, or answered again. */
async function answer(turn) {
  const controller = (state.running = new AbortController());
  const { conversation } = state;
  const seed = settings.number("seed") ?? Math.floor(Math.random() * MAX_SEED);
  if (turn.state !== "writing" || turn.parts.length) placeAnswer(turn);
  Object.assign(turn, { state: "writing", parts: [], notes: [], seed, error: undefined });
  const view = turn.views.answer;
  busy(true);
  state.following = true;
  follow(true);
  const body = request(turn, seed);
  const begun = performance.now();
  let saved = begun;
  await save(conversation, turn); // a reload finds the question
  try {
    for await (const delta of api.chat(body, settings.key(), controller.signal)) {
      view.take(delta, turn.words);
      note(turn, delta.notes);
      follow(false);
      turn.parts = view.parts;
      if (delta.content_parts || delta.audio || performance.now() - saved > SAVE_MS) {
        saved = performance.now();
        save(conversation, turn);
      }
    }
    turn.state = "done";
    say("Answer finished", true);
  } catch (error) {
    if (controller.signal.aborted) {
      turn.state = "stopped";
      say("Stopped");
    } else {
      if (!(error instanceof api.ApiError)) console.error(error);
      turn.state = "failed";
      turn.error = error instanceof api.ApiError ? { message: error.message, status: error.status } : { message: "The answer cannot be shown.", status: 0 };
      say("");
    }
  }
  turn.seconds = (performance.now() - begun) / 1000;
  turn.parts = view.parts;
  await save(conversation, turn); // an answer that is shown as ended is found after a reload
  view.finish(turn);
  if (state.running === controller) {
    state.running = null;
    busy(false);
  }
  follow(false);
}

/** The turns that the model is shown before this one: those whose answers are whole, or were stopped by the user. */
function before(turn) {
  const earlier = state.turns.slice(0, state.turns.indexOf(turn)).filter((one) => one.state === "done" || one.state === "stopped");
  const count = state.info?.history_turns ?? earlier.length; // as many as the model looks back at
  return earlier.slice(Math.max(0, earlier.length - count));
}

/** Shows what the server left out of the files of this turn; its notes are of earlier turns, too. */
function note(turn, notes) {
  if (turn.notes.length || !notes.length) return;
  const told = before(turn).flatMap((one) => one.notes);
  turn.notes = notes.filter((one) => {
    const at = told.indexOf(one);
    if (at >= 0) told.splice(at, 1);
    return at < 0;
  });
  turn.views.question.note(turn.notes);
}

/** What the model is shown for this turn: earlier questions and answers, and its question. */
function conversationOf(turn) {
  const messages = before(turn).flatMap((one) => {
    const asked = messageOf(one);
    return one.parts.length ? [asked, { role: "assistant", content: toldIn(one.parts) }] : [asked];
  });
  return [...messages, messageOf(turn)];
}

/** Whether a turn shows the model a medium, or the model wrote one in it. */
const holdsMedia = ({ attached, parts }) => attached.length > 0 || parts.some(({ type }) => type !== "text");

/** Of the media that the model was shown, how much of the words of this turn's answer came from each. */
async function findSources(turn, text) {
  const messages = [...conversationOf(turn), { role: "assistant", content: text }];
  return (await api.attributions({ model: state.info?.model, messages }, settings.key())).media;
}

function request(turn, seed) {
  const { make } = turn;
  const body = { model: state.info?.model, messages: conversationOf(turn), seed, stream: true, stream_partial: true };
  body.modalities = make === "auto" ? (state.writes ?? ["text"]) : [make]; // what we show is asked for by name
  for (const name of ["temperature", "guidance"]) if (settings.number(name) !== undefined) body[name] = settings.number(name);
  if (make === "audio" && settings.get("voice")) body.audio = { voice: settings.get("voice"), format: "wav" };
  return body;
}

/** A question as a message: plain words, or parts. */
function messageOf({ words, attached }) {
  if (!attached.length) return { role: "user", content: words };
  const parts = attached.map(partOf);
  return { role: "user", content: words ? [...parts, { type: "text", text: words }] : parts };
}

/** An answer as a message: plain words, or parts. */
const toldIn = (parts) => (parts.every(({ type }) => type === "text") ? parts.map(({ text }) => text).join("\n") : parts);

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
byId("new").addEventListener("click", () => {
  notify("");
  begin();
});

// ---- a question that is changed

function edit(turn) {
  if (state.running) return;
  state.edited = turn;
  byId("editing").hidden = false;
  composer.fill(turn.words, turn.attached);
  const choice = document.querySelector(`input[name=make][value="${CSS.escape(turn.make)}"]`);
  if (choice) choice.checked = true;
  box.focus();
}

function stopEditing() {
  if (!state.edited) return;
  state.edited = null;
  byId("editing").hidden = true;
  composer.fill("", []);
}

byId("stop-editing").addEventListener("click", () => {
  stopEditing();
  box.focus();
});

/** Takes a turn and those behind it out of the conversation; the notice brings them back. */
function replaceFrom(turn) {
  const { conversation } = state;
  const removed = state.turns.splice(state.turns.indexOf(turn));
  const take = (turns) => {
    for (const one of turns) {
      one.gone = true;
      one.views.question.article.remove();
      one.views.answer.article.remove();
    }
    store.dropTurns(turns).catch(() => {});
  };
  take(removed);
  stopEditing();
  notify("The question was changed; what followed it was taken out.", ["Undo", async () => {
    if (state.running || state.conversation?.id !== conversation.id) return;
    const back = removed.splice(0); // a second click finds nothing
    if (!back.length) return;
    take(state.turns.splice(back[0].place));
    for (const one of back) {
      one.gone = false;
      append(one);
    }
    notify("Putting back …");
    await save(conversation, ...back);
    if (!state.unkept) notify(""); // they are found after a reload
  }]);
}

// ---- media of an answer that go with the next question

async function attachAnswer(kind, url) {
  try {
    composer.attach(await fromAnswer(kind, url, `that ${nounOf(kind)}`));
  } catch (error) {
    notify(error.message);
  }
  const words = document.querySelector("input[name=make][value=text]");
  if (making() !== "auto") words.checked = true; // one asks about it in order to be told
  box.focus();
}

// ---- keyboard and dialogs

box.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (composer.recording) composer.endRecording(false);
  else if (state.running) state.running.abort();
  else stopEditing();
});

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // the backdrop
  });
}

const connected = connect();
await Promise.race([connected, new Promise((resolve) => setTimeout(resolve, PATIENCE_MS))]);
if (settings.get("conversation")) await show(settings.get("conversation")).catch(() => {});
document.documentElement.dataset.ready = "true";
if (matchMedia("(pointer: fine)").matches) box.focus(); // on a phone the keyboard would cover the page
