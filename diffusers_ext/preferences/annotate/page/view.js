// The document as a function of the state. Texts from the data are set as text, never as HTML.

import * as J from "./judgement.js";

export const byId = (id) => document.getElementById(id);
const VIEWS = ["login", "work", "done", "report"];

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function showView(name, { judged, total }) {
  for (const each of VIEWS) byId(each).hidden = each !== name;
  byId("top").hidden = name === "login";
  byId("bar").max = total || 1;
  byId("bar").value = judged;
  byId("count").textContent = `${judged} of ${total}`;
}

// Build the cards of a new prompt. act(name, ...) is what a click on a button does.
export function build(state, act) {
  byId("prompt").textContent = state.item.prompt;
  byId("category").textContent = state.item.category ?? "";
  const flags = J.PROMPT_FLAGS.map((flag) => chip(flag, () => act("promptFlag", flag)));
  byId("prompt-flags").replaceChildren(...flags);
  byId("cards").style.setProperty("--columns", columns(state.urls.length));
  byId("cards").replaceChildren(...state.urls.map((url, image) => card(url, image, act)));
  byId("tray").replaceChildren(...state.urls.map((url, image) => thumbnail(url, image)));
  byId("ranks").replaceChildren();
  render(state);
}

// Up to four in one row; more in two rows, as far as five fit beside each other.
const columns = (count) => (count <= 4 ? count : Math.min(Math.ceil(count / 2), 5));

export const KEY_OF = {
  overall: "O", alignment: "A", fidelity: "F",
  conflict: "C", limbs: "L", unclear: "U", toxic: "X", sex: "S", violence: "V",
  ambiguous: "M", harmful: "H",
};

// A word with the letter of its key underlined.
function keyed(word) {
  const at = word.toUpperCase().indexOf(KEY_OF[word.toLowerCase()]);
  return [word.slice(0, at), element("u", {}, word[at]), word.slice(at + 1)];
}

function chip(word, onClick) {
  const title = `key ${KEY_OF[word]}`;
  const made = element("button", { type: "button", class: "chip", "data-word": word, title }, ...keyed(word));
  made.addEventListener("click", onClick);
  return made;
}

const broken = () => element("p", { class: "broken" }, "Picture missing");

// url: null where the picture is missing.
function picture(url, image) {
  if (url === null) return broken();
  const made = element("img", { src: url, alt: `image ${J.letter(image)}`, draggable: "false" });
  made.addEventListener("error", () => made.replaceWith(broken()));
  return made;
}

// What the arrow keys, T and Space do, for fingers and the mouse.
const RANKING = [
  ["▲", "rank", "better", "rankStep", -1], ["▼", "rank", "worse", "rankStep", 1], ["=", "tie", "with the next better one", "rankTie"],
  ["⤢", "see", "large", "zoomAt"],
];

function rankRow(image, act) {
  const buttons = RANKING.map(([sign, verb, how, action, ...more]) => {
    const label = `${verb} ${J.letter(image)} ${how}`;
    const made = element("button", { type: "button", class: "step", "aria-label": label, title: label }, sign);
    made.addEventListener("click", () => act(action, image, ...more));
    return made;
  });
  return element("div", { class: "ranking", role: "group", "aria-label": `rank of ${J.letter(image)}` }, ...buttons);
}

function card(url, image, act) {
  const rows = J.AXES.map((axis) => ratingRow(image, axis, act));
  const flags = element("div", { class: "flags", role: "group", "aria-label": "issues" },
    ...J.ISSUES.map((issue) => chip(issue, () => act("issue", image, issue))));
  const top = element("div", { class: "picture" }, picture(url, image),
    element("b", { class: "letter" }, J.letter(image)), element("span", { class: "rank" }));
  const made = element("article", { class: "card", role: "group", tabindex: "-1", "data-image": image });
  made.append(top, rankRow(image, act), ...rows, flags);
  made.addEventListener("focusin", () => act("select", image));
  return made;
}

function ratingRow(image, axis, act) {
  const buttons = [1, 2, 3, 4, 5, 6, 7].map((value) => {
    const label = `${J.AXIS_TITLES[axis]} ${value}`;
    const made = element("button",
      { type: "button", role: "radio", "aria-label": label, "data-value": value, tabindex: "-1" }, `${value}`);
    made.addEventListener("click", () => act("rate", image, axis, value));
    return made;
  });
  const label = element("span", { class: "axis" }, ...keyed(J.AXIS_TITLES[axis]));
  const strip = element("span", { class: "strip", role: "radiogroup", "aria-label": `${J.AXIS_TITLES[axis]} of ${J.letter(image)}` }, ...buttons);
  return element("div", { class: "rating", "data-axis": axis }, label, strip);
}

function thumbnail(url, image) {
  return element("div", { class: "thumb", "data-thumb": image }, picture(url, image), element("b", {}, J.letter(image)));
}

export function render(state) {
  const { judgement, selected, axis } = state;
  for (const each of document.querySelectorAll(".card")) renderCard(each, state, Number(each.dataset.image));
  for (const each of byId("prompt-flags").children) press(each, judgement.promptFlags.includes(each.dataset.word));
  renderLadder(state);
  byId("undo").disabled = !state.past.length;
  byId("back").disabled = state.position === 0;
  byId("save").classList.toggle("ready", !J.missing(judgement).length);
  setText(byId("warnings"), warning(judgement));
  byId("zoomed").src = state.urls[selected] ?? "";
  byId("zoomed").alt = `image ${J.letter(selected)}`;
  setText(byId("zoom-caption"), `${J.letter(selected)}: ${describe(judgement, selected)}; now rating ${axis}`);
}

function warning(judgement) {
  const [first, ...more] = J.contradictions(judgement);
  if (!first) return "";
  const [better, worse] = first;
  const [above, below] = first.map((image) => judgement.ratings[image].overall);
  const rest = more.length ? `; and ${more.length} more` : "";
  return `Is this meant? ${J.letter(better)} is ranked above ${J.letter(worse)}, ` +
    `but rated lower overall (${above} and ${below})${rest}.`;
}

// Setting the same text again would make screen readers say it again.
function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

function press(button, on) {
  button.setAttribute("aria-pressed", on);
}

function renderCard(made, state, image) {
  const { judgement, selected, axis } = state;
  made.classList.toggle("selected", image === selected);
  made.tabIndex = image === selected ? 0 : -1;
  made.setAttribute("aria-label", `image ${J.letter(image)}: ${describe(judgement, image)}`);
  made.setAttribute("aria-current", image === selected);
  made.querySelector(".rank").textContent = rankTitle(judgement, image);
  for (const row of made.querySelectorAll(".rating")) {
    const value = judgement.ratings[image][row.dataset.axis];
    row.classList.toggle("active", image === selected && row.dataset.axis === axis);
    for (const button of row.querySelectorAll("button")) {
      button.setAttribute("aria-checked", Number(button.dataset.value) === value);
      button.tabIndex = Number(button.dataset.value) === (value ?? 1) ? 0 : -1; // one stop for each row, then the arrows
      button.classList.toggle("filled", value !== null && Number(button.dataset.value) <= value);
    }
  }
  for (const each of made.querySelectorAll(".chip")) press(each, judgement.issues[image].includes(each.dataset.word));
}

function rankTitle(judgement, image) {
  const at = J.rankOf(judgement, image);
  return at < 0 ? "" : `${judgement.ranks[at].length > 1 ? "=" : "#"}${at + 1}`;
}

export function describe(judgement, image) {
  const at = J.rankOf(judgement, image);
  const others = at < 0 ? [] : judgement.ranks[at].filter((each) => each !== image);
  const rank = at < 0 ? "not ranked" : `rank ${at + 1}${others.length ? `, tied with ${J.names(others)}` : ""}`;
  const ratings = J.AXES.map((axis) => `${axis} ${judgement.ratings[image][axis] ?? "–"}`);
  return [rank, ...ratings, ...judgement.issues[image]].join(", ");
}

// Gaps between ranks are targets of their own: dropped there, an image gets a rank to itself.
function renderLadder({ judgement, selected }) {
  const all = [...document.querySelectorAll(".thumb:not(.ghost)")];
  const thumbs = new Map(all.map((each) => [Number(each.dataset.thumb), each]));
  for (const [image, each] of thumbs) each.classList.toggle("selected", image === selected);
  const rows = judgement.ranks.flatMap((tied, at) => [
    element("li", { class: "gap", "data-gap": at, "aria-hidden": "true" }),
    element("li", { class: "slot", "data-slot": at, "aria-label": `rank ${at + 1}: ${J.names(tied)}` },
      element("span", { class: "place" }, `${at + 1}`), ...tied.map((image) => thumbs.get(image))),
  ]);
  const free = [...thumbs.keys()].filter((image) => J.rankOf(judgement, image) < 0);
  byId("tray").replaceChildren(...free.map((image) => thumbs.get(image)));
  byId("tray").classList.toggle("empty", !free.length);
  const last = element("li", { class: "gap last", "data-gap": judgement.ranks.length, "aria-hidden": "true" });
  byId("ranks").replaceChildren(...rows, last);
}
