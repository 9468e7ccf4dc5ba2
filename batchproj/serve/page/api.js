// What is asked of the service, and what is said when it does not answer.

/** An error with a sentence for people; `status` is HTTP's, 0 where nothing answered. */
export class Problem extends Error {
  constructor(message, status, again = false) {
    super(message);
    this.status = status;
    this.again = again;
  }
}

const AWAY = "The service does not answer. Is it still running? Try again.";
const MOST_BYTES = 20 * 2 ** 20; // what the service takes unless its operator changed it

let askToken = async () => false;

/** `ask` gets a token from the person, with what was wrong with the last one; false if there is none to be had. */
export function onToken(ask) {
  askToken = ask;
}

export function tooLarge(file) {
  return file.size > MOST_BYTES;
}

async function answer(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(AWAY, 0, true);
  }
  if (response.status === 401 && (await askToken())) return answer(path, options);
  if (response.ok) return response.status === 204 ? null : response.json();
  const told = await response.json().catch(() => ({}));
  const again = [408, 429, 503].includes(response.status);
  const detail = told.detail ?? `the service answered ${response.status}`;
  throw new Problem(detail.charAt(0).toUpperCase() + detail.slice(1), response.status, again);
}

const get = (path) => answer(path, {});

/** A session for this browser, in the place of a token; false if it is the wrong one. */
export async function session(token) {
  const response = await fetch("session", { method: "POST", headers: { Authorization: `Bearer ${token}` } });
  return response.ok;
}

/** {run, hits}: files go as a form, anything else as JSON. */
export function search(document_, files, signal) {
  if (!files.length) {
    const headers = { "Content-Type": "application/json" };
    return answer("search", { method: "POST", headers, body: JSON.stringify(document_), signal });
  }
  const form = new FormData();
  for (const [key, value] of Object.entries(document_)) {
    form.append(key, typeof value === "object" ? JSON.stringify(value) : String(value));
  }
  for (const file of files) form.append("file", file, file.name || "pasted");
  return answer("search", { method: "POST", body: form, signal });
}

let asked = "";

/** All that is asked for from now on is of this run; "" is the live one. */
export function ofRun(run) {
  asked = run ? `?run=${encodeURIComponent(run)}` : "";
}

const item = (id, what = "") => `items/${encodeURIComponent(id)}${what}${asked}`;

export const media = (id, start) => `${item(id, "/media")}${start ? `#t=${start.toFixed(2)}` : ""}`;
export const thumbnail = (id) => item(id, "/thumbnail");
export const described = (id) => get(item(id));
export const stats = () => get(`stats${asked}`);
export const mapped = () => get(`map${asked}`);
export const runs = () => get("runs");
