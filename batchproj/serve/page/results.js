// Results as cards: a picture, a player that starts where the match is, or the passage; the score, and why.

import { media, thumbnail } from "./api.js";
import { button, el, icon } from "./dom.js";
import { clock, kind, name, place, why } from "./words.js";

const LONG = 320;
const SHORT = 60;

/** A card of a hit, or of an item without a score. `does` is told of `like`, `unlike` and `details`. */
export function card(hit, words, does) {
  const title = titled(hit);
  const label = el("h3", {}, button(title, () => does.details(hit), { title: hit.uri, "aria-label": `Details of ${title}` }));
  const meta = el("p", { class: "meta" }, el("span", { class: "kind" }, icon(hit.modality), kind(hit.modality)));
  const where = place(hit);
  if (where && hit.modality !== "image") meta.append(el("span", {}, where));
  if (hit.score !== undefined) {
    meta.append(el("span", { class: "score", title: "Cosine of the angle between query and hit" }, `${hit.score.toFixed(2)} `, el("span", { class: "why", "data-why": hit.why }, why(hit.why))));
  }
  const actions = el(
    "div",
    { class: "actions" },
    button("More like this", () => does.like(hit), { "aria-label": `More like this: ${title}` }),
    hit.score === undefined ? null : button("Less", () => does.unlike(hit), { "aria-label": `Less like this: ${title}`, title: "Less like this" }),
  );
  return el("li", { class: "card", "data-kind": hit.modality, "data-id": hit.id }, shown(hit, words, does), el("div", { class: "body" }, label, meta, actions));
}

export function titled(hit) {
  return name(hit.uri) || hit.item;
}

function shown(hit, words, does) {
  switch (hit.modality) {
    case "image":
      return el("button", { type: "button", class: "plate", "aria-label": `Show ${titled(hit)} large`, onclick: () => does.details(hit) }, small(hit));
    case "audio":
      return el("div", { class: "plate sound" }, small(hit), player("audio", hit));
    case "video":
      return el("div", { class: "plate" }, player("video", hit));
    default:
      return el("div", { class: "plate passage" }, passage(hit.text ?? "", words));
  }
}

/** The small picture of a hit; where there is none, the sign of its kind. */
function small(hit) {
  const image = el("img", { src: thumbnail(hit.id), alt: hit.modality === "image" ? titled(hit) : "", loading: "lazy", decoding: "async" });
  image.addEventListener("error", () => image.replaceWith(el("span", { class: "nothing" }, icon(hit.modality), "no picture")));
  return image;
}

/** A player at the hit's begin. */
export function player(element, hit, start = hit.start) {
  const made = el(element, {
    controls: true,
    preload: "none",
    src: media(hit.id, start),
    poster: element === "video" ? thumbnail(hit.id) : null,
    "aria-label": `${titled(hit)}${start ? `, from ${clock(start)}` : ""}`,
    playsinline: true,
  });
  made.addEventListener("error", () => made.replaceWith(unplayable(hit)));
  return made;
}

function unplayable(hit) {
  return el("p", { class: "nothing" }, "This browser cannot play it. ", el("a", { href: media(hit.id), download: titled(hit) }, "Save the file"));
}

/** The text of a hit, with the words searched for marked. */
function passage(text, words) {
  const quote = el("blockquote", { class: text.length < SHORT ? "short" : null }, ...marked(text.slice(0, LONG), words));
  if (text.length > LONG) {
    const rest = marked(text.slice(LONG), words);
    const open = button("… read on", () => {
      open.remove();
      quote.append(...rest);
    }, { class: "on" });
    quote.append(open);
  }
  return quote;
}

function marked(text, words) {
  if (!words.length) return [text];
  const pattern = new RegExp(`(${words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|")})`, "giu");
  return text.split(pattern).map((part, at) => (at % 2 ? el("mark", {}, part) : part));
}

/** Words of a query that are worth marking. */
export function marking(text) {
  return (text.match(/[\p{L}\p{N}]{3,}/gu) ?? []).slice(0, 20);
}

/** Cards in the place of what is still on its way. */
export function skeletons(count) {
  return Array.from({ length: count }, () => el("li", { class: "card waiting", "aria-hidden": "true" }, el("div", { class: "plate" }), el("div", { class: "body" })));
}
