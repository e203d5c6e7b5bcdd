// The explorer's page: what is chosen stands in the address after #, so that it can be sent on.

import { drawAxis } from "./axis.js";
import { byId, html, isSeen, number, shortTime, span } from "./dom.js";
import { differs, drawTable, eventText } from "./table.js";

const PARTS = ["user", "a", "b", "length", "tenant"];
const PAUSE_MS = 250;

let store = null;
let view = null;
let request = null;
let rowsFrom = 0;
let waiting = 0;

async function load(path, given = {}, signal = undefined) {
  const query = new URLSearchParams(Object.entries(given).filter(([, value]) => value !== ""));
  let answer;
  try {
    answer = await fetch(`${path}?${query}`, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The explorer does not answer; is thinrow explore still running?");
  }
  const body = await answer.json();
  if (body.error) throw new Error(body.error);
  return body;
}

const toInput = (time_ts) => {
  const moment = new Date(time_ts);
  return Number.isNaN(moment.getTime()) ? "" : moment.toISOString().slice(0, 23);
};
const fromInput = (text) => (text ? Date.parse(`${text}Z`) : NaN);

function momentOf(name) {
  const kind = byId(`${name}-kind`).value;
  if (kind === "row") return `row:${byId(`${name}-row`).value || 0}`;
  if (kind !== "at") return kind;
  const time_ts = fromInput(byId(`${name}-at`).value);
  return Number.isNaN(time_ts) ? "" : `at:${time_ts}`;
}

function setMoment(name, text) {
  const [kind, value] = text.split(":");
  byId(`${name}-kind`).value = kind;
  if (kind === "row") byId(`${name}-row`).value = value;
  if (kind === "at") byId(`${name}-at`).value = toInput(Number(value));
  showFields();
}

function showFields() {
  for (const name of ["a", "b"]) {
    const kind = byId(`${name}-kind`).value;
    byId(`${name}-row`).hidden = kind !== "row";
    byId(`${name}-at`).parentElement.hidden = kind !== "at";
    if (kind === "at" && !byId(`${name}-at`).value) byId(`${name}-at`).value = toInput(store.watermarks.at(-1) ?? 0);
    if (kind === "row" && !byId(`${name}-row`).value) byId(`${name}-row`).value = 0;
  }
  byId("length").disabled = byId("tenant").value !== "";
}

function chosen() {
  return {
    user: byId("user").value.trim(), a: momentOf("a"), b: momentOf("b"),
    length: byId("tenant").value ? "" : byId("length").value, tenant: byId("tenant").value,
  };
}

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  byId("user").value = given.get("user") ?? "";
  byId("length").value = given.get("length") ?? "";
  byId("tenant").value = given.get("tenant") ?? "";
  setMoment("a", given.get("a") ?? (store.rows ? "row:0" : "now"));
  setMoment("b", given.get("b") ?? (store.rows && !given.has("a") ? "now" : ""));
}

// Only a choice of the form makes an entry that the browser's Back returns from.
const choose = () => show("pushState");

async function show(write = "replaceState") {
  clearTimeout(waiting);
  showFields();
  const choice = chosen();
  const address = new URLSearchParams(PARTS.filter((name) => choice[name]).map((name) => [name, choice[name]]));
  if (location.hash.slice(1) !== String(address)) history[write](null, "", `#${address}`);
  request?.abort();
  if (!choice.user && ![choice.a, choice.b].some((moment) => moment.startsWith("row:"))) {
    byId("result").hidden = true;
    say("Type the id of a user to see their history.");
    return;
  }
  request = new AbortController();
  say("Looking up…");
  try {
    view = await load("/api/view", choice, request.signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("result").hidden = true;
    say(error.message, true);
    return;
  }
  say("");
  draw();
}

function say(text, isBad = false) {
  byId("message").textContent = text;
  byId("message").className = isBad ? "bad" : "faint";
}

function draw() {
  if (byId("user").value !== view.user) byId("user").value = view.user;
  view.later = view.moments.map((_, n) => view.events.filter((event) => event.seen[n].state === "later").length);
  byId("result").hidden = false;
  byId("moments").replaceChildren(...view.moments.map(card));
  byId("difference").textContent = differenceText();
  for (const state of ["unproven", "unlisted"])
    byId(state).hidden = !view.events.some((event) => event.seen.some((seen) => seen.state === state));
  byId("only-field").hidden = view.moments.length < 2;
  byId("picked").textContent = "";
  drawAxis(view, pick);
  drawEvents();
}

function drawEvents() {
  drawTable(view, view.moments.length > 1 && byId("only").checked, pick);
}

function pick(event) {
  for (const each of document.querySelectorAll(".picked")) each.classList.remove("picked");
  for (const each of document.querySelectorAll(`[data-event="${event}"]`)) each.classList.add("picked");
  byId("picked").textContent = eventText(view, view.events[event]);
  const row = document.querySelector(`#events [data-event="${event}"]`);
  const room = byId("events");
  if (row && (row.offsetTop < room.scrollTop + 40 || row.offsetTop > room.scrollTop + room.clientHeight - 40))
    room.scrollTop = row.offsetTop - room.clientHeight / 2;
}

function card(moment, n) {
  const titles = { row: `thin row ${chosen()["ab"[n]].slice(4)}`, at: `a request at ${shortTime(moment.request_time)}`, now: "now, the newest generation" };
  const ok = moment.status === "OK";
  const fact = (term, text) => html("div", {}, html("dt", {}, term), html("dd", {}, text));
  const later = number(view.later[n]) + (view.has_more ? " or more" : "");
  const window = [
    moment.start_time ? `from ${shortTime(moment.start_time)}` : "",
    moment.max_length ? `the newest ${number(moment.max_length)} of the store` : "",
  ].filter(Boolean).join(", ");
  return html("article", { class: `moment ${"ab"[n]}` },
    html("h2", {}, html("b", { class: `name ${"ab"[n]}` }, "AB"[n]), titles[moment.kind],
      html("span", { class: ok ? "good" : "bad" }, moment.status)),
    html("p", {}, moment.status_sentence),
    html("ul", { class: "counts" },
      html("li", { class: "store" }, html("b", {}, number(moment.from_store)), "from the store"),
      moment.kind === "row" ? html("li", { class: "snapshot" }, html("b", {}, number(moment.from_snapshot)), "from the snapshot") : null,
      html("li", {}, html("b", {}, later), "came later")),
    html("p", {}, moment.cut_sentence),
    moment.shown < moment.total ? html("p", { class: "faint" }, `Shown are the newest ${number(moment.shown)} of ${number(moment.total)}.`) : null,
    html("dl", { class: "times" },
      fact("watermark", moment.end_time ? shortTime(moment.end_time) : `none: ${moment.kind === "row" ? "the window is empty" : "before the first generation"}`),
      moment.kind === "now" ? null : fact("request", shortTime(moment.request_time) + (moment.end_ts === null ? "" : `, ${span(moment.request_ts - moment.end_ts)} after the watermark`)),
      window ? fact("window", window) : null,
      moment.history_events === null ? null : fact("history", `${number(moment.history_events)} events up to the watermark`),
      moment.digest ? fact("digest", html("code", {}, moment.digest)) : null,
      ...Object.entries(moment.labels).map(([name, text]) => fact(name, text || "—"))),
    html("p", { class: "faint" }, moment.digest_sentence),
    moment.kind === "at" && view.later[n] ? html("p", { class: "faint" },
      "Events that had arrived by then may have been in the request's snapshot; only its thin row knows them.") : null);
}

function differenceText() {
  if (view.moments.length < 2) return "";
  const unproven = ["A", "B"].filter((_, n) => !view.moments[n].is_served);
  if (unproven.length) return `The store does not prove what ${unproven.join(" and ")} saw, so the moments cannot be compared.`;
  const only = (n) => view.events.filter((event) => differs(event) && isSeen(event.seen[n])).length;
  const [a, b] = [only(0), only(1)];
  if (!a && !b) return "Both moments saw the same events, as far as both list them.";
  const both = view.events.filter((event) => event.seen.every(isSeen)).length;
  return `${number(both)} events were seen by both, ${number(b)} by B only, ${number(a)} by A only. What only one of them saw is marked.`;
}

async function listRows() {
  const user = byId("rows-of-user").checked ? byId("user").value.trim() : "";
  let list;
  try {
    list = await load("/api/rows", { from: String(rowsFrom), user });
  } catch (error) {
    say(error.message, true);
    return;
  }
  const use = (row, name) => html("button", {
    type: "button", "aria-label": `Show row ${row.row} as ${name.toUpperCase()}`,
    onclick: () => { setMoment(name, `row:${row.row}`); choose(); },
  }, name.toUpperCase());
  byId("rows").querySelector("tbody").replaceChildren(...list.rows.map((row) => html("tr", {},
    html("td", {}, number(row.row)), html("td", {}, row.user), html("td", {}, shortTime(row.request_time)),
    html("td", {}, use(row, "a"), " ", use(row, "b")))));
  byId("rows-next").disabled = list.next === null;
  byId("rows-next").onclick = () => { rowsFrom = list.next; listRows(); };
  byId("rows-end").textContent = list.next !== null && list.rows.length < store.rows_listed_max
    ? `Searched the rows before ${number(list.next)}; next searches on.` : "";
}

// The generation before or after a moment: its watermark is the first moment that it served.
function step(name, isForward) {
  const now_ts = fromInput(byId(`${name}-at`).value);
  const found = isForward
    ? store.watermarks.find((watermark_ts) => watermark_ts > now_ts)
    : store.watermarks.findLast((watermark_ts) => watermark_ts < now_ts);
  if (found !== undefined) { byId(`${name}-at`).value = toInput(found); choose(); }
}

function listen() {
  // The address after # holds the choice, so the link must not replace it.
  byId("skip").addEventListener("click", (event) => { event.preventDefault(); byId("result").focus(); });
  const soon = () => { clearTimeout(waiting); waiting = setTimeout(choose, PAUSE_MS); };
  byId("choice").addEventListener("submit", (event) => { event.preventDefault(); choose(); });
  byId("choice").addEventListener("change", soon);
  byId("choice").addEventListener("input", (event) => event.target.type === "number" && soon());
  byId("user").addEventListener("change", () => {
    // Another user has other rows.
    for (const name of ["a", "b"]) if (byId(`${name}-kind`).value === "row") setMoment(name, name === "a" ? "now" : "");
    rowsFrom = 0;
    if (byId("rows").open && byId("rows-of-user").checked) listRows();
  });
  for (const button of document.querySelectorAll("[data-step]"))
    button.addEventListener("click", () => step(button.dataset.step[0], button.dataset.step[1] === "+"));
  byId("only").addEventListener("change", drawEvents);
  byId("rows").addEventListener("toggle", () => byId("rows").open && listRows());
  byId("rows-of-user").addEventListener("change", () => { rowsFrom = 0; listRows(); });
  byId("rows-first").addEventListener("click", () => { rowsFrom = 0; listRows(); });
  addEventListener("popstate", () => { readAddress(); show(); });
}

try {
  store = await load("/api/store");
  byId("store").textContent = `${store.name} · generation ${number(store.generation)} · watermark ` +
    `${shortTime(store.watermark_time)} · ${number(store.event_count)} events of ${number(store.user_count)} users`;
  byId("tenant").append(...store.tenants.map((name) => html("option", { value: name }, name)));
  byId("tenant-field").hidden = !store.tenants.length;
  byId("length").max = store.length_max;
  for (const name of ["a", "b"]) byId(`${name}-row`).max = (store.rows ?? 1) - 1;
  if (store.rows) {
    byId("rows").hidden = false;
    byId("rows").querySelector("summary").textContent = `Pick from ${number(store.rows)} thin rows`;
  } else {
    for (const option of document.querySelectorAll("option[value=row]")) option.remove();
  }
  listen();
  readAddress();
  await show();
} catch (error) {
  say(error.message, true);
}
