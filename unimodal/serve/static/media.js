// Files and recordings to parts of a message, and data URLs back to bytes.

export const SAMPLE_RATE_HZ = 16000;
let maxBytes = 20 * 2 ** 20;
// A model's media by name, as the server lists them: {noun, type, suffixes, writes}.
let known = {};
// No SVG: a saved one that is opened can hold a script.
const SAFE_URL = /^data:(image\/(?:png|jpeg|webp|gif)|audio\/[\w.+-]+|video\/[\w.+-]+)(?:;[\w.+=-]+)*;base64,/;

/** A server takes requests of so many bytes, in which files are a third longer. */
export function setMaxBody(bytes) {
  if (bytes > 0) maxBytes = Math.floor(0.7 * bytes);
}

export function setMedia(media) {
  known = media;
}

export const nounOf = (kind) => known[kind]?.noun ?? kind;
export const nouns = () => Object.keys(known).map(nounOf);
export const isKnown = (kind) => kind in known;
export const suffixes = () => Object.values(known).flatMap(({ suffixes = [] }) => suffixes);
const SHOWN_KINDS = ["image", "audio", "video"]; // what a browser can show; anything else is a file to save

/** Whether an address may stand in a conversation: data of some type, which only typeOf says is shown. */
export const isMedium = (url) => typeof url === "string" && /^data:[\w.+-]+\/[\w.+-]+(?:;[\w.+=-]+)*;base64,/.test(url);

/** The suffix to save a file of a further medium with, or null where it is not of the type that the server names. */
export function suffixOf(kind, url) {
  const { type, suffixes = [] } = known[kind] ?? {};
  if (!type || SHOWN_KINDS.includes(kind) || !isMedium(url)) return null;
  return url.slice(5).split(/[;,]/)[0] === type ? (suffixes[0] ?? "").replace(".", "") : null;
}

/** The media type of a data URL, or null for any other address. */
export const typeOf = (url) => (typeof url === "string" ? (SAFE_URL.exec(url)?.[1] ?? null) : null);

export function bytesOf(url) {
  const text = atob(url.slice(url.indexOf(",") + 1));
  return Uint8Array.from(text, (letter) => letter.charCodeAt(0));
}

export const blobOf = (url) => new Blob([bytesOf(url)], { type: typeOf(url) });

export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("the file cannot be read"));
    reader.readAsDataURL(blob);
  });
}

/** A file as {kind, name, url}. Throws an Error with one sentence. */
export async function readFile(file) {
  if (!file.size) throw new Error(`${file.name} is empty.`);
  if (file.size > maxBytes) throw new Error(`${file.name} is larger than ${(maxBytes / 2 ** 20).toPrecision(2)} MB, the most that is sent.`);
  const kind = await kindOf(file);
  if (kind === "audio") return sound(await toWav(file), file.name);
  const url = await dataUrl(file);
  if (SHOWN_KINDS.includes(kind) && !typeOf(url)) throw new Error(`${file.name} is of no format that is read here.`);
  return { kind, name: file.name, url };
}

/** What a data URL of an answer becomes when it is shown to the model again. */
export const fromAnswer = async (kind, url, name) => (kind === "audio" ? sound(await toWav(blobOf(url)), name) : { kind, name, url });

const sound = async (wav, name) => ({ kind: "audio", name, url: await dataUrl(wav) });

/** An attachment as the part of a message. */
export function partOf({ kind, url }) {
  if (kind !== "audio") return { type: `${kind}_url`, [`${kind}_url`]: { url } };
  return { type: "input_audio", input_audio: { data: url.slice(url.indexOf(",") + 1), format: typeOf(url)?.split("/")[1].replace("x-", "") ?? "wav" } };
}

async function kindOf(file) {
  const kind = file.type.split("/")[0];
  if (kind === "image" && "video" in known && (await moves(file))) return "video";
  if (kind in known) return kind;
  const bySuffix = Object.keys(known).find((name) => known[name].suffixes?.some((suffix) => file.name.toLowerCase().endsWith(suffix)));
  if (bySuffix) return bySuffix;
  throw new Error(`${file.name} is nothing that this model reads: ${nouns().join(", ")}.`);
}

/** Whether a GIF or WebP has more than one picture. */
async function moves(file) {
  if (file.type !== "image/gif" && file.type !== "image/webp") return false;
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (file.type === "image/webp") return String.fromCharCode(...bytes.slice(12, 16)) === "VP8X" && (bytes[20] & 2) !== 0;
  let at = 13 + colourTable(bytes[10]);
  for (let pictures = 0; at < bytes.length; ) {
    if (bytes[at] === 0x2c) {
      if (++pictures > 1) return true;
      at += 10 + colourTable(bytes[at + 9]) + 1;
    } else if (bytes[at] === 0x21) at += 2;
    else break;
    while (bytes[at]) at += bytes[at] + 1;
    at += 1;
  }
  return false;
}

const colourTable = (flags) => (flags & 0x80 ? 3 * 2 ** ((flags & 7) + 1) : 0);

/** Any sound that the browser plays as WAV: mono, 16 bits, 16 kHz. */
export async function toWav(blob) {
  const context = new OfflineAudioContext(1, 1, SAMPLE_RATE_HZ);
  let decoded;
  try {
    decoded = await context.decodeAudioData(await blob.arrayBuffer()); // at the context's rate
  } catch {
    throw new Error(`${blob.name ?? "The sound"} cannot be decoded by this browser.`);
  }
  const mono = new Float32Array(decoded.length);
  for (let channel = 0; channel < decoded.numberOfChannels; channel++) {
    const samples = decoded.getChannelData(channel);
    for (let i = 0; i < mono.length; i++) mono[i] += samples[i] / decoded.numberOfChannels;
  }
  return wavFile(mono, SAMPLE_RATE_HZ);
}

/** Samples in [-1, 1] as a WAV file of 16 bits. */
export function wavFile(samples, rateHz) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const word = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  word(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  word(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rateHz, true);
  view.setUint32(28, 2 * rateHz, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  word(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, i) => view.setInt16(44 + 2 * i, Math.max(-32768, Math.min(32767, Math.round(value * 32768))), true));
  return new Blob([view], { type: "audio/wav" });
}

/** Records from the microphone until `stop` (gives the part) or `discard`. */
export class Recorder {
  async start(onTime, maxSeconds) {
    if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder)
      throw new Error("This browser records only on https pages or on localhost.");
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
    } catch (error) {
      throw new Error(
        error.name === "NotFoundError" ? "No microphone was found." : "The microphone may not be used; allow it in the browser.",
      );
    }
    this.chunks = [];
    this.recorder = new MediaRecorder(this.stream);
    this.recorder.ondataavailable = (event) => this.chunks.push(event.data);
    this.ended = new Promise((resolve) => (this.recorder.onstop = resolve));
    this.recorder.start();
    const begun = performance.now();
    this.timer = setInterval(() => {
      const seconds = (performance.now() - begun) / 1000;
      onTime(seconds, seconds >= maxSeconds);
    }, 100);
    onTime(0, false);
  }

  async stop() {
    await this.#end();
    const blob = new Blob(this.chunks, { type: this.recorder.mimeType });
    if (!blob.size) throw new Error("Nothing was recorded.");
    return sound(await toWav(blob), "recording");
  }

  discard() {
    return this.#end();
  }

  async #end() {
    clearInterval(this.timer);
    if (this.recorder.state !== "inactive") this.recorder.stop();
    await this.ended;
    this.stream.getTracks().forEach((track) => track.stop());
  }
}
