// Encodes resolved histories as a MaterializeResponse. The events of each user are written once;
// every example is a view of them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fields.h"
#include "plan.h"
#include "protobuf.h"

namespace thinrow {

// The events of an answer, divided into blocks of consecutive events of one stripe.
struct RunLayout {
  struct Block {
    int64_t stripe, first, count; // the events [first, first + count) of a stripe
  };
  std::vector<int64_t> view_starts; // position of each example's first event in the run
  std::vector<Block> blocks;
  int64_t events = 0;
};

// Lays out the run. Overlapping slices of one history become one segment of it.
RunLayout lay_out(const Plan &plan);

// One column of an answer. It refers to the bytes of the stripes and copies them only in `write`.
class AnswerColumn {
 public:
  // Throws Corrupt if a stripe contradicts itself.
  AnswerColumn(const Plan &plan, const RunLayout &run, const Trait &trait);

  int64_t bytes() const { return bytes_; }
  void write(Writer &out) const;

 private:
  void number_words(const std::vector<Column> &columns, const std::vector<Slice> &slices,
                    const std::vector<size_t> &column_of);
  // Stores the codes in `codes_`; returns the bytes of each.
  int narrow_codes(const std::vector<uint32_t> &codes);
  int64_t count_bytes() const;

  const Trait &trait_;
  std::vector<int64_t> bases_;
  std::vector<uint8_t> widths_;
  std::vector<Bytes> data_; // in wire order
  int64_t data_bytes_ = 0;
  std::vector<uint8_t> codes_; // memory of `data_` if the words are codes of a dictionary
  std::vector<uint8_t> present_, lengths_;
  std::vector<int64_t> numbers_;
  std::vector<Bytes> texts_;
  int64_t bytes_ = 0;
};

// A MaterializeResponse whose size is known and which can be written.
class Answer {
 public:
  // `map_version` is 0 outside a cluster. Throws TooLarge beyond `bytes_max`, Corrupt if a stripe
  // contradicts itself.
  Answer(const Plan &plan, const std::vector<Trait> &traits, int64_t generation,
         int64_t watermark_ts, uint64_t map_version, int64_t bytes_max);

  // With a cursor, the message is wrapped in a MaterializeStreamResponse.
  int64_t bytes(std::optional<uint64_t> cursor) const;
  // `server_us` returns the elapsed time; it is called after everything else is written.
  template <typename Clock>
  void write(Writer &out, std::optional<uint64_t> cursor, Clock &&server_us) const {
    open(out, cursor);
    write_body(out);
    write_server_us(out, server_us());
  }
  int64_t events() const { return events_; }

 private:
  void open(Writer &out, std::optional<uint64_t> cursor) const;
  void write_body(Writer &out) const;
  void write_server_us(Writer &out, uint64_t elapsed_us) const;

  int64_t generation_, watermark_ts_, sequence_length_;
  uint64_t map_version_;
  Truncation truncation_;
  std::vector<uint8_t> statuses_, view_starts_, view_lengths_, block_lengths_; // packed
  std::vector<AnswerColumn> columns_;
  int64_t body_bytes_ = 0, events_ = 0;
};

} // namespace thinrow
