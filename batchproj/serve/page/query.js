// The box: a text, and beside it files and items as small tokens that can be weighed and taken away.

import { described, thumbnail, tooLarge } from "./api.js";
import { button, by, el, icon } from "./dom.js";
import { Recorder } from "./recorder.js";
import { kind, name } from "./words.js";

const MOST_FILES = 4;
const WEIGHTS = [
  [0.5, "half as much"],
  [1, "as much"],
  [2, "twice as much"],
];

/** `change(patch)` is told of what is searched by now; `fail(text)` of what cannot be. */
export function box(change, fail) {
  let state = null;
  const recorder = new Recorder();
  const text = by("text");
  const picker = by("files");

  by("search").addEventListener("submit", (event) => {
    event.preventDefault();
    change({ text: text.value.trim() });
  });
  text.addEventListener("search", () => {
    if (!text.value && state?.text) change({ text: "" });
  });
  by("attach").addEventListener("click", () => picker.click());
  picker.addEventListener("change", () => {
    add([...picker.files]);
    picker.value = "";
  });
  by("record").addEventListener("click", () => record());
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) {
      event.preventDefault();
      add(files);
    }
  });
  dropping(add);

  function add(files) {
    const large = files.find(tooLarge);
    if (large) return fail(`${large.name || "The file"} is larger than 20 MB. Cut it, or make it smaller.`);
    if (!files.length) return fail("That was no file. Save it first, then drop the file.");
    const all = [...state.files, ...files];
    if (all.length > MOST_FILES) return fail(`At most ${MOST_FILES} files are searched by at once. Take one away first.`);
    return change({ files: all, lost: 0, text: text.value.trim() });
  }

  async function record() {
    const toggle = by("record");
    if (toggle.getAttribute("aria-pressed") === "true") return recorder.stop();
    try {
      await recorder.start(
        (seconds) => (by("box-hint").textContent = `Recording, ${seconds.toFixed(0)} s. Press the microphone again to end.`),
        (file, problem) => {
          toggle.setAttribute("aria-pressed", "false");
          by("box-hint").textContent = hint;
          if (file) add([file]);
          else fail(problem);
        },
      );
      toggle.setAttribute("aria-pressed", "true");
    } catch {
      fail("The microphone cannot be used. Allow it for this page, or drop a file with the sound.");
    }
    return null;
  }

  const hint = by("box-hint").textContent;
  const changed = (patch) => {
    change(patch);
    text.focus(); // what was pressed is no longer there
  };

  return (now) => {
    state = now;
    if (document.activeElement !== text || !text.value) text.value = now.text;
    by("inputs").replaceChildren(...tokens(now, changed));
    if (now.lost) fail("The file that this link searched by is not part of the link. Drop it again.");
  };
}

/** Files that are dropped anywhere on the page are searched by. */
function dropping(add) {
  const target = by("box");
  let inside = 0;
  const carries = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragenter", (event) => carries(event) && inside++ === 0 && target.classList.add("dropping"));
  addEventListener("dragleave", (event) => carries(event) && --inside === 0 && target.classList.remove("dropping"));
  addEventListener("dragover", (event) => carries(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    inside = 0;
    target.classList.remove("dropping");
    add([...event.dataTransfer.files]);
  });
}

function tokens(state, change) {
  const several = Boolean(state.text) + Boolean(state.like) + state.files.length > 1;
  const without = (list, gone) => list.filter((each) => each !== gone);
  const weigh = (which, label) => (several ? weight(state, which, label, change) : null);
  return [
    state.like && itemToken(state.like, "like", () => change({ like: null }), weigh("id", "that item counts")),
    ...state.files.map((file) =>
      token(file.name || "pasted", `a file, ${file.name || "pasted"}`, picture(file), weigh("file", "files count"), () =>
        change({ files: without(state.files, file) }),
      ),
    ),
    ...state.unlike.map((text) =>
      token(`less like “${text}”`, `less like ${text}`, null, null, () => change({ unlike: without(state.unlike, text) })),
    ),
    ...state.unlikeIds.map((id) =>
      itemToken(id, "less like", () => change({ unlikeIds: without(state.unlikeIds, id) }), null),
    ),
  ].filter(Boolean);
}

function token(text, said, image, weight, remove) {
  const label = el("span", { class: "name", title: text }, text);
  const away = el("button", { type: "button", class: "away", "aria-label": `Search without ${said}`, onclick: remove }, icon("close"));
  return el("li", { class: "token" }, image, label, weight, away);
}

/** Of an item of the collection; its name comes a little later. */
function itemToken(id, how, remove, weight) {
  const shown = token(`${how} an item`, `${how} that item`, null, weight, remove);
  described(id).then(
    (item) => {
      const label = shown.querySelector(".name");
      label.textContent = `${how} ${item.text && item.modality === "text" ? `“${item.text.slice(0, 40)}”` : name(item.uri)}`;
      label.title = item.uri;
      if (item.modality !== "text") {
        label.before(el("img", { src: thumbnail(id), alt: kind(item.modality), onerror: (event) => event.target.remove() }));
      }
    },
    () => {},
  );
  return shown;
}

function picture(file) {
  if (!/^image\/(png|jpeg|gif|webp|bmp)$/.test(file.type)) return icon(file.type.startsWith("audio/") ? "audio" : "file");
  const src = URL.createObjectURL(file);
  return el("img", { src, alt: "", onload: () => URL.revokeObjectURL(src) });
}

function weight(state, which, label, change) {
  const current = state.weights[which] ?? 1;
  const known = WEIGHTS.some(([value]) => value === current) ? WEIGHTS : [...WEIGHTS, [current, `${current} times`]];
  const onchange = (event) => change({ weights: { ...state.weights, [which]: Number(event.target.value) } });
  return el(
    "select",
    { "aria-label": `How much ${label}`, onchange },
    ...known.map(([value, told]) => el("option", { value, selected: value === current }, told)),
  );
}

/** “less like” by words, for the panel of filters. */
export function unlikeForm(add) {
  const input = el("input", { id: "unlike", type: "text", maxlength: 10000, placeholder: "rain" });
  const take = () => {
    const text = input.value.trim();
    input.value = "";
    input.focus();
    if (text) add(text);
  };
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    take();
  });
  return el("div", { class: "row" }, el("label", { for: "unlike" }, "Less like"), input, button("Add", take, { class: "quiet" }));
}
