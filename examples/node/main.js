// What this example does, by its first argument:
//   node main.js vectors FILE                 decodes the test vectors, and compares
//   node main.js materialize ADDRESS USER...  shows whole histories, as JSON
//   node main.js append ADDRESS FILE          appends a JSON list of events, and shows a snapshot of each user
"use strict";

const fs = require("node:fs");
const { call, callStream, connect, decodeColumn, eventBatch, loaded, named, sequences } = require("./thinrow");

// Numbers that JSON cannot hold go as text.
function show(value) {
  const plain = (_, each) =>
    typeof each === "bigint" || (typeof each === "number" && !Number.isFinite(each)) ? String(each) : each;
  console.log(JSON.stringify(value, plain));
}

// A decoded value as the vectors write it, floats as their bits.
function written(kind, value) {
  if (value === null || typeof value === "string" || typeof value === "boolean") return value;
  if (Array.isArray(value)) return value.map((each) => written(kind, each));
  return text(value);
}

const text = (number) => (Object.is(number, -0) ? "-0" : String(number));

function expected(kind, value) {
  const bits = Number(/FLOAT(\d+)/.exec(kind)?.[1] ?? 0);
  if (value === null || !bits) return value;
  if (Array.isArray(value)) return value.map((each) => expected(kind, each));
  return text(floatOfBits(bits, BigInt(value)));
}

// Written apart from the decoder: by arithmetic alone.
function floatOfBits(bits, word) {
  const fractionBits = { 16: 10n, 32: 23n, 64: 52n }[bits];
  const exponentBits = BigInt(bits) - 1n - fractionBits;
  const most = (1n << exponentBits) - 1n;
  const exponent = (word >> fractionBits) & most;
  const fraction = Number(word & ((1n << fractionBits) - 1n)) / 2 ** Number(fractionBits);
  const bias = Number(most >> 1n);
  const sign = word >> BigInt(bits - 1) ? -1 : 1;
  if (exponent === most) return fraction ? NaN : sign * Infinity;
  if (exponent === 0n) return sign * fraction * 2 ** (1 - bias);
  return sign * (1 + fraction) * 2 ** (Number(exponent) - bias);
}

function checkVectors(file) {
  const vectors = JSON.parse(fs.readFileSync(file, "utf8"));
  const { deserialize } = columnMessage();
  for (const { name, message, block_lengths, values } of vectors.columns) {
    const column = deserialize(Buffer.from(message, "base64"));
    const found = decodeColumn(column, block_lengths).map((value) => written(column.type, value));
    const wanted = values.map((value) => expected(column.type, value));
    if (JSON.stringify(found) !== JSON.stringify(wanted)) throw new Error(`${name}: ${found}, not ${wanted}`);
  }
  for (const { name, message, block_lengths } of vectors.malformed) {
    const column = deserialize(Buffer.from(message, "base64"));
    let refused = false;
    try {
      decodeColumn(column, block_lengths);
    } catch {
      refused = true;
    }
    if (!refused) throw new Error(`${name}: not refused`);
  }
  show({ columns: vectors.columns.length, malformed: vectors.malformed.length });
}

// protobuf.js decodes messages of methods only, so a column comes inside an answer.
function columnMessage() {
  const method = loaded["thinrow.v1.MaterializationService"].Materialize;
  const COLUMNS = 7;
  return {
    deserialize(bytes) {
      const head = [(COLUMNS << 3) | 2];
      for (let length = bytes.length; ; length >>>= 7) {
        if (length < 128) {
          head.push(length);
          break;
        }
        head.push((length & 127) | 128);
      }
      return method.responseDeserialize(Buffer.concat([Buffer.from(head), bytes])).columns[0];
    },
  };
}

async function materialize({ materialization }, users) {
  const store = await call(materialization, "DescribeStore", {});
  const request = { ...named(users, store.user_id_kind), end_ts: users.map(() => store.watermark_ts) };
  const answers = await callStream(materialization, "MaterializeStream", [
    { cursor: "1", request },
    { cursor: "2", request: { ...request, projection: { sequence_length: "3" } } },
  ]);
  show(answers.map(({ response }) => sequences(response)));
}

async function append({ online }, file) {
  const events = JSON.parse(fs.readFileSync(file, "utf8"));
  const tier = await call(online, "DescribeTier", {});
  const [answer] = await callStream(online, "AppendEvents", [
    { cursor: "1", events: eventBatch(events, tier) },
  ]);
  if (answer.refused) throw new Error(answer.refused);
  const users = [...new Set(events.map((event) => event.user_id))];
  const one = (user) => {
    const { user_ids, user_texts } = named([user], tier.user_id_kind);
    return user_texts ? { user_text: user } : { user_id: user_ids[0] };
  };
  const request_ts = String(BigInt(answer.arrival_ts) + 1n);
  const [{ answers }] = await callStream(online, "SnapshotStream", [
    { requests: users.map((user, place) => ({ cursor: place, request: { ...one(user), request_ts } })) },
  ]);
  const seen = answers.map(({ response }) => {
    const { arrival_ts, columns } = response.mutable;
    return Object.fromEntries(columns.map((column) => [column.trait, decodeColumn(column, [arrival_ts.length])]));
  });
  show({ appended: answer.appended, seen });
}

async function main([command, first, ...rest]) {
  if (command === "vectors") return checkVectors(first);
  const clients = connect(first);
  try {
    if (command === "materialize") await materialize(clients, rest);
    else if (command === "append") await append(clients, rest[0]);
    else throw new Error("Say vectors, materialize or append.");
  } finally {
    clients.materialization.close();
    clients.online.close();
  }
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
