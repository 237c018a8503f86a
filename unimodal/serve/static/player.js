// A sound as a row of bars that is also its slider, and a clip with a button instead of controls that would cover it.

import { action, el, icon } from "./dom.js";
import { SAMPLE_RATE_HZ, blobOf } from "./media.js";

const BARS = 56;

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

/** Plays a data URL; the level of each moment is drawn as soon as the browser has decoded it. */
export function soundPlayer(url, called) {
  const audio = el("audio", { preload: "auto", src: url });
  const button = el("button", { type: "button", class: "round filled-round" });
  const bars = Array.from({ length: BARS }, () => el("i"));
  const place = el("input", { type: "range", min: 0, max: 1000, value: 0, "aria-label": `Position in ${called}` });
  const time = el("span", { class: "time" }, "0:00");
  const wave = el("div", { class: "wave" }, el("div", { class: "bars", "aria-hidden": "true" }, ...bars), place);

  const show = () => {
    const whole = Number.isFinite(audio.duration) ? audio.duration : 0;
    const share = whole ? audio.currentTime / whole : 0;
    bars.forEach((bar, i) => bar.classList.toggle("played", (i + 0.5) / BARS <= share));
    place.value = Math.round(1000 * share);
    place.setAttribute("aria-valuetext", `${audio.currentTime.toFixed(1)} of ${whole.toFixed(1)} seconds`);
    time.textContent = audio.paused && !audio.currentTime ? clock(Math.max(1, Math.round(whole))) : clock(audio.currentTime);
  };
  const run = () => {
    show();
    if (!audio.paused) requestAnimationFrame(run);
  };
  const state = () => {
    button.replaceChildren(icon(audio.paused ? "play" : "pause"));
    button.setAttribute("aria-label", `${audio.paused ? "Play" : "Pause"} ${called}`);
  };
  button.addEventListener("click", () => {
    for (const other of document.querySelectorAll(".sound audio")) if (other !== audio) other.pause();
    if (audio.paused) audio.play().catch(() => (time.textContent = "cannot be played"));
    else audio.pause();
  });
  place.addEventListener("input", () => {
    if (audio.duration) audio.currentTime = (place.value / 1000) * audio.duration;
    show();
  });
  audio.addEventListener("play", () => (state(), run()));
  audio.addEventListener("pause", () => (state(), show()));
  audio.addEventListener("loadedmetadata", show);
  audio.addEventListener("ended", () => (audio.currentTime = 0));
  audio.addEventListener("error", () => (time.textContent = "cannot be played"));
  state();
  levels(url).then((heights) => heights.forEach((height, i) => (bars[i].style.height = `${Math.max(8, 100 * height)}%`)), () => {});
  return el("div", { class: "sound", role: "group", "aria-label": called }, button, wave, time, audio);
}

/** The loudness of each bar, 0 to 1. */
async function levels(url) {
  const context = new OfflineAudioContext(1, 1, SAMPLE_RATE_HZ);
  const samples = (await context.decodeAudioData(await blobOf(url).arrayBuffer())).getChannelData(0);
  const found = Array.from({ length: BARS }, (_, i) => {
    const part = samples.subarray(Math.floor((i * samples.length) / BARS), Math.floor(((i + 1) * samples.length) / BARS));
    return Math.sqrt(part.reduce((sum, value) => sum + value * value, 0) / Math.max(1, part.length));
  });
  const most = Math.max(...found);
  return found.map((value) => (most ? value / most : 0));
}

/** A silent clip that repeats. `ready` is told its width. A large one gets the browser's controls. */
export function clipPlayer(url, called, ready) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const video = el("video", { loop: true, muted: true, playsInline: true, autoplay: !still, src: url, "aria-label": called });
  const toggle = action("pause", "Pause", () => (video.paused ? video.play() : video.pause()));
  const state = () => {
    toggle.firstElementChild.replaceWith(icon(video.paused ? "play" : "pause"));
    toggle.lastElementChild.textContent = video.paused ? "Play" : "Pause";
  };
  video.addEventListener("play", state);
  video.addEventListener("pause", state);
  video.addEventListener("loadedmetadata", () => ready(video, video.videoWidth));
  if (still) state();
  return { video, toggle };
}
