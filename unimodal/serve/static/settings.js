// Settings of answers and of the page: kept by the browser, the key only for this tab.

import { byId, el } from "./dom.js";

const NUMBERS = ["temperature", "guidance", "seed"];
const KEPT = [...NUMBERS, "voice"];
const THEMES = ["system", "light", "dark"];
const now = {};

function read(name, store = localStorage) {
  try {
    return store.getItem(`unimodal.${name}`) ?? "";
  } catch {
    return "";
  }
}

/** Sets a setting, and keeps it where the browser lets us. */
export function write(name, value, store = localStorage) {
  now[name] = value;
  try {
    if (value === "") store.removeItem(`unimodal.${name}`);
    else store.setItem(`unimodal.${name}`, value);
  } catch {
    // storage is blocked: they hold until the page is left
  }
}

for (const name of [...KEPT, "make"]) now[name] = read(name);
now.key = read("key", sessionStorage);
now.conversation = read("conversation", sessionStorage); // the one that this tab shows

export const get = (name) => now[name] ?? "";
export const key = () => now.key;
export const number = (name) => (get(name) === "" ? undefined : Number(now[name]));
export const showConversation = (id) => write("conversation", id, sessionStorage);

/** What the server says of the model: its own settings as placeholders, its voices. `make`: what is to be made. */
export function describe(info, make) {
  const own = info?.sampling?.[make];
  for (const name of ["temperature", "guidance"]) {
    const first = name === "temperature" && own?.first_codes ? `${own.first_temperature}, then ` : "";
    byId(name).placeholder = own?.[name] === undefined ? "" : `the model’s own, ${first}${own[name]}`;
  }
}

export function offerVoices(voices) {
  byId("voice").replaceChildren(
    el("option", { value: "" }, "the model’s own"),
    ...voices.map((name) => el("option", { value: name }, name)),
  );
  byId("voice-field").hidden = !voices.length;
  if (!voices.includes(now.voice)) now.voice = ""; // another model's
}

export function open() {
  for (const name of [...KEPT, "key"]) byId(name).value = get(name);
  byId("settings").showModal();
}

/** Calls `changed(whether the key is another)` when the dialog was confirmed. */
export function whenDone(changed) {
  byId("settings-form").addEventListener("submit", () => {
    for (const name of KEPT) write(name, byId(name).value);
    const given = byId("key").value.trim();
    const another = given !== now.key;
    write("key", given, sessionStorage);
    changed(another);
  });
}

byId("reset").addEventListener("click", () => {
  for (const name of [...KEPT, "key"]) byId(name).value = "";
});

// ---- theme

function showTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme-icon").setAttribute("href", `#i-${theme}`);
  byId("theme-name").textContent = `Theme: ${theme}`;
  byId("theme").title = `Theme: ${theme}`;
}

let theme = THEMES.includes(read("theme")) ? read("theme") : "system";
showTheme(theme);
byId("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  write("theme", theme === "system" ? "" : theme);
  showTheme(theme);
});
