// The run that answers come from: what it holds, how good it is, and the others, which can be picked while they are kept.

import { button, by, el } from "./dom.js";
import { KINDS, counted, kind, kinds, number } from "./words.js";

const DONE = ["embedded", "reprojected", "copied", "unchanged", "deleted", "quarantined"];

/** Draws /stats and /runs; `pick(run)` is told of the run that is to be searched, "" for the live one. */
export function drawRun(stats, runs, pick) {
  const own = runs.find(({ run }) => run === stats.run);
  by("run-heading").textContent = `Run ${stats.run}`;
  by("run-link").textContent = `Run ${stats.run}`;
  by("source").textContent = stats.source.replace(/^file:\/\//, "");
  by("source").title = stats.source;
  by("run-body").replaceChildren(picker(runs, pick), counts(stats, own), recall(own), ...others(runs, stats.run));
}

/** Which run is searched; only those that are kept can be. */
function picker(runs, pick) {
  const kept = runs.filter((run) => run.kept && !run.live);
  if (!kept.length) return "";
  const live = runs.find((run) => run.live);
  const told = (run) => [`run ${run.run}`, run.finished && time(run.finished), run.rows !== null && counted(run.rows, "row")].filter(Boolean).join(", ");
  return el(
    "p",
    { class: "pick" },
    el("label", { for: "run-pick" }, "Searched"),
    el(
      "select",
      { id: "run-pick", onchange: ({ target }) => pick(target.value) },
      el("option", { value: "" }, live ? `the live ${told(live)}` : "the live run"),
      ...kept.map((run) => el("option", { value: run.run }, told(run))),
    ),
  );
}

/** The picker shows which run is searched. */
export function showPick(run, live) {
  const picked = by("run-pick");
  if (picked) picked.value = run === live ? "" : run;
}

/** That another run than the live one is searched, and what that means. */
export function otherRun(run, live, pick) {
  if (run === live) return [];
  return [
    el("span", {}, `Run ${run} is searched as it was, not the live run ${live}. Items that have changed or gone since are found, but cannot be shown.`),
    button("Back to the live run", () => pick(""), { class: "quiet" }),
  ];
}

function counts(stats, own) {
  const rows = KINDS.filter((each) => stats.modalities[each]).map((each) => {
    const { items, rows } = stats.modalities[each];
    return [kinds(each), rows === items ? number(items) : `${number(items)} in ${counted(rows, "segment")}`];
  });
  if (own?.finished) rows.push(["finished", time(own.finished)]);
  rows.push(["in quarantine", stats.quarantined ? `${number(stats.quarantined)}: batchproj quarantine says why` : "none"]);
  return el("dl", { class: "facts" }, ...rows.flatMap(([label, value]) => [el("dt", {}, label), el("dd", {}, value)]));
}

function recall(own) {
  const pairs = Object.entries(own?.recall ?? {});
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

function others(runs, searched) {
  const rest = runs.filter(({ run }) => run !== searched);
  if (!rest.length) return [el("p", { class: "hint" }, "There is no other run.")];
  const did = (run) => DONE.filter((name) => run[name]).map((name) => `${number(run[name])} ${name}`).join(", ");
  const state = (run) => (run.live ? "live" : run.kept || run.state !== "done" ? run.state : "kept no longer");
  const made = table(
    "Other runs; batchproj rollback makes one that is kept the live one again",
    ["run", "state", "finished", "rows", "Recall@10", "did"],
    rest.map((run) => [run.run, state(run), run.finished ? time(run.finished) : "", run.rows === null ? "" : number(run.rows), recalled(run), did(run) || "nothing"]),
  );
  return [el("details", {}, el("summary", {}, counted(rest.length, "other run")), made)];
}

/** Recall@10 of a run, from the worst to the best pair of kinds; nothing if it was not evaluated. */
function recalled(run) {
  const found = Object.values(run.recall ?? {}).map((scores) => scores["r@10"]);
  if (!found.length) return "";
  const [low, high] = [Math.min(...found), Math.max(...found)].map((value) => value.toFixed(2));
  return low === high ? low : `${low} to ${high}`;
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
