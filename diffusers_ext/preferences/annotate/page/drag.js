// Dragging images into ranks with mouse, pen or finger. `grab(image)` is told what was taken, `drop(image, target)` where
// it was let go: {slot} ties it with that rank, {gap} gives it a rank of its own, {tray} takes it out.

import { byId } from "./view.js";

const START = 4; // pixels of movement that tell a drag from a click
const EDGE = 48; // pixels from the edge of the window where dragging scrolls

export function makeDraggable(grab, drop) {
  const work = byId("work");
  let held = null;

  work.addEventListener("pointerdown", (event) => {
    const source = event.target.closest("button") ? null : event.target.closest(".thumb, .picture");
    const scrolls = event.pointerType === "touch" && !source?.matches(".thumb"); // a finger on a card scrolls the page
    if (!source || event.button || scrolls) return;
    const image = source.dataset.thumb ?? source.closest(".card").dataset.image;
    held = { image: Number(image), x: event.clientX, y: event.clientY, ghost: null };
    grab(held.image);
    source.setPointerCapture(event.pointerId);
    event.preventDefault();
  });

  work.addEventListener("pointermove", (event) => {
    if (!held || (!held.ghost && Math.hypot(event.clientX - held.x, event.clientY - held.y) < START)) return;
    held.ghost ??= lift(held.image);
    held.ghost.style.transform = `translate(${event.clientX}px, ${event.clientY}px)`;
    scrollAtEdge(work, event.clientY);
    mark(targetAt(event));
  });

  const end = (event) => {
    if (!held) return;
    const { image, ghost } = held;
    const target = event.type === "pointerup" && ghost ? targetAt(event) : null;
    held = null;
    ghost?.remove();
    document.querySelector(".thumb.lifted")?.classList.remove("lifted");
    document.body.classList.remove("dragging");
    mark(null);
    if (target) drop(image, meaning(target));
  };
  work.addEventListener("pointerup", end);
  work.addEventListener("pointercancel", end);
}

function lift(image) {
  const thumb = document.querySelector(`.thumb[data-thumb="${image}"]`);
  const ghost = thumb.cloneNode(true);
  ghost.classList.add("ghost");
  document.body.append(ghost);
  document.body.classList.add("dragging");
  thumb.classList.add("lifted");
  return ghost;
}

function scrollAtEdge(work, y) {
  const { top, bottom } = work.getBoundingClientRect();
  if (y < top + EDGE) work.scrollBy(0, -EDGE / 4);
  if (y > bottom - EDGE) work.scrollBy(0, EDGE / 4);
}

function targetAt(event) {
  return document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-slot], [data-gap], [data-tray]") ?? null;
}

function mark(target) {
  for (const each of document.querySelectorAll(".target")) each.classList.remove("target");
  target?.classList.add("target");
}

function meaning({ dataset }) {
  if (dataset.slot !== undefined) return { slot: Number(dataset.slot) };
  return dataset.gap !== undefined ? { gap: Number(dataset.gap) } : { tray: true };
}
