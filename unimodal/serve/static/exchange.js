// Conversations as a JSON file: written for export, read again with nothing believed.

import { newId } from "./store.js";
import { isMedium } from "./media.js";

const FORMAT = "unimodal-conversations";
const VERSION = 1;
const STATES = ["done", "stopped", "failed"];

/** The text of a file. whole: [{conversation, turns}]. */
export function write(whole) {
  const conversations = whole.map(({ conversation: { name, created, updated }, turns }) => ({
    name, created, updated,
    turns: turns.map(({ words, attached, make, parts, notes, state, seed, seconds, error }) =>
      ({ words, attached, make, parts, notes, state, seed, seconds, error })),
  }));
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 1);
}

/** The conversations of such a text, under new ids. Throws an Error with one sentence. */
export function read(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("that is no JSON");
  }
  if (file?.format !== FORMAT || !Array.isArray(file.conversations)) throw new Error("that is no file of conversations of this page");
  if (file.version > VERSION) throw new Error(`it is of version ${file.version}, and this page reads ${VERSION}: take a newer server`);
  return file.conversations.map(readConversation);
}

function readConversation(raw) {
  const id = newId();
  const created = readTime(raw?.created);
  const turns = readList(raw?.turns).map((turn, place) => ({ ...readTurn(turn), id: newId(), conversation: id, place }));
  return { conversation: { id, name: readText(raw?.name).slice(0, 200) || "Imported", created, updated: Math.max(created, readTime(raw?.updated)) }, turns };
}

function readTurn(raw) {
  const state = STATES.includes(raw?.state) ? raw.state : "failed";
  const turn = {
    words: readText(raw?.words),
    attached: readList(raw?.attached).map(readMedium),
    make: readText(raw?.make) || "auto",
    parts: readList(raw?.parts).map(readPart),
    notes: readList(raw?.notes).map(readText),
    state,
    seed: readNumber(raw?.seed),
    seconds: readNumber(raw?.seconds),
  };
  const error = { message: readText(raw?.error?.message) || "This answer did not end.", status: readNumber(raw?.error?.status) };
  return state === "failed" ? { ...turn, error } : turn;
}

function readMedium(raw) {
  if (typeof raw?.kind !== "string" || !isMedium(raw.url)) throw new Error("a file in it cannot be read");
  return { kind: raw.kind, name: readText(raw.name) || raw.kind, url: raw.url };
}

function readPart(raw) {
  if (raw?.type === "text") return { type: "text", text: readText(raw.text) };
  const url = raw?.[raw?.type]?.url;
  if (typeof raw?.type !== "string" || !raw.type.endsWith("_url") || !isMedium(url)) throw new Error("an answer in it cannot be read");
  return { type: raw.type, [raw.type]: { url } };
}

const readText = (raw) => (typeof raw === "string" ? raw : "");
const readList = (raw) => (Array.isArray(raw) ? raw : []);
const readNumber = (raw) => (Number.isFinite(raw) ? raw : 0);
const readTime = (raw) => (Number.isFinite(raw) && raw > 0 ? raw : Date.now());
