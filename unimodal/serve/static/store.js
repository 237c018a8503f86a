// Conversations in the browser's own database: a record each, and one for every turn, so that a turn is saved without
// writing the pictures of the others again.
//
// conversation {id, name, created, updated}
// turn {id, conversation, place, words, attached: [{kind, name, url}], make, parts, notes, state, seed, seconds, error}
// state: "writing" while it is answered, then "done", "stopped" or "failed" (with error {message, status})

const DATABASE = "unimodal";
const VERSION = 1;

export const newId = () => `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 12)}`;

let opened = null;

function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("turns", { keyPath: "id" }).createIndex("conversation", "conversation");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another tab holds the database"));
  });
  return opened;
}

const result = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** Runs `work(conversations, turns)` as one transaction, and waits until it is on disk. */
async function change(work) {
  const database = await open();
  const transaction = database.transaction(["conversations", "turns"], "readwrite");
  const ended = new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error ?? new Error("the browser gave it up"));
  });
  ended.catch(() => {}); // told below
  await work(transaction.objectStore("conversations"), transaction.objectStore("turns"));
  await ended;
}

async function look(store, ask) {
  const database = await open();
  return result(ask(database.transaction(store, "readonly").objectStore(store)));
}

/** All conversations, the latest first. */
export async function list() {
  const found = await look("conversations", (store) => store.getAll());
  return found.sort((a, b) => b.updated - a.updated);
}

export const find = (id) => look("conversations", (store) => store.get(id));

/** The turns of a conversation, in their order. */
export async function turns(id) {
  const found = await look("turns", (store) => store.index("conversation").getAll(id));
  return found.sort((a, b) => a.place - b.place);
}

/** Saves a conversation and some of its turns. */
export const save = (conversation, ...some) =>
  change((conversations, turns) => {
    conversations.put(conversation);
    some.forEach((turn) => turns.put(turn));
  });

export const dropTurns = (some) => change((_, turns) => some.forEach(({ id }) => turns.delete(id)));

export const remove = (id) =>
  change(async (conversations, turns) => {
    conversations.delete(id);
    for (const key of await result(turns.index("conversation").getAllKeys(id))) turns.delete(key);
  });
