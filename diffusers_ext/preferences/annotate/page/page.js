// The page: what is shown now, what a key or a click does to it, and the way to the server and back.
//
// A judgement is kept in the browser with every change (a draft), so that a reload or a crash loses nothing, and is
// gone from there only once the server has said that it is on the disk.

import { dropDraft, newNonce, readDraft, writeDraft } from "./drafts.js";
import { listen } from "./events.js";
import * as J from "./judgement.js";
import { buildHelp } from "./keys.js";
import { renderReport } from "./report.js";
import { build, byId, describe, render, showView } from "./view.js";
import { addressOf, call } from "./wire.js";

const MISSING = "A picture of this prompt is missing. K skips the prompt; tell whoever runs the server.";

const state = {
  annotator: "", todo: [], skipped: [], total: 0, judged: 0, // todo, skipped: positions not judged yet
  view: "login", position: 0, item: null, // and, of the item shown: judgement, past, future, selected, axis ...
  busy: false, pending: [], large: false,
};

// ---- which prompt

async function begin(annotator) {
  const progress = await call(`api/progress?annotator=${encodeURIComponent(annotator)}`);
  state.annotator = progress.annotator;
  history.replaceState(null, "", `?annotator=${encodeURIComponent(state.annotator)}${location.hash}`);
  document.title = `Annotate: ${state.annotator}`;
  byId("who").textContent = state.annotator;
  count(progress);
  const asked = /^#(\d+)$/.exec(location.hash);
  if (asked && asked[1] >= 1 && asked[1] <= state.total) await show(Number(asked[1]) - 1);
  else await next();
}

function count({ todo, skipped, total, judged }) {
  Object.assign(state, { todo, skipped, total, judged });
}

// The first prompt after this one that is not judged, or from the start again.
async function next(after = -1) {
  const position = state.todo.find((each) => each > after) ?? state.todo[0];
  if (position === undefined) finish();
  else await show(position);
}

function finish() {
  state.view = "done";
  state.position = state.total;
  history.replaceState(null, "", location.href.split("#")[0]);
  showView("done", state);
  const { length } = state.skipped;
  byId("done-title").textContent = length
    ? `Done, apart from ${length} skipped ${length === 1 ? "prompt" : "prompts"}. Thank you.`
    : "All prompts are judged. Thank you.";
  byId("to-skipped").hidden = !length;
  byId("to-skipped").textContent = "Return to what was skipped";
}

const fetchItem = (position) =>
  call(`api/item?annotator=${encodeURIComponent(state.annotator)}&position=${position}`);

async function show(position) {
  const item = await fetchItem(position);
  const { shown } = item.display;
  const urls = shown.map((number) => (item.missing.includes(number) ? null : addressOf(item.urls[number])));
  Object.assign(state, { position, item, urls, past: [], future: [] });
  Object.assign(state, readDraft(state.annotator, item) ?? {
    judgement: item.judgement ? J.fromRecord(item.judgement, shown) : J.empty(shown.length),
    changed: false,
    nonce: newNonce(),
    seconds: 0,
  });
  Object.assign(state, { selected: 0, axis: J.AXES[0], view: "work", since: performance.now() });
  history.replaceState(null, "", `#${position + 1}`);
  byId("show-newer").hidden = true;
  showView("work", state);
  build(state, act);
  focusSelected();
  if (state.changed) say("What you had entered here is back; it is not saved yet.");
  else if (item.skipped) say("Skipped before; saving judges it after all.");
  else say(item.judgement ? "Judged before; a change is saved as a correction." : "");
  if (item.missing.length) say(MISSING, true);
  preload();
}

// The next prompt's images, so that they stand there at once.
async function preload() {
  const position = state.todo.find((each) => each > state.position);
  if (position === undefined) return;
  const { urls } = await fetchItem(position).catch(() => ({ urls: [] }));
  for (const url of urls) new Image().src = addressOf(url);
}

// ---- the clock

// Seconds with this prompt in view; the clock stands still while the page is hidden.
function secondsSoFar() {
  return state.seconds + (document.hidden || state.view !== "work" ? 0 : (performance.now() - state.since) / 1000);
}

function pauseClock() {
  if (state.item && document.hidden) state.seconds += (performance.now() - state.since) / 1000;
  state.since = performance.now();
}

// ---- changes

function change(judgement) {
  if (JSON.stringify(judgement) === JSON.stringify(state.judgement)) return;
  state.past.push(state.judgement);
  state.future = [];
  become(judgement);
}

// The nonce names this content: a save repeated with it is known to be the same one.
function become(judgement) {
  Object.assign(state, { judgement, changed: true, nonce: newNonce() });
  keepDraft();
  render(state);
}

function keepDraft() {
  const { annotator, item, judgement, changed, nonce } = state;
  writeDraft(annotator, item, { judgement, changed, nonce, seconds: secondsSoFar() });
}

function back(from, to, nothing) {
  if (!from.length) return say(nothing);
  to.push(state.judgement);
  become(from.pop());
  say(from === state.past ? "Undone." : "Redone.");
}

function select(image, scrolls = true) {
  if (image === state.selected || image < 0 || image >= state.urls.length) return;
  const axis = J.AXES.find((each) => state.judgement.ratings[image][each] === null) ?? J.AXES[0];
  Object.assign(state, { selected: image, axis });
  render(state);
  focusSelected(scrolls);
}

function focusSelected(scrolls = true) {
  const card = document.querySelector(`.card[data-image="${state.selected}"]`);
  const focused = document.activeElement;
  if (byId("zoom").open) return;
  if (focused.closest(".strip")) return card.querySelector(".active [tabindex='0']").focus();
  if (card.contains(focused)) return;
  card.focus({ preventScroll: true });
  if (scrolls) card.scrollIntoView({ block: "nearest" });
}

function rate(image, axis, value) {
  state.selected = image;
  state.axis = axis;
  change(J.rate(state.judgement, image, axis, value));
  say(`${J.letter(image)}: ${axis} ${value ?? "taken back"}`);
}

// After a number key: the next rating that is missing, in this image and then in those after it.
function rateAndGoOn(value) {
  const image = state.selected;
  rate(image, state.axis, value);
  if (value === null) return;
  const open = J.missing(state.judgement).filter((each) => each.axis);
  const to = open.find((each) => each.image >= image) ?? open[0];
  if (!to) return;
  Object.assign(state, { selected: to.image, axis: to.axis });
  render(state);
  focusSelected();
}

function drop(image, { slot, gap, tray }) {
  const { judgement } = state;
  const own = J.rankOf(judgement, image);
  if (slot !== undefined && slot !== own) change(J.place(judgement, image, slot, true));
  if (gap !== undefined) change(J.place(judgement, image, gap, false));
  if (tray) change(J.unrank(judgement, image));
  sayRank(image);
}

const sayRank = (image) => say(`${J.letter(image)}: ${describe(state.judgement, image).split(", overall")[0]}`);

function ranked(judgement) {
  change(judgement);
  sayRank(state.selected);
}

function rankedAt(image, change) {
  select(image, false);
  ranked(change(state.judgement, image));
}

// ---- saving

async function save() {
  const missing = J.missing(state.judgement);
  if (missing.length) return lead(missing);
  if (!state.changed && state.item.judgement) return next(state.position);
  const body = { ...identity(), nonce: state.nonce, time_s: Math.round(10 * secondsSoFar()) / 10,
    ...J.toRecord(state.judgement, state.item.display.shown) };
  say("Saving …");
  const answer = await call("api/judgement", body).catch(notSaved);
  if (!answer) return;
  dropDraft(state.annotator, state.item);
  count(answer);
  await next(state.position);
  sayDone("Saved.");
}

// Which prompt and pictures a judgement is of.
function identity() {
  const { id, images, digests, display, revision } = state.item;
  return { annotator: state.annotator, id, images, digests, display, replaces: revision };
}

// What was entered stays here as a draft, for when one returns.
async function skip() {
  if (state.item.judgement) return say("This prompt is judged; N goes to the next one.");
  const answer = await call("api/skip", { ...identity(), nonce: newNonce() }).catch(notSaved);
  if (!answer) return;
  state.item.revision = answer.saved.revision;
  if (state.changed) keepDraft();
  count(answer);
  await next(state.position);
  sayDone("Skipped; it is listed at the end.");
}

function lead(missing) {
  const { image, axis } = missing[0];
  select(image);
  if (axis) state.axis = axis;
  render(state);
  const texts = missing.slice(0, 4).map((each) => `${each.axis ?? "rank"} of ${J.letter(each.image)}`);
  say(`Still to do: ${texts.join(", ")}${missing.length > 4 ? ` and ${missing.length - 4} more` : ""}.`, true);
}

function notSaved(error) {
  if (error.status !== 409) return fail(`Not saved. ${error.message}`);
  // A second Enter says that this one shall stand; the other stays in the file.
  state.item.revision = error.answer.newer.revision;
  keepDraft();
  byId("show-newer").hidden = false;
  fail("This prompt was judged in another window meanwhile. Enter replaces that judgement with this one.");
}

async function showNewer() {
  dropDraft(state.annotator, state.item);
  await show(state.position);
}

// ---- the other pages

async function report() {
  say("Counting …");
  renderReport(await call("api/report"));
  if (state.view === "work") state.seconds = secondsSoFar();
  state.view = "report";
  showView("report", state);
  say("");
  byId("from-report").focus({ preventScroll: true });
  byId("report").scrollTop = 0;
}

// Back to the prompt as it was left, with all that can be undone.
function leaveReport() {
  if (state.position >= state.total) return finish();
  Object.assign(state, { view: "work", since: performance.now() });
  showView("work", state);
  focusSelected();
}

// Closing gives the focus back to the card that had it before, which then must not count as selecting that image.
function zoom() {
  const dialog = byId("zoom");
  state.large = true;
  if (dialog.open) dialog.close();
  else dialog.showModal();
}

// What was done, and what is wrong with the prompt that is shown now.
function sayDone(text) {
  const missing = state.view === "work" && state.item.missing.length > 0;
  say(missing ? `${text} ${MISSING}` : text, missing);
}

function say(text, fault = false) {
  byId("message").textContent = text;
  byId("message").classList.toggle("fault", fault);
}

// What was pressed in the belief that all went well is not done.
function fail(text) {
  state.pending = [];
  say(text, true);
}

// ---- keys and clicks

const ACTIONS = {
  rate, drop,
  select: (image, scrolls) => { if (!state.large) select(image, scrolls); },
  rateKey: rateAndGoOn,
  axis: (axis) => { state.axis = axis; render(state); },
  step: (by) => select(state.selected + by),
  letter: select,
  rankStep: (image, step) => rankedAt(image, (judgement) => J.move(judgement, image, step)),
  rankTie: (image) => rankedAt(image, J.toggleTie),
  zoomAt: (image) => { select(image, false); zoom(); },
  move: (step) => ranked(J.move(state.judgement, state.selected, step)),
  tie: () => ranked(J.toggleTie(state.judgement, state.selected)),
  byRating: () => { change(J.rankByOverall(state.judgement)); say("Ranked by overall rating."); },
  issue: (image, issue) => { state.selected = image; change(J.toggleIssue(state.judgement, image, issue)); },
  promptFlag: (flag) => change(J.togglePromptFlag(state.judgement, flag)),
  undo: () => back(state.past, state.future, "Nothing to undo; B goes back to the prompt before."),
  redo: () => back(state.future, state.past, "Nothing to redo."),
  go: (by) => {
    const position = state.position + by;
    return position >= 0 && position < state.total ? show(position) : say("There is none.");
  },
  zoom, save, skip, report, showNewer, leaveReport,
  toSkipped: () => show(state.skipped[0]),
  help: () => byId("help").showModal(),
};
const ANYWHERE = new Set(["go", "report", "help", "leaveReport", "toSkipped"]);

// One thing at a time: what is pressed while the server is asked waits, so that fast fingers lose nothing.
async function act(name, ...given) {
  if (state.busy) return void (name === "select" || state.pending.push([name, ...given]));
  if (state.view !== "work" && !ANYWHERE.has(name)) return;
  try {
    const waiting = ACTIONS[name](...given);
    if (!(waiting instanceof Promise)) return;
    state.busy = true;
    await waiting;
  } catch (error) {
    fail(error.message);
  }
  state.busy = false;
  while (state.pending.length && !state.busy) act(...state.pending.shift());
}

function zoomClosed() {
  state.large = false;
  focusSelected();
}

buildHelp();
listen({ state, act, zoom, zoomClosed, pauseClock, begin });
const asked = new URLSearchParams(location.search).get("annotator");
const clean = asked ? `?annotator=${encodeURIComponent(asked)}` : location.pathname; // the token is not for the history
history.replaceState(null, "", clean + location.hash);
showView("login", state);
if (!asked) byId("name").focus();
if (asked) {
  begin(asked).catch((error) => {
    byId("name").value = asked;
    byId("name-error").textContent = error.message;
  });
}
