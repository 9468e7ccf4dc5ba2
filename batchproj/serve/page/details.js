// One item: large, with all that is known of it, and its segments.

import { described, media } from "./api.js";
import { button, by, el, icon } from "./dom.js";
import { player, titled } from "./results.js";
import { kind, place } from "./words.js";

const MOST_SEGMENTS = 200;

/** Shows an item; `does.where(field, value)` is told of a value that results shall have. */
export async function details(hit, does) {
  const dialog = by("details");
  const close = el("button", { type: "button", class: "plain close", "aria-label": "Close", onclick: () => dialog.close() }, icon("close"));
  const heading = el("h2", { id: "details-heading" }, titled(hit));
  dialog.replaceChildren(close, heading, el("p", { role: "status" }, "Loading …"));
  if (!dialog.open) dialog.showModal();
  try {
    const item = await described(hit.id);
    if (dialog.firstChild === close) dialog.replaceChildren(close, heading, ...content(item, does, dialog));
  } catch (problem) {
    dialog.replaceChildren(close, heading, el("p", { class: "problem", role: "alert" }, problem.message));
  }
}

export function closing() {
  const dialog = by("details");
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => dialog.replaceChildren()); // and what it played is silent
}

function content(item, does, dialog) {
  const leave = (act) => () => {
    dialog.close();
    act();
  };
  return [
    el("div", { class: "large" }, large(item)),
    button("More like this", leave(() => does.like(item)), { class: "go" }),
    facts(item, (field, value) => leave(() => does.where(field, value))()),
    item.segments.length > 1 ? segments(item) : null,
  ].filter(Boolean);
}

function large(item) {
  switch (item.modality) {
    case "image":
      return el("img", { src: media(item.id), alt: titled(item), onerror: (event) => event.target.replaceWith("This browser cannot show it.") });
    case "text":
      return el("blockquote", { tabindex: 0, "aria-label": "The passage" }, item.text ?? "");
    default:
      return player(item.modality, item);
  }
}

function facts(item, where) {
  const rows = [
    ["Where", item.uri],
    ["Kind", kind(item.modality)],
    ["Part", place(item)],
    ["Pair", item.pair],
    ["Embedded in run", item.made_by],
    ...Object.entries(item.metadata),
  ].filter(([, value]) => value !== null && value !== undefined && value !== "");
  const own = new Set(Object.keys(item.metadata));
  const list = rows.flatMap(([label, value]) => {
    const text = typeof value === "object" ? JSON.stringify(value) : String(value);
    const filter = own.has(label) && typeof value !== "object";
    const only = filter ? button("Only these", () => where(`metadata.${label}`, value), { class: "on", "aria-label": `Only where ${label} is ${text}` }) : null;
    return [el("dt", {}, label), el("dd", {}, text, only)];
  });
  return el("dl", { class: "facts" }, ...list);
}

/** Every segment; a player goes to the one that is chosen. */
function segments(item) {
  const listed = item.segments.slice(0, MOST_SEGMENTS).map((segment) => {
    const here = segment.id === item.id;
    const told = place({ ...segment, modality: item.modality }) ?? "the begin";
    if (item.modality === "text") return el("li", { "aria-current": here ? "true" : null }, el("small", {}, told), segment.text ?? "");
    const go = () => {
      const playing = by("details").querySelector("audio, video");
      if (!playing) return;
      playing.currentTime = segment.start;
      playing.play().catch(() => {}); // told by its own error
    };
    return el("li", { "aria-current": here ? "true" : null }, button(`Play from ${told}`, go, { class: "on" }));
  });
  const more = item.segments.length > MOST_SEGMENTS ? el("p", { class: "hint" }, `The first ${MOST_SEGMENTS} of ${item.segments.length}.`) : null;
  return el("section", {}, el("h3", {}, "Its parts"), el("ol", { class: "parts", tabindex: 0, "aria-label": "Parts of the item" }, ...listed), more);
}
