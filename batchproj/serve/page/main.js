// The page: one state, that the address tells; a search whenever it changes; and what came of it.

import { Problem, mapped, ofRun, onToken, runs as ledger, search, session, stats as counts } from "./api.js";
import { closing, details } from "./details.js";
import { button, by, el } from "./dom.js";
import { filters } from "./filters.js";
import { CollectionMap } from "./map.js";
import { box } from "./query.js";
import { card, marking, skeletons } from "./results.js";
import { drawRun, otherRun, showPick } from "./run.js";
import { PAGE, asked, asks, empty, read, written } from "./state.js";
import { KINDS, counted, kinds } from "./words.js";

const SAMPLES = 12;
const MOST = 1_000;

let state = empty();
let stats = { run: "", items: 0, rows: 0, modalities: {}, metadata: {}, balance: false };
let points = [];
let live = ""; // the run that is searched unless another one is picked
let looked = null; // the pick that stats and points are of
let shown = [];
let asking = null;

const does = {
  like: (hit) => go({ ...empty(), like: hit.id, ...kept() }, true),
  unlike: (hit) => go({ ...state, unlikeIds: [...state.unlikeIds, hit.id].slice(-10) }, true),
  details: (hit) => details(hit, does),
  where: (field, value) => go({ ...state, filters: [...state.filters, { field, op: "eq", value }] }, true),
  pick: (run) => go({ ...state, run }),
};
const drawBox = box((patch) => go({ ...state, ...patch }), fail);
const drawFilters = filters((patch) => go({ ...state, ...patch }));
const map = new CollectionMap(does.like);

/** What stays when something else is searched by. */
function kept() {
  const { modality, filters: conditions, group, balance, run } = state;
  return { modality, filters: conditions, group, balance, run };
}

/** Another state: into the address, and searched; `away` is where focus goes to what is found. */
function go(next, away = false) {
  state = next;
  const { search: query, files } = written(state);
  const same = query === location.search.slice(1) && String(files) === String(history.state?.files ?? []);
  history[same ? "replaceState" : "pushState"]({ files }, "", query ? `?${query}` : location.pathname);
  show(away);
}

async function show(away = false) {
  clear();
  ofRun(state.run);
  drawBox(state);
  if (looked !== state.run && !(await lookAgain())) return;
  drawFilters(state, stats);
  showPick(state.run, live);
  document.title = state.text ? `${state.text} · batchproj` : "batchproj";
  if (away) {
    by("results").focus({ preventScroll: true });
    by("results").scrollIntoView({ block: "start" });
  }
  if (asks(state)) await find();
  else begin();
}

/** Of another run; whether it is there, and still the one that is wanted. */
async function lookAgain() {
  const wanted = state;
  try {
    await look();
    return state === wanted;
  } catch (problem) {
    if (state === wanted) failed(problem, false);
    return false;
  }
}

function clear() {
  by("problem").replaceChildren();
  asking?.abort();
  asking = null;
}

/** Nothing is asked for: what there is. */
function begin() {
  shown = [];
  map.ring([]);
  by("results-heading").textContent = "In this collection";
  const held = KINDS.filter((each) => stats.modalities[each]?.items).map((each) => counted(stats.modalities[each].items, kinds(each).slice(0, -1)));
  by("status").textContent = held.length ? `${held.join(", ")}. A few of them:` : "Nothing yet. Fill it with: batchproj embed SOURCE COLLECTION";
  const wanted = points.filter(({ modality }) => !state.modality || modality === state.modality);
  by("hits").replaceChildren(...sampled(wanted).map((point) => card({ ...point, segment: 0, start: null, end: null }, [], does)));
  by("more").hidden = true;
}

/** Some of the map's points, of each kind as many. */
function sampled(from) {
  const own = KINDS.map((each) => from.filter(({ modality }) => modality === each)).filter((each) => each.length);
  const found = [];
  for (let at = 0; found.length < Math.min(SAMPLES, from.length); at++) {
    const of = own[at % own.length];
    const step = Math.floor(at / own.length);
    if (step < of.length) found.push(of[Math.floor((step * of.length) / SAMPLES)]);
  }
  return [...new Set(found)];
}

/** The first page of hits, or with `more` the next one. */
async function find(more = false) {
  const mine = (asking = new AbortController());
  const mixed = state.balance && stats.balance && !state.modality;
  // a mixed page gives each kind its part, and a longer page larger parts: it is asked for as a whole
  const wanted = asked(state, stats.balance, more && !mixed ? shown.length : 0);
  if (more && mixed) wanted.k = Math.min(MOST, shown.length + PAGE);
  wait(more);
  try {
    const found = await search(wanted, state.files, mine.signal);
    if (mine !== asking) return;
    if (found.run !== stats.run) await look();
    if (more && shown.run !== found.run) return void (await find()); // pages of two runs are no list
    took(found, more);
  } catch (problem) {
    if (problem.name !== "AbortError" && mine === asking) failed(problem, more);
  } finally {
    if (mine === asking) by("results").removeAttribute("aria-busy");
  }
}

function wait(more) {
  by("results").setAttribute("aria-busy", "true");
  by("more").disabled = true;
  if (more) return;
  by("results-heading").textContent = "Results";
  by("status").textContent = "Searching …";
  if (!shown.length) by("hits").replaceChildren(...skeletons(8));
}

function took(found, more) {
  const before = new Set(more ? shown.map(({ id }) => id) : []);
  const fresh = found.hits.filter(({ id }) => !before.has(id));
  shown = more ? [...shown, ...fresh] : fresh;
  shown.run = found.run;
  const cards = fresh.map((hit) => card(hit, marking(state.text), does));
  if (more) by("hits").append(...cards);
  else by("hits").replaceChildren(...cards);
  if (more) cards[0]?.querySelector("button, audio, video")?.focus();
  by("more").disabled = false;
  by("more").hidden = fresh.length < PAGE || shown.length >= MOST;
  by("status").textContent = shown.length
    ? `${shown.length === 1 ? "1 result" : `The first ${shown.length}`}, best first, from run ${found.run}`
    : `Nothing in run ${found.run} fits.`;
  if (!shown.length) by("hits").replaceChildren(el("li", { class: "empty" }, advice()));
  map.ring(shown.map(({ id }) => id));
}

function advice() {
  if (!state.filters.length && !state.modality) return "Search by something else.";
  const clear_ = button("Search without filters", () => go({ ...state, filters: [], modality: "" }, true), { class: "quiet" });
  return el("p", {}, "No item of that kind meets these filters. ", clear_);
}

function failed(problem, more) {
  by("status").textContent = "";
  by("more").disabled = false;
  if (!more) {
    shown = [];
    by("hits").replaceChildren();
    by("more").hidden = true;
    map.ring([]);
  }
  const text = problem instanceof Problem ? problem.message : "The page has stumbled. Load it again.";
  if (problem.status === 404 && state.run) fail(text, () => does.pick(""), "Search the live run");
  else fail(text, problem.again ? () => show() : null);
}

/** A sentence about what went wrong; with `again` a button that does something about it. */
function fail(text, again = null, label = "Try again") {
  by("problem").replaceChildren(el("span", {}, text), ...(again ? [button(label, again, { class: "quiet" })] : []));
}

/** What the collection holds, of the run that is picked, or else of the live one. */
async function look() {
  const of = state.run;
  const [told, { run, runs }, { points: placed }] = await Promise.all([counts(), ledger(), mapped()]);
  if (of !== state.run) return;
  [stats, points, live, looked] = [told, placed, run, of];
  drawRun(stats, runs, does.pick);
  by("run-note").replaceChildren(...otherRun(stats.run, live, does.pick));
  drawFilters(state, stats);
  map.take(points, stats.rows);
}

/** Asked once for all requests that wait for it. */
let waiting = null;
function askForToken() {
  waiting ??= new Promise((resolve) => {
    const dialog = by("token");
    const cancel = () => resolve(false);
    dialog.addEventListener("cancel", cancel, { once: true });
    by("token-form").onsubmit = async (event) => {
      event.preventDefault();
      if (await session(by("token-value").value.trim()).catch(() => false)) {
        by("token-value").value = "";
        dialog.close();
        resolve(true);
      } else by("token-problem").textContent = "That is not the token of this service.";
    };
    dialog.showModal();
  }).finally(() => (waiting = null));
  return waiting;
}

async function start() {
  onToken(askForToken);
  closing();
  by("more").addEventListener("click", () => find(true));
  by("brand").addEventListener("click", (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    go(empty());
  });
  addEventListener("popstate", (event) => {
    state = read(location.search, event.state?.files);
    by("text").value = state.text;
    show();
  });
  addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, textarea, select, dialog");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      by("text").focus();
    }
  });
  state = read(location.search, history.state?.files);
  by("hits").replaceChildren(...skeletons(8));
  by("status").textContent = "Loading …";
  drawBox(state);
  await show();
}

start();
