// What is searched for, as the address bar has it: a link shows the same, and the back button goes back.

const held = new Map();
let last = 0;

export const PAGE = 24;

export function empty() {
  return {
    text: "",
    like: null,
    files: [],
    lost: 0,
    unlike: [],
    unlikeIds: [],
    modality: "",
    filters: [],
    hybrid: false,
    group: false,
    balance: true,
    weights: {},
    run: "",
  };
}

/** Whether there is anything to search by. */
export function asks(state) {
  return Boolean(state.text || state.like || state.files.length);
}

/** A file cannot stand in a link: it is kept here, as long as the page is. */
function hold(file) {
  for (const [key, each] of held) if (each === file) return key;
  held.set(++last, file);
  return last;
}

/** Of the address: its query, and the numbers of the files that this page holds. */
export function written(state) {
  const query = new URLSearchParams();
  if (state.text) query.set("q", state.text);
  if (state.like) query.set("like", state.like);
  if (state.files.length) query.set("files", state.files.length);
  for (const text of state.unlike) query.append("not", text);
  for (const id of state.unlikeIds) query.append("notlike", id);
  if (state.modality) query.set("kind", state.modality);
  for (const { field, op, value } of state.filters) query.append("filter", JSON.stringify([field, op, value]));
  if (state.hybrid) query.set("words", "1");
  if (state.group) query.set("items", "1");
  if (!state.balance) query.set("mix", "0");
  if (state.run) query.set("run", state.run);
  for (const [name, weight] of Object.entries(state.weights)) if (weight !== 1) query.set(`weight.${name}`, weight);
  return { search: query.toString(), files: state.files.map(hold) };
}

/** The state that an address tells; `lost` files were searched by in another page. */
export function read(search, files = []) {
  const query = new URLSearchParams(search);
  const found = files.map((key) => held.get(key)).filter(Boolean);
  const weights = {};
  for (const name of ["id", "file"]) {
    const weight = Number(query.get(`weight.${name}`) ?? 1);
    if (weight > 0 && weight <= 100 && weight !== 1) weights[name] = weight;
  }
  return {
    ...empty(),
    text: query.get("q") ?? "",
    like: query.get("like"),
    files: found,
    lost: Math.max(0, Number(query.get("files") ?? 0) - found.length) || 0,
    unlike: query.getAll("not"),
    unlikeIds: query.getAll("notlike"),
    modality: query.get("kind") ?? "",
    filters: query.getAll("filter").map(filter).filter(Boolean),
    hybrid: query.get("words") === "1",
    group: query.get("items") === "1",
    balance: query.get("mix") !== "0",
    weights,
    run: (query.get("run") ?? "").slice(0, 20),
  };
}

function filter(text) {
  try {
    const [field, op, value] = JSON.parse(text);
    return { field, op, value };
  } catch {
    return null;
  }
}

/** What POST /search takes, for the hits from `offset` on. */
export function asked(state, measured, offset) {
  const document_ = { k: PAGE, offset };
  if (state.text) document_.text = state.text;
  if (state.like) document_.id = state.like;
  if (state.unlike.length) document_.not = state.unlike;
  if (state.unlikeIds.length) document_.not_id = state.unlikeIds;
  if (state.modality) document_.modality = state.modality;
  if (state.filters.length) document_.filters = state.filters;
  if (state.hybrid && state.text) document_.hybrid = true;
  if (state.group) document_.group = true;
  if (state.balance && measured && !state.modality) document_.balance = true;
  if (state.run) document_.run = state.run;
  const weights = Object.entries(state.weights).filter(([name]) => (name === "id" ? state.like : state.files.length));
  if (weights.length) document_.weights = Object.fromEntries(weights);
  return document_;
}
