#include "answer.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <tuple>

#include "errors.h"
#include "fields.h"
#include "flat_map.h"

namespace thinrow {

namespace column = fields::column;
namespace response = fields::materialize_response;
namespace stream = fields::materialize_stream_response;

namespace {

// Bytes reserved for the varint of `server_us`, which is known last; enough for values below 2^35.
constexpr int64_t server_us_bytes = 5;

constexpr uint32_t unassigned_code = UINT32_MAX;

// The default of a list is the empty list, whatever its elements are.
bool has_default_text(const Trait &trait) {
  return trait.type == TraitType::string && !trait.length_max;
}

struct Number {
  int64_t value = 0;
  std::array<uint64_t, 1> hashed() const { return {static_cast<uint64_t>(value)}; }
  bool operator==(const Number &other) const { return value == other.value; }
};

} // namespace

RunLayout lay_out(const Plan &plan) {
  const std::vector<Example> &examples = plan.examples;
  RunLayout run;
  run.view_starts.assign(examples.size(), 0);
  std::vector<std::tuple<int64_t, int64_t, size_t>> order; // user, first event, example
  for (size_t i = 0; i < examples.size(); ++i)
    if (examples[i].count) order.emplace_back(examples[i].user, examples[i].first, i);
  std::sort(order.begin(), order.end());
  struct Segment {
    int64_t user, begin, end;
    size_t first_example; // the lowest number of an example in the segment
    int64_t start = 0;    // first event in the run
  };
  std::vector<Segment> segments;
  std::vector<size_t> segment_of(examples.size());
  for (const auto &[user, first, i] : order) {
    const int64_t end = first + examples[i].count;
    if (segments.empty() || segments.back().user != user || segments.back().end < first)
      segments.push_back({user, first, end, i});
    Segment &segment = segments.back();
    segment.end = std::max(segment.end, end);
    segment.first_example = std::min(segment.first_example, i);
    segment_of[i] = segments.size() - 1;
  }
  // Segments are ordered by their first example. If no examples overlap, the run is then equal to
  // the batch, and the client has nothing to gather.
  std::vector<size_t> ranks(segments.size());
  for (size_t segment = 0; segment < segments.size(); ++segment) ranks[segment] = segment;
  std::sort(ranks.begin(), ranks.end(), [&](size_t one, size_t other) {
    return segments[one].first_example < segments[other].first_example;
  });
  for (const size_t rank : ranks) {
    Segment &segment = segments[rank];
    segment.start = run.events;
    for (int64_t stripe = plan.stripe_at(segment.user, segment.begin), at = segment.begin;
         at < segment.end; ++stripe) {
      const Stripe &source = plan.stripes[stripe];
      const int64_t end = std::min(segment.end, source.end);
      run.blocks.push_back({stripe, at - source.ordinal, end - at});
      at = end;
    }
    run.events += segment.end - segment.begin;
  }
  for (const auto &[user, first, i] : order) {
    const Segment &segment = segments[segment_of[i]];
    run.view_starts[i] = segment.start + first - segment.begin;
  }
  return run;
}

AnswerColumn::AnswerColumn(const Plan &plan, const RunLayout &run, const Trait &trait)
    : trait_(trait) {
  std::vector<Column> columns; // one per stripe, even if several blocks read the stripe
  std::vector<size_t> column_of;
  std::vector<Slice> slices;
  int64_t bits = 0, last_stripe = -1;
  for (const RunLayout::Block &block : run.blocks) {
    if (block.stripe != last_stripe) {
      columns.emplace_back(plan.value(trait.slot, block.stripe), trait);
      last_stripe = block.stripe;
    }
    column_of.push_back(columns.size() - 1);
    slices.push_back(columns.back().slice(block.first, block.count));
    if (trait.nullable) columns.back().append_presence(block.first, block.count, present_, bits);
    if (trait.length_max) columns.back().append_lengths(block.first, block.count, lengths_);
  }
  if (std::any_of(columns.begin(), columns.end(), [](const Column &c) { return c.indexes(); })) {
    number_words(columns, slices, column_of);
  } else {
    for (const Slice &slice : slices) {
      bases_.push_back(slice.base);
      widths_.push_back(static_cast<uint8_t>(slice.width));
    }
    for (const int width : {1, 2, 4, 8})
      for (const Slice &slice : slices)
        if (slice.width == width) data_.push_back({slice.offsets, slice.words * width});
  }
  for (const Bytes &piece : data_) data_bytes_ += piece.size;
  bytes_ = count_bytes();
}

// Replaces the stripes' dictionaries by one that has only the entries that the answer uses.
void AnswerColumn::number_words(const std::vector<Column> &columns,
                                const std::vector<Slice> &slices,
                                const std::vector<size_t> &column_of) {
  FlatMap<Number, uint32_t> by_number;
  FlatMap<TextKey, uint32_t> by_text;
  const auto number_of = [&](int64_t value) {
    const auto [code, is_new] = by_number.add({value}, static_cast<uint32_t>(by_number.size()));
    if (is_new) numbers_.push_back(value);
    return code;
  };
  const auto numbered = [&](const Column &source, uint64_t entry) {
    if (trait_.type == TraitType::categorical) return number_of(source.number(entry));
    const Bytes value = source.text(entry);
    const std::string_view view(reinterpret_cast<const char *>(value.data), value.size);
    const auto [code, is_new] = by_text.add({view}, static_cast<uint32_t>(by_text.size()));
    if (is_new) texts_.push_back(value);
    return code;
  };
  int64_t words = 0;
  for (const Slice &slice : slices) words += slice.words;
  std::vector<uint32_t> codes;
  codes.reserve(words);
  std::vector<uint32_t> local; // the answer's code of each entry of the current stripe
  for (size_t block = 0; block < slices.size(); ++block) {
    const Column &source = columns[column_of[block]];
    if (!source.indexes()) {
      each_word(slices[block], [&](uint64_t value) { codes.push_back(number_of(value)); });
      continue;
    }
    if (!block || column_of[block] != column_of[block - 1])
      local.assign(source.entries(), unassigned_code);
    each_word(slices[block], [&](uint64_t entry) {
      if (entry >= local.size()) throw Corrupt("a stripe's word points past its dictionary");
      uint32_t &code = local[entry];
      if (code == unassigned_code) code = numbered(source, entry);
      codes.push_back(code);
    });
  }
  bases_.assign(slices.size(), 0);
  widths_.assign(slices.size(), static_cast<uint8_t>(narrow_codes(codes)));
}

int AnswerColumn::narrow_codes(const std::vector<uint32_t> &codes) {
  const size_t entries = std::max(numbers_.size(), texts_.size());
  const auto store = [&](auto narrow) {
    using Code = decltype(narrow);
    codes_.resize(codes.size() * sizeof(Code));
    auto *out = reinterpret_cast<Code *>(codes_.data());
    for (size_t i = 0; i < codes.size(); ++i) out[i] = static_cast<Code>(codes[i]);
    return static_cast<int>(sizeof(Code));
  };
  int width = 0; // with a single entry, every word equals the base
  if (entries > 1 << 16)
    width = store(uint32_t{});
  else if (entries > 1 << 8)
    width = store(uint16_t{});
  else if (entries > 1)
    width = store(uint8_t{});
  data_.push_back({codes_.data(), static_cast<int64_t>(codes_.size())});
  return width;
}

int64_t AnswerColumn::count_bytes() const {
  int64_t total = optional_bytes(column::trait, trait_.name.size()) +
                  number_bytes(column::type, static_cast<uint64_t>(trait_.type)) +
                  number_bytes(column::vector_size, trait_.length_max ? 0 : trait_.size) +
                  number_bytes(column::nullable, trait_.nullable) +
                  optional_bytes(column::bases, 8 * bases_.size()) +
                  optional_bytes(column::widths, widths_.size()) +
                  optional_bytes(column::data, data_bytes_) +
                  optional_bytes(column::present, present_.size()) +
                  optional_bytes(column::dictionary, 8 * numbers_.size()) +
                  number_bytes(column::list_length_max, trait_.length_max) +
                  optional_bytes(column::list_lengths, lengths_.size()) +
                  number_bytes(column::filled, trait_.filled) +
                  number_bytes(column::codes_end, trait_.codes_end);
  for (const Bytes &value : texts_) total += field_bytes(column::strings, value.size);
  if (!trait_.nullable && trait_.has_default)
    total += has_default_text(trait_)
                 ? field_bytes(column::default_string, trait_.default_text.size())
                 : tag_bytes(column::default_word) + 8;
  return total;
}

void AnswerColumn::write(Writer &out) const {
  out.bytes(column::trait, trait_.name.data(), trait_.name.size());
  out.number(column::type, static_cast<uint64_t>(trait_.type));
  out.number(column::vector_size, trait_.length_max ? 0 : trait_.size);
  out.number(column::nullable, trait_.nullable);
  out.bytes(column::bases, bases_.data(), 8 * bases_.size());
  out.bytes(column::widths, widths_.data(), widths_.size());
  if (data_bytes_) {
    out.open(column::data, data_bytes_);
    for (const Bytes &piece : data_) out.raw(piece.data, piece.size);
  }
  out.bytes(column::present, present_.data(), present_.size());
  out.bytes(column::dictionary, numbers_.data(), 8 * numbers_.size());
  for (const Bytes &value : texts_) {
    out.open(column::strings, value.size);
    out.raw(value.data, value.size);
  }
  if (!trait_.nullable && trait_.has_default) {
    if (has_default_text(trait_)) {
      out.open(column::default_string, trait_.default_text.size());
      out.raw(trait_.default_text.data(), trait_.default_text.size());
    } else {
      out.tag(column::default_word, Wire::fixed64);
      out.raw(&trait_.default_word, 8);
    }
  }
  out.number(column::list_length_max, trait_.length_max);
  out.bytes(column::list_lengths, lengths_.data(), lengths_.size());
  out.number(column::filled, trait_.filled);
  out.number(column::codes_end, trait_.codes_end);
}

Answer::Answer(const Plan &plan, const std::vector<Trait> &traits, int64_t generation,
               int64_t watermark_ts, uint64_t map_version, int64_t bytes_max)
    : generation_(generation),
      watermark_ts_(watermark_ts),
      sequence_length_(plan.sequence_length()),
      map_version_(map_version),
      truncation_(plan.is_head() ? Truncation::head : Truncation::newest) {
  const RunLayout run = lay_out(plan);
  std::vector<int64_t> statuses, lengths, block_lengths;
  for (const Example &example : plan.examples) {
    statuses.push_back(static_cast<int64_t>(example.status));
    lengths.push_back(example.count);
    events_ += example.count;
  }
  for (const RunLayout::Block &block : run.blocks) block_lengths.push_back(block.count);
  statuses_ = packed(statuses);
  view_starts_ = packed(run.view_starts);
  view_lengths_ = packed(lengths);
  block_lengths_ = packed(block_lengths);
  body_bytes_ = number_bytes(response::generation, generation_) +
                number_bytes(response::watermark_ts, watermark_ts_) +
                optional_bytes(response::statuses, statuses_.size()) +
                optional_bytes(response::view_starts, view_starts_.size()) +
                optional_bytes(response::view_lengths, view_lengths_.size()) +
                optional_bytes(response::block_lengths, block_lengths_.size()) +
                number_bytes(response::sequence_length, sequence_length_) +
                number_bytes(response::truncation, static_cast<uint64_t>(truncation_)) +
                number_bytes(response::map_version, map_version_) + tag_bytes(response::server_us) +
                server_us_bytes;
  columns_.reserve(traits.size());
  for (const Trait &trait : traits) {
    columns_.emplace_back(plan, run, trait);
    body_bytes_ += field_bytes(response::columns, columns_.back().bytes());
    if (body_bytes_ > bytes_max)
      throw TooLarge(
          "The answer would be larger than this server sends (response_bytes_max); request fewer "
          "examples at once, shorter sequences or fewer traits.");
  }
}

int64_t Answer::bytes(std::optional<uint64_t> cursor) const {
  if (!cursor) return body_bytes_;
  return number_bytes(stream::cursor, *cursor) + field_bytes(stream::response, body_bytes_);
}

void Answer::open(Writer &out, std::optional<uint64_t> cursor) const {
  if (!cursor) return;
  out.number(stream::cursor, *cursor);
  out.open(stream::response, body_bytes_);
}

void Answer::write_body(Writer &out) const {
  out.number(response::generation, generation_);
  out.number(response::watermark_ts, watermark_ts_);
  out.bytes(response::statuses, statuses_.data(), statuses_.size());
  out.bytes(response::view_starts, view_starts_.data(), view_starts_.size());
  out.bytes(response::view_lengths, view_lengths_.data(), view_lengths_.size());
  out.bytes(response::block_lengths, block_lengths_.data(), block_lengths_.size());
  for (const AnswerColumn &column : columns_) {
    out.open(response::columns, column.bytes());
    column.write(out);
  }
  out.number(response::sequence_length, sequence_length_);
  out.number(response::truncation, static_cast<uint64_t>(truncation_));
  out.number(response::map_version, map_version_);
}

void Answer::write_server_us(Writer &out, uint64_t elapsed_us) const {
  out.tag(response::server_us, Wire::varint);
  std::array<uint8_t, server_us_bytes> padded;
  for (size_t i = 0; i < padded.size(); ++i) {
    const uint64_t more = i + 1 < padded.size() ? 0x80 : 0;
    padded[i] = static_cast<uint8_t>((elapsed_us >> (7 * i) & 0x7f) | more);
  }
  out.raw(padded.data(), server_us_bytes);
}

} // namespace thinrow
