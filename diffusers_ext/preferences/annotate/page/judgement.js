// One judgement as the page holds it, and everything that can be done to it. Nothing here touches the document.
//
// Images go by their place on the page, 0 to K-1. `ranks` lists ranks from the best down, each a list of tied images;
// an image in none of them is not ranked yet. Every change returns a new judgement, so that undo is a list of old ones.

export const AXES = ["overall", "alignment", "fidelity"];
export const AXIS_TITLES = { overall: "Overall", alignment: "Alignment", fidelity: "Fidelity" };
export const ISSUES = ["conflict", "limbs", "unclear", "toxic", "sex", "violence"];
export const PROMPT_FLAGS = ["ambiguous", "harmful"];

// A to Z, then AA, AB ...
export const letter = (image) =>
  (image < 26 ? "" : letter(Math.floor(image / 26) - 1)) + String.fromCharCode(65 + (image % 26));
export const names = (images) => images.map(letter).join(", ");

export function empty(count) {
  return {
    ranks: [],
    ratings: Array.from({ length: count }, () => ({ overall: null, alignment: null, fidelity: null })),
    issues: Array.from({ length: count }, () => []),
    promptFlags: [],
  };
}

function changed(judgement, change) {
  const next = structuredClone(judgement);
  change(next);
  next.ranks = next.ranks.filter((tied) => tied.length);
  return next;
}

export const rankOf = (judgement, image) => judgement.ranks.findIndex((tied) => tied.includes(image));

export function rate(judgement, image, axis, value) {
  return changed(judgement, (next) => { next.ratings[image][axis] = value; });
}

const toggled = (words, word) => (words.includes(word) ? words.filter((each) => each !== word) : [...words, word]);

export function toggleIssue(judgement, image, issue) {
  return changed(judgement, (next) => { next.issues[image] = toggled(next.issues[image], issue); });
}

export function togglePromptFlag(judgement, flag) {
  return changed(judgement, (next) => { next.promptFlags = toggled(next.promptFlags, flag); });
}

function take(next, image) {
  next.ranks = next.ranks.map((tied) => tied.filter((each) => each !== image));
}

// Put an image into rank `at` with those already there (tie), or into a rank of its own before rank `at`.
export function place(judgement, image, at, tie) {
  return changed(judgement, (next) => {
    take(next, image);
    if (tie) next.ranks[at] = [...next.ranks[at], image].sort((a, b) => a - b);
    else next.ranks.splice(at, 0, [image]);
  });
}

export function unrank(judgement, image) {
  return changed(judgement, (next) => take(next, image));
}

// One step better (-1) or worse (+1): out of a tie first, then past the neighbour; an image not ranked yet comes last.
export function move(judgement, image, step) {
  const at = rankOf(judgement, image);
  if (at < 0) return place(judgement, image, judgement.ranks.length, false);
  if (judgement.ranks[at].length > 1) return place(judgement, image, step < 0 ? at : at + 1, false);
  const to = at + step;
  if (to < 0 || to >= judgement.ranks.length) return judgement;
  return changed(judgement, (next) => {
    [next.ranks[at], next.ranks[to]] = [next.ranks[to], next.ranks[at]];
  });
}

// Out of its tie, just below; or into a tie with the next better one, the best with the next worse.
export function toggleTie(judgement, image) {
  const at = rankOf(judgement, image);
  const last = judgement.ranks.length - 1;
  if (at < 0) return place(judgement, image, Math.max(last, 0), last >= 0); // not ranked yet: with the worst
  if (judgement.ranks[at].length > 1) return place(judgement, image, at + 1, false);
  if (!last) return judgement;
  return place(judgement, image, at ? at - 1 : 1, true);
}

export function rankByOverall(judgement) {
  return changed(judgement, (next) => {
    next.ranks = [7, 6, 5, 4, 3, 2, 1].map((value) =>
      next.ratings.flatMap((ratings, image) => (ratings.overall === value ? [image] : [])));
  });
}

// What is still to do, in the order in which the page leads through it: [{image, axis}], axis null for the rank.
export function missing(judgement) {
  const ratings = judgement.ratings.flatMap((values, image) =>
    AXES.filter((axis) => values[axis] === null).map((axis) => ({ image, axis })));
  const ranks = judgement.ratings.flatMap((_, image) => (rankOf(judgement, image) < 0 ? [{ image, axis: null }] : []));
  return [...ratings, ...ranks];
}

// Pairs [better, worse] whose overall ratings say the opposite of their ranks.
export function contradictions(judgement) {
  const found = [];
  judgement.ranks.forEach((tied, at) => tied.forEach((better) =>
    judgement.ranks.slice(at + 1).flat().forEach((worse) => {
      const [above, below] = [judgement.ratings[better].overall, judgement.ratings[worse].overall];
      if (above !== null && below !== null && above < below) found.push([better, worse]);
    })));
  return found;
}

// The fields that the server keeps, in the order of the file's images; shown[place on the page] = number in the file.
export function toRecord(judgement, shown) {
  const inFile = (values) => shown.map((_, number) => values[shown.indexOf(number)]);
  const ranking = judgement.ratings.map((_, image) => rankOf(judgement, image) + 1);
  return {
    ranking: inFile(ranking),
    ratings: inFile(judgement.ratings),
    issues: inFile(judgement.issues),
    prompt_flags: judgement.promptFlags,
  };
}

export function fromRecord(record, shown) {
  const { ranking, ratings, issues } = record.rankings[0];
  const values = [...new Set(ranking)].sort((a, b) => a - b);
  return {
    ranks: values.map((value) => shown.flatMap((number, image) => (ranking[number] === value ? [image] : []))),
    ratings: shown.map((number) => ({ ...ratings[number] })),
    issues: shown.map((number) => [...issues[number]]),
    promptFlags: record.prompt_flags.filter((flag) => PROMPT_FLAGS.includes(flag)),
  };
}
