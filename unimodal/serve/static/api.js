// The server's HTTP interface. Errors arrive as ApiError with one sentence for the user.

export class ApiError extends Error {
  constructor(message, status = 0, retryAfterS = null) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

const UNREACHABLE = "The server cannot be reached. Check that it still runs, then try again.";

function headers(key) {
  const found = { "Content-Type": "application/json" };
  if (key) found.Authorization = `Bearer ${key}`;
  return found;
}

async function send(path, key, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers(key) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(key && /[^\x20-\x7e]/.test(key) ? "The API key holds signs that no key has; type it again." : UNREACHABLE);
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  let said = "";
  try {
    said = (await response.json()).error.message;
  } catch {
    // not the server's own error: a proxy's page, say
  }
  const after = Number.parseFloat(response.headers.get("Retry-After"));
  const own = {
    401: "This server asks for an API key, and the one given is not right. Enter it in the settings.",
    413: "That is larger than the server takes. Attach something smaller.",
    429: "The server is busy with other requests. Try again in a moment.",
  }[response.status];
  return new ApiError(own ?? (said || `The server answered ${response.status}.`), response.status, after > 0 ? after : null);
}

async function json(path, key, body, signal) {
  const options = body === undefined ? { signal } : { method: "POST", body: JSON.stringify(body), signal };
  return (await send(path, key, options)).json();
}

export const settings = (key) => json("v1/settings", key);
export const tokenize = (url, key, signal) => json("v1/tokenize", key, { url }, signal);
export const detokenize = (modality, codes, prefix, key, signal) =>
  json("v1/detokenize", key, { modality, codes, prefix }, signal);

/** Of the media in a conversation, how much of its last message came from each. */
export const attributions = (body, key) => json("v1/attributions", key, body);

/** The deltas of a streamed answer, one by one, each with `notes`: what was left out of the files that were sent. Ends after `[DONE]`; an answer that breaks off is an ApiError. */
export async function* chat(body, key, signal) {
  const response = await send("v1/chat/completions", key, { method: "POST", body: JSON.stringify(body), signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    let chunk;
    try {
      chunk = JSON.parse(data);
    } catch {
      throw new ApiError("The server sent something that cannot be read.");
    }
    if (chunk.error) throw new ApiError(chunk.error.message || "The server could not go on.", 500);
    const delta = chunk.choices?.[0]?.delta;
    if (delta) yield { ...delta, notes: chunk.notes ?? [] };
  }
  throw new ApiError("The answer broke off before its end. Try again.");
}

/** The data of server-sent events in a stream of bytes, wherever the bytes were cut. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let lines = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const cut = (rest + value).split("\n");
      rest = cut.pop();
      for (const raw of cut) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line.startsWith("data:")) lines.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && lines.length) {
          yield lines.join("\n");
          lines = [];
        }
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection was lost before the answer ended. Try again.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
