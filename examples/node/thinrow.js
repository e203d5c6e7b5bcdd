// A small client of ThinRow. docs/reference/other-languages.md explains each step.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const ROOT = path.join(__dirname, "..", "..");
const FILES = ["thinrow/v1/materialization.proto", "thinrow/v1/online.proto"];
const WIDTHS = [1, 2, 4, 8];
const LIST_LENGTH_MAX = 4096;
// Bits of a value's word, by type.
const SIGNED = { INT8: 8, INT16: 16, INT32: 32, INT64: 64 };
const UNSIGNED = { UINT8: 8, UINT16: 16, UINT32: 32, UINT64: 64 };
const FLOATS = { FLOAT16: 16, FLOAT32: 32, FLOAT64: 64 };
const EVENT_TS = { name: "event_ts", type: "TRAIT_TYPE_INT64", vector_size: 1 };
const EVENT_ID_TYPES = {
  ID_KIND_UINT64: "TRAIT_TYPE_UINT64",
  ID_KIND_UUID: "TRAIT_TYPE_STRING",
  ID_KIND_STRING: "TRAIT_TYPE_STRING",
};

const loaded = protoLoader.loadSync(FILES, {
  includeDirs: [path.join(ROOT, "protos")],
  keepCase: true,
  longs: String, // 64-bit integers do not fit a number
  enums: String,
  defaults: true,
  oneofs: true, // adds `_default_word: "default_word"` where an optional field is set
});
const v1 = grpc.loadPackageDefinition(loaded).thinrow.v1;

// Makes clients of both services; close them at the end.
function connect(address, credentials = grpc.credentials.createInsecure()) {
  const options = {
    "grpc.keepalive_time_ms": 30000,
    "grpc.keepalive_timeout_ms": 20000,
    "grpc.max_receive_message_length": 64 * 1024 * 1024, // Limits.response_bytes_max
    "grpc.service_config": fs.readFileSync(
      path.join(ROOT, "docs/reference/service-config.json"),
      "utf8",
    ),
  };
  return {
    materialization: new v1.MaterializationService(address, credentials, options),
    online: new v1.OnlineService(address, credentials, options),
  };
}

// Makes a single call.
function call(client, method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

// Sends messages on a stream, and returns their answers.
function callStream(client, method, messages) {
  return new Promise((resolve, reject) => {
    const stream = client[method]();
    const answers = [];
    stream.on("data", (answer) => answers.push(answer));
    stream.on("error", reject);
    stream.on("end", () => {
      if (answers.length === messages.length) resolve(answers);
      else reject(new Error(`${answers.length} answers to ${messages.length} messages`));
    });
    for (const message of messages) stream.write(message);
    stream.end();
  });
}

function require_(condition, what) {
  if (!condition) throw new Error(`The column is malformed: ${what}.`);
}

// Decodes a Column: a value for each event of the run, null where it lacks the trait. Integers of
// all types are BigInt, floats numbers.
function decodeColumn(column, blockLengths) {
  const kind = String(column.type).replace("TRAIT_TYPE_", "");
  const { bases, widths, data, present, vector_size: size, nullable } = column;
  const { list_length_max: lengthMax, list_lengths: lengths } = column;
  const toValue = valueReader(kind, column);
  require_(lengthMax <= LIST_LENGTH_MAX, `a limit of ${lengthMax} elements`);
  require_(lengthMax ? size === 0 : size >= 1, `a vector of ${size} elements`);
  require_(bases.length === blockLengths.length, "as many bases as blocks");
  require_(widths.length === blockLengths.length, "as many widths as blocks");
  const events = blockLengths.reduce((total, length) => total + length, 0);
  require_(present.length === (nullable ? Math.ceil(events / 8) : 0), "a present bit for each event");
  const isThere = (event) => !nullable || (present[event >> 3] >> (event & 7)) & 1;

  const lengthBytes = lengthMax < 256 ? 1 : 2;
  require_(lengths.length === (lengthMax ? events * lengthBytes : 0), "a length for each list");
  const wordsOf = (event) => {
    if (!lengthMax) return isThere(event) ? size : 0;
    const length = lengths.readUIntLE(event * lengthBytes, lengthBytes);
    require_(length <= (isThere(event) ? lengthMax : 0), `a list of ${length} elements`);
    return length;
  };

  const words = [];
  let event = 0;
  for (const length of blockLengths) {
    let count = 0;
    for (const end = event + length; event < end; event++) count += wordsOf(event);
    words.push(count);
  }
  const starts = new Array(words.length).fill(0);
  let at = 0;
  for (const width of WIDTHS)
    for (let block = 0; block < words.length; block++)
      if (widths[block] === width) {
        starts[block] = at;
        at += words[block] * width;
      }
  require_([...widths].every((width) => width === 0 || WIDTHS.includes(width)), "a width that is none");
  require_(at === data.length, `${data.length} bytes of data, not ${at}`);

  const values = [];
  event = 0;
  blockLengths.forEach((length, block) => {
    const base = BigInt(bases[block]);
    let place = starts[block];
    const next = () => {
      const offset = readUnsigned(data, place, widths[block]);
      place += widths[block];
      return toValue(BigInt.asUintN(64, base + offset));
    };
    for (const end = event + length; event < end; event++) {
      if (!isThere(event)) values.push(null);
      else if (size === 1) values.push(next());
      else values.push(Array.from({ length: wordsOf(event) }, next));
    }
  });
  return values;
}

function readUnsigned(data, at, width) {
  if (width === 8) return data.readBigUInt64LE(at);
  return BigInt(width === 0 ? 0 : data.readUIntLE(at, width));
}

// Returns the function that turns a word, a BigInt below 2^64, into a value.
function valueReader(kind, { dictionary, strings }) {
  const entry = (entries, word) => {
    require_(word < BigInt(entries.length), "an index that points nowhere");
    return entries[Number(word)];
  };
  if (kind in SIGNED) return (word) => BigInt.asIntN(SIGNED[kind], word);
  if (kind in UNSIGNED) return (word) => BigInt.asUintN(UNSIGNED[kind], word);
  if (kind in FLOATS) return (word) => toFloat(FLOATS[kind], BigInt.asUintN(FLOATS[kind], word));
  if (kind === "STRING") return (word) => entry(strings, word);
  if (kind === "CATEGORICAL")
    return dictionary.length
      ? (word) => BigInt(entry(dictionary, word))
      : (word) => BigInt.asIntN(64, word);
  require_(kind === "BOOL", `the unknown type ${kind}`);
  return (word) => {
    require_(word < 2n, "a bool that is neither 0 nor 1");
    return word === 1n;
  };
}

// A float of its bits.
function toFloat(bits, word) {
  const view = new DataView(new ArrayBuffer(8));
  view.setBigUint64(0, word);
  if (bits === 64) return view.getFloat64(0);
  if (bits === 32) return view.getFloat32(4);
  const [sign, exponent, fraction] = [word >> 15n, Number((word >> 10n) & 31n), Number(word & 1023n)];
  const size =
    exponent === 0
      ? fraction * 2 ** -24
      : exponent === 31
        ? fraction
          ? NaN
          : Infinity
        : (1 + fraction / 1024) * 2 ** (exponent - 15);
  return sign ? -size : size;
}

// Turns an answer into sequences: of each example its status, and its events by trait.
function sequences(answer) {
  const columns = answer.columns.map((column) => [
    column.trait,
    decodeColumn(column, answer.block_lengths),
  ]);
  return answer.statuses.map((status, example) => {
    const start = answer.view_starts[example];
    const end = start + answer.view_lengths[example];
    const events = columns.map(([trait, values]) => [trait, values.slice(start, end)]);
    return { status, events: Object.fromEntries(events) };
  });
}

// Makes an EventBatch of events such as {user_id: 7n, event_ts: 1n, item_id: 5n}; a trait that an
// event lacks is left out. tier: the response of DescribeTier.
function eventBatch(events, tier) {
  const type = EVENT_ID_TYPES[tier.event_id_kind] ?? "TRAIT_TYPE_INT64";
  const eventId = { name: "event_id", type, vector_size: 1, nullable: true };
  const traits = [EVENT_TS, eventId, ...tier.feature_groups.flatMap((group) => group.traits)];
  const known = new Set(["user_id", ...traits.map((trait) => trait.name)]);
  for (const name of events.flatMap(Object.keys))
    if (!known.has(name)) throw new Error(`There is no trait ${name}.`);
  return {
    ...named(events.map((event) => event.user_id), tier.user_id_kind),
    columns: traits
      .filter(({ name }) => events.some((event) => name in event))
      .map((trait) => encodeColumn(trait, events.map((event) => event[trait.name] ?? null))),
  };
}

// The field of a message that names users of a kind.
function named(users, kind) {
  const isText = kind === "ID_KIND_UUID" || kind === "ID_KIND_STRING";
  return { [isText ? "user_texts" : "user_ids"]: users.map(String) };
}

// Encodes a column of one block: base 0, and the values' own bytes.
function encodeColumn({ name, type, vector_size: size }, values) {
  const kind = type.replace("TRAIT_TYPE_", "");
  const there = values.filter((value) => value !== null);
  const nullable = there.length < values.length;
  const present = Buffer.alloc(nullable ? Math.ceil(values.length / 8) : 0);
  values.forEach((value, event) => {
    if (nullable && value !== null) present[event >> 3] |= 1 << (event & 7);
  });
  const strings = kind === "STRING" ? [...new Set(there)] : [];
  const places = new Map(strings.map((text, place) => [text, place]));
  const bits = { BOOL: 8, STRING: 32, CATEGORICAL: 64, ...SIGNED, ...UNSIGNED, ...FLOATS }[kind];
  const data = Buffer.concat(
    there.flat().map((value) => bytesOf(kind, bits, kind === "STRING" ? places.get(value) : value)),
  );
  const widths = Buffer.from([bits / 8]);
  return { trait: name, type, vector_size: size, nullable, bases: ["0"], widths, data, present, strings };
}

function bytesOf(kind, bits, value) {
  const bytes = Buffer.alloc(8);
  if (kind === "FLOAT64") bytes.writeDoubleLE(value);
  else if (kind === "FLOAT32") bytes.writeFloatLE(value);
  else if (kind === "FLOAT16") bytes.writeUInt16LE(halfBits(value));
  else bytes.writeBigUInt64LE(BigInt.asUintN(64, BigInt(value)));
  return bytes.subarray(0, bits / 8);
}

// The bits of a float16, for numbers that are one.
function halfBits(value) {
  for (let word = 0; word < 1 << 16; word++)
    if (Object.is(toFloat(16, BigInt(word)), value)) return word;
  throw new Error(`${value} is no float16.`);
}

module.exports = { call, callStream, connect, decodeColumn, eventBatch, loaded, named, sequences };
