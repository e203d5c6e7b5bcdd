// The events as a table: how each moment saw them, both times, and their traits.

import { byId, html, isSeen, mark, shortTime, span, stateText, svg } from "./dom.js";

// What a moment does not list, or does not prove, differs from nothing.
const isKnown = (seen) => seen.state !== "unlisted" && seen.state !== "unproven";

export const differs = (event) => event.seen.length > 1 && event.seen.every(isKnown) &&
  isSeen(event.seen[0]) !== isSeen(event.seen[1]);

// Draws the table; `pick` is called with the number of an event.
export function drawTable(view, onlyDifferences, pick) {
  const { moments, events } = view;
  const hasIds = events.some((event) => event.event_id !== null);
  const head = html("tr", {},
    ...moments.map((_, n) => html("th", { scope: "col" }, `${"AB"[n]} saw it`)),
    html("th", { scope: "col" }, "happened"), html("th", { scope: "col" }, "in the history"),
    hasIds ? html("th", { scope: "col" }, "event_id") : null,
    ...view.traits.map((trait) => html("th", {
      scope: "col", class: trait.read ? null : "unread", title: trait.read ? null : "The model does not read it.",
    }, trait.name, trait.read ? "" : " (not read)", trait.filled_before_ts === null ? "" : " (filled later)")));
  const columns = moments.length + 2 + hasIds + view.traits.length;
  const body = html("tbody");
  const borders = [...new Set(moments.map((moment) => moment.end_ts))].filter((end) => end !== null).sort((a, b) => a - b);
  const place = (event) => event.visible_ts ?? event.arrival_ts;
  const passed = (limit) => {
    while (borders.length && borders[0] <= limit) body.append(borderRow(view, borders.shift(), columns));
  };
  events.forEach((event, number) => {
    passed(place(event));
    if (!onlyDifferences || differs(event)) body.append(row(view, event, number, hasIds, pick));
  });
  passed(Infinity);
  byId("events").replaceChildren(html("table", {}, html("thead", {}, head), body));
  const border = body.querySelector(".border");
  if (border) byId("events").scrollTop = border.offsetTop - byId("events").clientHeight * 0.45;
}

function borderRow(view, end_ts, columns) {
  const names = view.moments.flatMap((moment, n) => (moment.end_ts === end_ts ? ["AB"[n]] : [])).join(" and ");
  const time = view.moments.find((moment) => moment.end_ts === end_ts).end_time;
  return html("tr", { class: "border" }, html("td", { colspan: columns }, html("span", {},
    `Watermark of ${names}, ${shortTime(time)}: the store's history ends here for ${names}; below, only what a snapshot carries is seen.`)));
}

function row(view, event, number, hasIds, pick) {
  const late = event.visible_ts !== null && event.visible_ts !== event.event_ts;
  const kinds = [event.seen.some(isSeen) ? "" : "unseen", differs(event) ? "differs" : ""].join(" ").trim();
  const placed = event.visible_time ?? event.arrival_time;
  return html("tr", { class: kinds || null, "data-event": number, tabindex: 0,
    onclick: () => pick(number), onkeydown: (pressed) => pressed.key === "Enter" && pick(number) },
    ...event.seen.map((seen) => html("td", {}, html("span", { class: "state" },
      svg("svg", { viewBox: "0 0 14 14", "aria-hidden": "true" }, mark(seen, 7, 7)), stateText(seen)))),
    html("td", {}, shortTime(event.event_time)),
    html("td", { class: late ? "moved" : null, title: late ? lateText(event) : null },
      event.visible_ts === event.event_ts ? "same" : shortTime(placed) + (event.visible_ts === null ? " (arrived)" : "")),
    hasIds ? html("td", {}, event.event_id ?? "") : null,
    ...event.values.map((value, n) => valueCell(view.traits[n], event, value)));
}

function valueCell(trait, event, value) {
  const filled = isFilled(trait, event);
  const kinds = ["text", trait.read ? "" : "unread", filled ? "filled" : ""].filter(Boolean).join(" ");
  return html("td", {
    class: kinds, title: filled ? `${value}: filled after the event was served` : value.length > 24 ? value : null,
  }, value);
}

// A fill is recorded by trait and time, not by value.
const isFilled = (trait, event) =>
  trait.filled_before_ts !== null && event.visible_ts !== null && event.visible_ts < trait.filled_before_ts;

function lateText(event) {
  const moved = event.visible_ts - event.event_ts;
  return moved > 0
    ? `Arrived late: its place is ${span(moved)} after it happened, in the generation that first held it.`
    : `Its clock ran ahead: its place is ${span(moved)} before the time it claims, in the generation that first held it.`;
}

// One sentence or two about an event.
export function eventText(view, event) {
  const notStored = `, and the ${view.has_more ? "part of the store that is listed" : "store"} does not have it.`;
  const texts = [`Happened ${shortTime(event.event_time)}.`];
  if (event.visible_ts !== null && event.visible_ts !== event.event_ts) texts.push(lateText(event));
  if (event.arrival_ts !== null)
    texts.push(`A snapshot carried it: it arrived ${shortTime(event.arrival_time)}` +
      (event.visible_ts === null ? notStored : ", and the store has had it since a newer generation."));
  event.seen.forEach((seen, n) => texts.push(`${"AB"[n]}: ${stateText(seen)}.`));
  return texts.join(" ");
}
