// A picture as large as one likes: fitted to the window, then in steps, moved by scrolling or by dragging.

import { byId, el } from "./dom.js";

const STEP = 1.5;
const MOST = 32; // times its own size
const SQUARES = 2; // from this enlargement on a pixel is a square

const dialog = byId("zoom");
const stage = byId("zoom-stage");
let image = null;
let scale = 1;

/** The largest scale at which all of the picture is seen; a small one in whole multiples. */
function fitting() {
  const fit = Math.min(stage.clientWidth / image.naturalWidth, stage.clientHeight / image.naturalHeight);
  return fit > 1 ? Math.max(1, Math.floor(fit)) : fit;
}

function show(wanted) {
  const least = Math.min(1, fitting());
  const [x, y] = [stage.scrollLeft + stage.clientWidth / 2, stage.scrollTop + stage.clientHeight / 2].map((at) => at / scale);
  scale = Math.min(MOST, Math.max(least, wanted));
  image.style.width = `${Math.round(image.naturalWidth * scale)}px`;
  image.classList.toggle("crisp", scale >= SQUARES);
  stage.scrollLeft = x * scale - stage.clientWidth / 2; // the middle stays where it is
  stage.scrollTop = y * scale - stage.clientHeight / 2;
  byId("zoom-scale").textContent = `${Math.round(100 * scale)} %`;
}

export function zoom(url, called) {
  image = el("img", { alt: called, draggable: false });
  image.addEventListener("load", () => show(fitting()));
  image.src = url;
  stage.replaceChildren(image);
  byId("zoom-title").textContent = called;
  dialog.showModal();
}

byId("zoom-in").addEventListener("click", () => show(scale * STEP));
byId("zoom-out").addEventListener("click", () => show(scale / STEP));
byId("zoom-fit").addEventListener("click", () => show(fitting()));
dialog.addEventListener("keydown", (event) => {
  const act = { "+": () => show(scale * STEP), "=": () => show(scale * STEP), "-": () => show(scale / STEP), 0: () => show(fitting()) }[event.key];
  if (!act || event.ctrlKey || event.metaKey) return; // those are the browser's own
  event.preventDefault();
  act();
});
stage.addEventListener("dblclick", () => show(scale > fitting() ? fitting() : scale * STEP ** 2));
stage.addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return; // also what two fingers on a touch pad send
  event.preventDefault();
  show(scale * (event.deltaY < 0 ? STEP : 1 / STEP));
}, { passive: false });
stage.addEventListener("pointerdown", (event) => {
  if (event.pointerType !== "mouse") return; // fingers scroll
  const from = [event.clientX + stage.scrollLeft, event.clientY + stage.scrollTop];
  const drag = (move) => stage.scrollTo(from[0] - move.clientX, from[1] - move.clientY);
  stage.setPointerCapture(event.pointerId);
  stage.addEventListener("pointermove", drag);
  stage.addEventListener("pointerup", () => stage.removeEventListener("pointermove", drag), { once: true });
});
