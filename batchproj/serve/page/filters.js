// Which results are wanted: kinds, how they are ranked, and conditions on columns and metadata.

import { button, by, el, icon } from "./dom.js";
import { unlikeForm } from "./query.js";
import { KINDS, kinds, number } from "./words.js";

const OPS = [
  ["eq", "is"],
  ["ne", "is not"],
  ["contains", "contains"],
  ["lt", "is less than"],
  ["le", "is at most"],
  ["gt", "is more than"],
  ["ge", "is at least"],
  ["in", "is one of (commas between)"],
  ["is_null", "is not there"],
];
const TOLD = Object.fromEntries(OPS);
const COLUMNS = ["uri", "pair", "text", "start", "end", "segment", "run"];
const NUMBERS = new Set(["start", "end", "segment"]);

/** Draws them for a state and the collection's counts; `change(patch)` is told of every wish. */
export function filters(change) {
  const toggle = by("filters-toggle");
  const panel = by("filters");
  toggle.addEventListener("click", () => {
    panel.hidden = !panel.hidden;
    toggle.setAttribute("aria-expanded", String(!panel.hidden));
    if (!panel.hidden) panel.querySelector("select").focus();
  });
  for (const name of ["hybrid", "group", "balance"]) {
    by(name).addEventListener("change", ({ target }) => change({ [name]: target.checked }));
  }
  let drawn = {};
  return (state, stats) => {
    for (const name of ["hybrid", "group", "balance"]) by(name).checked = state[name];
    by("balance-label").hidden = !stats.balance;
    if (drawn.stats !== stats) {
      drawKinds(stats, change);
      panel.replaceChildren(form(stats, (filter) => change({ filters: [...drawn.state.filters, filter] })), unlikeForm((text) => change({ unlike: [...drawn.state.unlike, text].slice(-10) })));
    }
    drawn = { state, stats };
    for (const input of by("kinds").querySelectorAll("input")) input.checked = input.value === state.modality;
    by("conditions").replaceChildren(...state.filters.map((filter) => chip(filter, state, change)));
  };
}

function drawKinds(stats, change) {
  const present = KINDS.filter((kind) => stats.modalities[kind]?.items);
  const choices = [["", "All", stats.items], ...present.map((each) => [each, kinds(each), stats.modalities[each].items])];
  const field = by("kinds");
  const labels = choices.map(([value, text, count]) =>
    el(
      "label",
      {},
      el("input", { type: "radio", name: "kind", value, onchange: () => change({ modality: value }) }),
      el("span", {}, value ? icon(value) : null, text, el("small", {}, number(count))),
    ),
  );
  field.replaceChildren(field.querySelector("legend"), ...labels);
}

function chip(filter, state, change) {
  const value = filter.op === "is_null" ? "" : ` ${[filter.value].flat().join(", ")}`;
  const text = `${filter.field.replace(/^metadata\./, "")} ${TOLD[filter.op] ?? filter.op}${value}`;
  const remove = () => {
    change({ filters: state.filters.filter((each) => each !== filter) });
    by("filters-toggle").focus();
  };
  return el(
    "li",
    { class: "chip" },
    el("span", {}, text),
    el("button", { type: "button", class: "away", "aria-label": `Without the filter ${text}`, onclick: remove }, icon("close")),
  );
}

function form(stats, add) {
  const fields = Object.keys(stats.metadata);
  const field = el(
    "select",
    { id: "field" },
    fields.length ? group("Metadata", fields.map((name) => [`metadata.${name}`, name])) : null,
    group("Columns", COLUMNS.map((name) => [name, name])),
  );
  const op = el("select", { id: "op", "aria-label": "Comparison" }, ...OPS.map(([value, text]) => el("option", { value }, text)));
  const values = el("datalist", { id: "values" });
  const value = el("input", { id: "value", type: "text", list: "values", "aria-label": "Value" });
  const refresh = () => {
    const known = stats.metadata[field.value.replace(/^metadata\./, "")]?.values ?? [];
    values.replaceChildren(...known.map((each) => el("option", { value: String(each) })));
    value.hidden = op.value === "is_null";
  };
  const take = () => {
    const wanted = typed(stats, field.value, op.value, value.value.trim());
    value.value = "";
    value.focus();
    if (wanted !== null) add({ field: field.value, op: op.value, value: wanted });
  };
  field.addEventListener("change", refresh);
  op.addEventListener("change", refresh);
  value.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    take();
  });
  refresh();
  return el("div", { class: "row" }, el("label", { for: "field" }, "Only where"), field, op, value, values, button("Add filter", take, { class: "quiet" }));
}

function group(label, choices) {
  return el("optgroup", { label }, ...choices.map(([value, text]) => el("option", { value }, text)));
}

/** A value as the field has it: numbers where its values are numbers; null where none was given. */
export function typed(stats, field, op, text) {
  if (op === "is_null") return true;
  const own = stats.metadata[field.replace(/^metadata\./, "")]?.kinds ?? [];
  const numeric = field.startsWith("metadata.") ? own.length > 0 && own.every((kind) => kind !== "str") : NUMBERS.has(field);
  const one = (part) => {
    if (own.includes("bool") && ["true", "false"].includes(part.toLowerCase())) return part.toLowerCase() === "true";
    return numeric && part !== "" && Number.isFinite(Number(part)) ? Number(part) : part;
  };
  if (text === "") return null;
  return op === "in" ? text.split(",").map((part) => one(part.trim())).filter((part) => part !== "") : one(text);
}
