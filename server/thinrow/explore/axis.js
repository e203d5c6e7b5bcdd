// The time axis: for each moment a band, in which every event leads from when it happened to where
// it stands in the history.

import { byId, html, mark, stateClass, svg } from "./dom.js";

const BAND = 128;
const HAPPENED = 52;
const PLACED = 104;
const LABELS = 26;
const GUTTER = 172;
const WIDE = 700;
const ZOOMS = [["all", 0], ["30 days", 30 * 864e5], ["7 days", 7 * 864e5], ["1 day", 864e5], ["1 hour", 36e5]];
const STEPS = [
  1, 10, 100, 1e3, 1e4, 6e4, 3e5, 9e5, 36e5, 3 * 36e5, 6 * 36e5, 12 * 36e5, 864e5, 2 * 864e5, 7 * 864e5,
  14 * 864e5, 30 * 864e5, 91 * 864e5, 365 * 864e5, 5 * 365 * 864e5, 50 * 365 * 864e5, 1e3 * 365 * 864e5,
];

let zoom_ms = 0;
let shown = null;

export const placeOf = (event, seen) =>
  (seen.state === "snapshot" ? event.arrival_ts : event.visible_ts) ?? event.arrival_ts;

// Draws the events of a view; `pick` is called with the number of an event.
export function drawAxis(view, pick) {
  shown = { view, pick };
  byId("zoom").replaceChildren(...ZOOMS.map(([text, span_ms]) => html("button", {
    type: "button", "aria-pressed": String(zoom_ms === span_ms),
    onclick: () => { zoom_ms = span_ms; drawAxis(view, pick); },
  }, text)));
  redraw();
}

function domain(view) {
  const [a] = view.moments;
  const anchor = a.end_ts ?? a.request_ts;
  if (zoom_ms) return [Math.max(anchor, a.request_ts) - zoom_ms * 0.85, Math.max(anchor, a.request_ts) + zoom_ms * 0.15];
  const times = view.moments.flatMap((moment) => [moment.request_ts, moment.end_ts ?? moment.request_ts]);
  for (const event of view.events) {
    times.push(event.event_ts, event.visible_ts ?? event.event_ts, event.arrival_ts ?? event.event_ts);
  }
  let [least, most] = [Infinity, -Infinity];
  for (const time of times) { least = Math.min(least, time); most = Math.max(most, time); }
  const room = Math.max((most - least) * 0.03, 500);
  return [least - room, most + room];
}

function tickText(time, step) {
  const moment = new Date(time);
  if (Number.isNaN(moment.getTime())) return String(time);
  const text = moment.toISOString();
  if (step >= 864e5) return text.slice(0, 10);
  return step >= 6e4 ? `${text.slice(5, 10)} ${text.slice(11, 16)}` : text.slice(11, step >= 1e3 ? 19 : 23);
}

function redraw() {
  const { view, pick } = shown;
  const width = Math.max(byId("axis").clientWidth, 260);
  const left = width >= WIDE ? GUTTER : 0;
  const [from, to] = domain(view);
  const x = (time) => Number((left + (time - from) / (to - from) * (width - left)).toFixed(1));
  const height = view.moments.length * BAND + LABELS;
  const step = STEPS.find((each) => (to - from) / each <= (width - left) / 96) ?? STEPS.at(-1);
  const inside = svg("rect", { x: left - (left ? 8 : 0), y: 0, width: width - left + 8, height });
  const parts = [svg("clipPath", { id: "inside" }, inside)];
  for (let time = Math.ceil(from / step) * step; time < to; time += step) {
    parts.push(svg("line", { class: "grid", x1: x(time), x2: x(time), y1: 0, y2: height - LABELS }));
    if (x(time) > left + 34 && x(time) < width - 34)
      parts.push(svg("text", { x: x(time), y: height - 8, "text-anchor": "middle" }, tickText(time, step)));
  }
  view.moments.forEach((moment, n) => parts.push(...band(view, moment, n, x, left, width, pick)));
  const spoken = view.moments.map((moment, n) => `${"AB"[n]}: ${moment.from_store} events from the store, ` +
    `${moment.from_snapshot} from the snapshot, ${view.later[n]} not seen because they are newer.`).join(" ");
  byId("axis").replaceChildren(svg("svg", {
    viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `Time axis, UTC. ${spoken}`,
  }, ...parts));
}

function band(view, moment, n, x, left, width, pick) {
  const top = n * BAND;
  const [happened, placed, bottom] = [top + HAPPENED, top + PLACED, top + BAND - 10];
  const within = (at) => Math.min(Math.max(at, left), width);
  const end = within(x(moment.end_ts ?? -Infinity));
  const request = within(x(moment.request_ts));
  const parts = [
    svg("rect", { class: "zone-store", x: left, y: top + 34, width: end - left, height: bottom - top - 34 }),
    svg("rect", { class: "zone-snapshot", x: end, y: top + 34, width: Math.max(request - end, 0), height: bottom - top - 34 }),
    svg("line", { class: "lane", x1: left, x2: width, y1: happened, y2: happened }),
    svg("line", { class: "lane", x1: left, x2: width, y1: placed, y2: placed }),
  ];
  const links = new Map();
  const marks = [];
  view.events.forEach((event, number) => {
    const seen = event.seen[n];
    const place = placeOf(event, seen);
    const [from, to] = [x(event.event_ts), x(place)];
    if (Math.max(from, to) < left || Math.min(from, to) > width) return;
    const kind = stateClass(seen);
    links.set(kind, `${links.get(kind) ?? ""}M${from} ${happened - 5}V${happened + 5}L${to} ${placed}`);
    marks.push(mark(seen, to, placed, { class: "mark", "data-event": number, onclick: () => pick(number) }));
  });
  const lines = [...links].map(([kind, d]) => svg("path", { class: `link ${kind}`, d }));
  // Those that serving saw lie on top.
  const rank = (each) => Number(/^(store|snapshot)/.test(each.getAttribute("class")));
  marks.sort((one, other) => rank(one) - rank(other));
  parts.push(svg("g", { "clip-path": "url(#inside)" }, ...lines, ...marks));
  if (moment.end_ts !== null) parts.push(...border("watermark", "watermark", x(moment.end_ts), top + 14, bottom, left, width));
  if (moment.kind !== "now") parts.push(...border("request", "request", x(moment.request_ts), top + 28, bottom, left, width));
  parts.push(
    svg("text", { class: "strong", x: 0, y: top + 14 }, "AB"[n]),
    svg("text", { x: 0, y: happened + (left ? 4 : -8) }, left ? "happened (event_ts)" : "happened"),
    svg("text", { x: 0, y: placed + (left ? 4 : -9) }, left ? "in the history (visible_ts)" : "in the history"),
  );
  return parts;
}

function border(kind, text, at, top, bottom, left, width) {
  if (at < left || at > width) return [];
  const isLast = at > width - 76;
  return [
    svg("line", { class: kind, x1: at, x2: at, y1: top - 10, y2: bottom }),
    svg("text", { class: "strong", x: isLast ? at - 5 : at + 5, y: top, "text-anchor": isLast ? "end" : "start" }, text),
  ];
}

new ResizeObserver(() => shown && redraw()).observe(byId("axis"));
