// How things are said: names, counts, times.

const ONE = { image: "image", audio: "sound", text: "text", video: "video" };
const MANY = { image: "images", audio: "sounds", text: "texts", video: "videos" };
const WHY = { vector: "by meaning", keyword: "by its words", both: "by meaning and words" };

export const KINDS = ["image", "audio", "video", "text"];

export const kind = (modality) => ONE[modality] ?? modality;
export const kinds = (modality) => MANY[modality] ?? modality;
export const why = (ranking) => WHY[ranking] ?? ranking;
export const number = (value) => value.toLocaleString("en");

export function counted(count, one, many = `${one}s`) {
  return `${number(count)} ${count === 1 ? one : many}`;
}

/** The last part of a URI, as people wrote it. */
export function name(uri) {
  const last = uri.replace(/\/+$/, "").split("/").pop();
  try {
    return decodeURIComponent(last);
  } catch {
    return last;
  }
}

/** Seconds as 1:02:03. */
export function clock(seconds) {
  const whole = Math.floor(seconds);
  const parts = [Math.floor(whole / 60) % 60, whole % 60].map((part) => String(part).padStart(2, "0"));
  const hours = Math.floor(whole / 3600);
  return hours ? `${hours}:${parts.join(":")}` : parts.join(":").replace(/^0/, "");
}

/** Where in its item a hit is, null for one that is the whole of it. */
export function place(hit) {
  if (hit.start === null || hit.end === null) return null;
  if (hit.modality === "text") {
    return hit.segment > 0 ? `characters ${number(hit.start)} to ${number(hit.end)}` : null;
  }
  if (hit.segment === 0 && hit.start === 0) return null; // its begin, and often all of it
  return `${clock(hit.start)} to ${clock(Math.ceil(hit.end))}`;
}
