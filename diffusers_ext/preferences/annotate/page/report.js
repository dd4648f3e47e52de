// The page of progress and agreement.

import { byId, element } from "./view.js";

const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(0)} %`);
const number = (value) => (value === null ? "–" : value.toFixed(2));

export function renderReport(report) {
  const [judged, asked] = ["judged", "asked"].map((name) => report.people.reduce((sum, each) => sum + each[name], 0));
  const sum = asked ? `${judged} of ${asked} judgements are made. ` : "";
  byId("report-summary").textContent = sum + (report.agreement === null
    ? "No two people have judged the same images yet."
    : `Of all pairs of images that two people ordered, ${percent(report.agreement)} are ordered the same way. ` +
      "Ties are left out.");
  byId("report-tables").replaceChildren(people(report), pairs(report));
}

function table(title, heads, rows) {
  const cells = (tag, values) => values.map((value) => element(tag, tag === "th" ? { scope: "col" } : {}, value));
  return element("table", {}, element("caption", {}, title),
    element("thead", {}, element("tr", {}, ...cells("th", heads))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...cells("td", row)))));
}

function people({ people, total }) {
  const rows = people.map((each) => [
    each.annotator,
    `${each.judged} of ${each.asked || total}`,
    `${each.skipped}`,
    each.median_s === null ? "–" : `${each.median_s} s`,
    percent(each.agreement),
  ]);
  return table("People", ["Name", "Judged", "Skipped", "Median time", "Agreement with others"], rows);
}

function pairs({ pairs }) {
  const rows = pairs.map(({ people, count, agreement, kendall }) =>
    [people.join(" and "), `${count}`, percent(agreement), number(kendall)]);
  return rows.length
    ? table("Each two", ["People", "Pairs both ordered", "Agreement", "Kendall's τ-b"], rows)
    : element("p", {}, "");
}
