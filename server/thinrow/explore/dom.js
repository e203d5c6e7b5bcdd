// Elements from text: nothing that a store holds is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const html = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);

export const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

export const byId = (id) => document.getElementById(id);

// The mark of a state: shapes differ, too, for eyes that do not distinguish the colours.
export function mark(seen, x, y, more = {}) {
  const attributes = { ...more, class: `${stateClass(seen)} ${more.class ?? ""}` };
  if (seen.state === "snapshot")
    return svg("path", { ...attributes, d: `M${x} ${y - 5.5} ${x + 5.5} ${y} ${x} ${y + 5.5} ${x - 5.5} ${y}Z` });
  if (seen.state === "outside")
    return svg("path", { ...attributes, d: `M${x - 3} ${y - 3}l6 6M${x + 3} ${y - 3}l-6 6` });
  if (seen.state === "unlisted")
    return svg("path", { ...attributes, d: `M${x - 4} ${y}h8` });
  if (seen.state === "unproven")
    return svg("path", { ...attributes, d: `M${x - 4} ${y - 4}h8v8h-8z` });
  return svg("circle", { ...attributes, cx: x, cy: y, r: seen.state === "later" ? 3.75 : 4.25 });
}

export const isSeen = (seen) => seen.state === "store" || seen.state === "snapshot";

const isCut = (seen) => isSeen(seen) && !seen.kept;

export const stateClass = (seen) => seen.state + (isCut(seen) ? " cut" : "");

export function stateText(seen) {
  const texts = {
    store: "store", snapshot: "snapshot", later: "not seen: newer",
    outside: "not seen: outside", unproven: "in store, not proven", unlisted: "older than the list",
  };
  return texts[seen.state] + (isCut(seen) ? ", cut" : "");
}

export function number(count) {
  return count.toLocaleString("en");
}

const UNITS = [["d", 86400000], ["h", 3600000], ["min", 60000], ["s", 1000], ["ms", 1]];

// A span in its two largest units.
export function span(milliseconds) {
  let rest = Math.abs(milliseconds);
  const parts = [];
  for (const [unit, size] of UNITS) {
    if (parts.length === 2 || (parts.length === 1 && rest < size)) break;
    if (rest < size) continue;
    parts.push(`${number(Math.floor(rest / size))} ${unit}`);
    rest %= size;
  }
  return parts.join(" ") || "0 ms";
}

// RFC 3339, as people read it: no T, no zero milliseconds.
export function shortTime(text) {
  return text.replace("T", " ").replace(/\.000Z$|(?<=\.\d{3})Z$/, "");
}
