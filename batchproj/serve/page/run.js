// The run that answers come from: what it holds, how good it is, and the runs before it.

import { by, el } from "./dom.js";
import { KINDS, counted, kind, kinds, number } from "./words.js";

const DONE = ["embedded", "reprojected", "copied", "unchanged", "deleted", "quarantined"];

/** Draws /stats and /runs. */
export function drawRun(stats, runs) {
  const live = runs.find((run) => run.live);
  by("run-heading").textContent = `Run ${stats.run}`;
  by("run-link").textContent = `Run ${stats.run}`;
  by("source").textContent = stats.source.replace(/^file:\/\//, "");
  by("source").title = stats.source;
  by("run-body").replaceChildren(counts(stats, live), recall(live), ...earlier(runs));
}

function counts(stats, live) {
  const rows = KINDS.filter((each) => stats.modalities[each]).map((each) => {
    const { items, rows } = stats.modalities[each];
    return [kinds(each), rows === items ? number(items) : `${number(items)} in ${counted(rows, "segment")}`];
  });
  if (live?.finished) rows.push(["finished", time(live.finished)]);
  rows.push(["in quarantine", stats.quarantined ? `${number(stats.quarantined)}: batchproj quarantine says why` : "none"]);
  return el("dl", { class: "facts" }, ...rows.flatMap(([label, value]) => [el("dt", {}, label), el("dd", {}, value)]));
}

function recall(live) {
  const pairs = Object.entries(live?.recall ?? {});
  if (!pairs.length) {
    return el("p", { class: "hint" }, "How good its search is was not measured yet: ", el("code", {}, "batchproj evaluate COLLECTION"));
  }
  const share = (value) => value.toFixed(2);
  return table(
    "Recall: how often the right one is among the first",
    ["asked by", "for", "1", "5", "10", "chance"],
    pairs.map(([pair, scores]) => {
      const [asking, wanted] = pair.split("->");
      return [kind(asking), kind(wanted), share(scores["r@1"]), share(scores["r@5"]), share(scores["r@10"]), share(scores["chance_r@10"])];
    }),
  );
}

function earlier(runs) {
  const others = runs.filter((run) => !run.live);
  if (!others.length) return [el("p", { class: "hint" }, "There is no other run.")];
  const told = (run) => DONE.filter((name) => run[name]).map((name) => `${number(run[name])} ${name}`).join(", ");
  const made = table(
    "Other runs; batchproj rollback shows one of them again",
    ["run", "state", "finished", "rows", "did"],
    others.map((run) => [run.run, run.state, run.finished ? time(run.finished) : "", run.rows === null ? "" : number(run.rows), told(run) || "nothing"]),
  );
  return [el("details", {}, el("summary", {}, counted(others.length, "other run")), made)];
}

function table(caption, heads, rows) {
  return el(
    "div",
    { class: "wide", tabindex: 0, role: "region", "aria-label": caption },
    el(
      "table",
      {},
      el("caption", {}, caption),
      el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", {}, ...rows.map(([first, ...rest]) => el("tr", {}, el("th", { scope: "row" }, first), ...rest.map((cell) => el("td", {}, cell))))),
    ),
  );
}

function time(text) {
  const when = new Date(text);
  return Number.isNaN(when.getTime()) ? text : when.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
