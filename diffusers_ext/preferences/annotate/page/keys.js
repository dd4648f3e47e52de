// The keyboard: one table, of which the help is made and by which keys are looked up.

import { ISSUES, PROMPT_FLAGS } from "./judgement.js";
import { KEY_OF, byId, element } from "./view.js";

const issueKeys = Object.fromEntries(ISSUES.map((issue) => [KEY_OF[issue], ["issue", issue]]));
const flagKeys = Object.fromEntries(PROMPT_FLAGS.map((flag) => [KEY_OF[flag], ["promptFlag", flag]]));

// [what the help shows, what it says, {key: [action, argument]}]
const TABLE = [
  ["1 – 7", "rate the selected image, and go to the next rating", {}],
  ["0", "take the rating back", { 0: ["rate", null], Backspace: ["rate", null] }],
  ["O  A  F", "rate overall, alignment with the text, fidelity", {
    O: ["axis", "overall"], A: ["axis", "alignment"], F: ["axis", "fidelity"] }],
  ["←  →", "select an image; also Shift and its letter", { ArrowLeft: ["step", -1], ArrowRight: ["step", 1] }],
  ["↑  ↓", "rank it better or worse", { ArrowUp: ["move", -1], ArrowDown: ["move", 1] }],
  ["T", "tie it with the next better one, or untie it", { T: ["tie"] }],
  ["R", "rank all by their overall ratings", { R: ["byRating"] }],
  ["Space", "see it large, and small again", { " ": ["zoom"] }],
  [ISSUES.map((issue) => KEY_OF[issue]).join("  "), `flag the image: ${ISSUES.join(", ")}`, issueKeys],
  [PROMPT_FLAGS.map((flag) => KEY_OF[flag]).join("  "), `flag the prompt: ${PROMPT_FLAGS.join(", ")}`, flagKeys],
  ["Z  Shift+Z", "undo, redo; also Ctrl", { Z: ["undo"], "Shift+Z": ["redo"] }],
  ["Enter", "save and continue", { Enter: ["save"] }],
  ["K", "skip this prompt; skipped ones are listed at the end", { K: ["skip"] }],
  ["B  N", "previous, next prompt, without saving", { B: ["go", -1], N: ["go", 1] }],
  ["G", "progress and agreement", { G: ["report"] }],
  ["?", "these keys", { "?": ["help"] }],
];
const ACTIONS = Object.assign({}, ...TABLE.map(([, , actions]) => actions));

export function buildHelp() {
  byId("keys").replaceChildren(...TABLE.flatMap(([keys, text]) => [
    element("dt", {}, ...keys.split("  ").map((key) => element("kbd", {}, key))),
    element("dd", {}, text),
  ]));
}

// What a key event asks for: [action, argument], or null. Digits go by the key's place, as some layouts shift them.
export function actionOf(event) {
  if (event.altKey || event.isComposing) return null;
  const upper = event.key.length === 1 ? event.key.toUpperCase() : event.key;
  if (event.ctrlKey || event.metaKey) {
    if (upper === "Z") return [event.shiftKey ? "redo" : "undo"];
    return upper === "Y" ? ["redo"] : null;
  }
  const digit = event.key.length === 1 ? /^(Digit|Numpad)([0-7])$/.exec(event.code)?.[2] : null;
  if (digit && !(event.shiftKey && /[^0-9]/.test(event.key))) return ["rate", Number(digit) || null];
  if (event.shiftKey && /^[A-Z]$/.test(upper)) return upper === "Z" ? ["redo"] : ["letter", upper.charCodeAt(0) - 65];
  return ACTIONS[upper] ?? null;
}
