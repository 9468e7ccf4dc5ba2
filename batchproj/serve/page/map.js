// The map: a sample of the collection in two dimensions, by kind; where results are, and what is where.

import { thumbnail } from "./api.js";
import { button, by, el, icon } from "./dom.js";
import { titled } from "./results.js";
import { KINDS, counted, kind, kinds, number } from "./words.js";

const MARGIN = 14;
const NEAR = 18;
const LISTED = 40;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Draws points and finds them again; `like(point)` is told of the one that was chosen. */
export class CollectionMap {
  constructor(like) {
    this.like = like;
    this.points = [];
    this.hits = new Set();
    this.at = null;
    this.chart = by("chart");
    this.canvas = by("canvas");
    new ResizeObserver(() => this.draw()).observe(this.chart);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.chart.addEventListener("pointermove", (event) => this.show(this.nearest(event)));
    this.chart.addEventListener("pointerleave", () => this.show(null));
    this.chart.addEventListener("blur", () => this.show(null));
    this.chart.addEventListener("focus", () => this.chart.matches(":focus-visible") && this.show(this.at ?? this.first(), true));
    this.chart.addEventListener("keydown", (event) => this.key(event));
    this.chart.addEventListener("click", (event) => {
      const found = this.nearest(event);
      if (found) this.like(found);
    });
    by("map-list").addEventListener("toggle", () => this.list(0));
    by("map-more").addEventListener("click", () => this.list(by("map-items").childElementCount));
  }

  /** Other points, each {id, modality, uri, text, x, y}, of so many rows. */
  take(points, rows) {
    this.points = points;
    this.at = null;
    const some = points.length < rows ? `${number(points.length)} of ${counted(rows, "vector")}` : counted(points.length, "vector");
    by("map-hint").textContent = points.length
      ? `${some}, on their two main axes. What lies close together is alike, whatever its kind.`
      : "Nothing is embedded yet.";
    const present = KINDS.filter((each) => points.some(({ modality }) => modality === each));
    by("legend").replaceChildren(
      ...present.map((each) => el("li", { "data-kind": each }, el("span", { class: "mark" }), kinds(each))),
      el("li", { "data-kind": "hit" }, el("span", { class: "mark" }), "results"),
    );
    by("map-items").replaceChildren();
    this.list(0);
    this.draw();
  }

  /** The results, by id: those of them that the map has are ringed. */
  ring(ids) {
    this.hits = new Set(ids);
    this.draw();
  }

  draw() {
    const { width, height } = this.chart.getBoundingClientRect();
    const scale = devicePixelRatio || 1;
    this.canvas.width = width * scale;
    this.canvas.height = height * scale;
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    const style = getComputedStyle(this.chart);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    this.place(width, height);
    const shown = this.points.length > 400 ? 2.4 : 3.6;
    for (const point of this.points) mark(pen, point, shown, colour(point.modality), 0.62);
    for (const point of this.points.filter(({ id }) => this.hits.has(id))) {
      mark(pen, point, shown + 2.4, colour(point.modality), 1);
      ring(pen, point, shown + 4.4, colour("ink"), 1.5);
    }
    if (this.at) ring(pen, this.at, shown + 6, colour("accent"), 2.5);
  }

  /** Each axis fills the chart. */
  place(width, height) {
    const range = (axis) => {
      const values = this.points.map((point) => point[axis]);
      const [low, high] = [Math.min(...values), Math.max(...values)];
      return [low, high - low || 1];
    };
    if (!this.points.length) return;
    const [[left, across], [low, up]] = [range("x"), range("y")];
    for (const point of this.points) {
      point.left = MARGIN + ((point.x - left) / across) * (width - 2 * MARGIN);
      point.top = height - MARGIN - ((point.y - low) / up) * (height - 2 * MARGIN);
    }
  }

  nearest(event) {
    const { left, top } = this.chart.getBoundingClientRect();
    const [x, y] = [event.clientX - left, event.clientY - top];
    return best(this.points, (point) => Math.hypot(point.left - x, point.top - y), NEAR);
  }

  first() {
    return this.points.find(({ id }) => this.hits.has(id)) ?? this.points[0] ?? null;
  }

  key(event) {
    if (event.key === "Enter" && this.at) {
      event.preventDefault();
      return this.like(this.at);
    }
    const way = ARROWS[event.key];
    if (!way || !this.points.length) return null;
    event.preventDefault();
    const from = this.at ?? this.first();
    const cost = (point) => {
      const [x, y] = [point.left - from.left, point.top - from.top];
      const [along, beside] = [x * way[0] + y * way[1], Math.abs(x * way[1] + y * way[0])];
      return along > 0.5 && beside <= 2 * along ? along + 2 * beside : Infinity;
    };
    return this.show(best(this.points, cost, Infinity) ?? from, true);
  }

  /** The small note beside a point; `said` also for those who do not see it. */
  show(point, said = false) {
    if (point === this.at && !said) return;
    this.at = point;
    const tip = by("tip");
    tip.hidden = !point;
    this.chart.classList.toggle("pointing", Boolean(point));
    if (point) {
      const image = point.modality === "text" ? null : el("img", { src: thumbnail(point.id), alt: "", onerror: (event) => event.target.remove() });
      tip.replaceChildren(...[image, el("span", {}, icon(point.modality), label(point))].filter(Boolean));
      const { width, height } = this.chart.getBoundingClientRect();
      tip.classList.toggle("leftwards", point.left > width / 2);
      tip.classList.toggle("upwards", point.top > height / 2);
      tip.style.left = `${point.left}px`;
      tip.style.top = `${point.top}px`;
      if (said) by("chart-said").textContent = `${kind(point.modality)}: ${label(point)}`;
    }
    this.draw();
  }

  /** The same without seeing it: a list, made when it is opened. */
  list(from) {
    if (!by("map-list").open) return;
    const items = by("map-items");
    if (from === 0 && items.childElementCount) return;
    const next = this.points.slice(from, from + LISTED);
    items.append(...next.map((point) => el("li", {}, icon(point.modality), button(label(point), () => this.like(point), { class: "on", "aria-label": `More like ${kind(point.modality)} ${label(point)}` }))));
    by("map-more").hidden = items.childElementCount >= this.points.length;
    if (from) items.children[from]?.querySelector("button").focus();
  }
}

function label(point) {
  return point.modality === "text" && point.text ? point.text : titled(point);
}

function best(points, cost, most) {
  let [found, least] = [null, most];
  for (const point of points) {
    const own = cost(point);
    if (own < least) [found, least] = [point, own];
  }
  return found;
}

/** Kinds have shapes as well as colours. */
function mark(pen, { left, top, modality }, size, colour, alpha) {
  pen.globalAlpha = alpha;
  pen.fillStyle = colour;
  pen.beginPath();
  if (modality === "image") pen.rect(left - size * 0.9, top - size * 0.9, size * 1.8, size * 1.8);
  else if (modality === "audio") polygon(pen, left, top, size * 1.35, 4);
  else if (modality === "text") pen.arc(left, top, size, 0, 2 * Math.PI);
  else polygon(pen, left, top, size * 1.4, 3);
  pen.fill();
  pen.globalAlpha = 1;
}

function polygon(pen, left, top, size, corners) {
  for (let corner = 0; corner < corners; corner++) {
    const angle = (2 * Math.PI * corner) / corners - Math.PI / 2;
    pen.lineTo(left + size * Math.cos(angle), top + size * Math.sin(angle));
  }
  pen.closePath();
}

function ring(pen, { left, top }, size, colour, width) {
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.beginPath();
  pen.arc(left, top, size, 0, 2 * Math.PI);
  pen.stroke();
}
