// What keys, clicks, drags and forms ask the page for. `act(name, ...)` does it.

import { makeDraggable } from "./drag.js";
import { actionOf } from "./keys.js";
import { byId } from "./view.js";

// What a click on a button does, by the button's id.
const CLICKS = {
  save: "save", skip: "skip", "to-skipped": "toSkipped", undo: "undo", "by-rating": "byRating", "show-newer": "showNewer",
  "to-report": "report", "from-report": "leaveReport", "to-help": "help",
};

export function listen(page) {
  document.addEventListener("keydown", (event) => onKey(event, page));
  listenToButtons(page);
  listenToPictures(page);
  document.addEventListener("visibilitychange", page.pauseClock);
  byId("name-form").addEventListener("submit", (event) => {
    event.preventDefault();
    page.begin(byId("name").value).catch((error) => { byId("name-error").textContent = error.message; });
  });
}

function onKey(event, { state, act, zoom }) {
  const onButton = event.target.closest("button, input, a") && ["Enter", " "].includes(event.key);
  const asked = actionOf(event);
  if (state.view === "login" || byId("help").open || onButton) return;
  if (event.key === "Escape" && state.view === "report") act("leaveReport");
  if (!asked || (event.repeat && ["save", "rate", "skip"].includes(asked[0]))) return;
  event.preventDefault();
  const [name, argument] = asked;
  const strip = event.target.closest(".strip");
  if (name === "step" && strip) rateBeside(event.target, strip, argument, act);
  else if (name === "rate") act("rateKey", argument);
  else if (name === "issue") act("issue", state.selected, argument);
  else if (name === "save" && byId("zoom").open) zoom();
  else act(name, argument);
}

// On a row of numbers, left and right choose the number beside.
function rateBeside(button, strip, step, act) {
  const value = Math.min(7, Math.max(1, Number(button.dataset.value) + step));
  act("rate", Number(strip.closest(".card").dataset.image), strip.closest(".rating").dataset.axis, value);
  strip.querySelector("[tabindex='0']").focus();
}

function listenToButtons({ act }) {
  for (const [id, name] of Object.entries(CLICKS)) byId(id).addEventListener("click", () => act(name));
  byId("back").addEventListener("click", () => act("go", -1));
  byId("close-help").addEventListener("click", () => byId("help").close());
  // A click leaves the focus on the card, so that Enter saves and does not press that button again.
  byId("work").addEventListener("mousedown", (event) => event.target.closest("button") && event.preventDefault());
}

function listenToPictures({ act, zoom, zoomClosed }) {
  byId("cards").addEventListener("dblclick", (event) => event.target.closest(".picture") && act("zoom"));
  byId("zoom").addEventListener("click", zoom);
  byId("zoom").addEventListener("close", zoomClosed);
  makeDraggable((image) => act("select", image, false), (image, target) => act("drop", image, target));
}
