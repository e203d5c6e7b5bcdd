// From selected histories to the answer's bytes: each user's events once, every example a view.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "plan.h"
#include "protobuf.h"

// The events of an answer, cut into blocks of consecutive events of one stripe.
struct Run {
  struct Block {
    int64_t stripe, first, count; // the events [first, first + count) of a stripe
  };
  std::vector<int64_t> view_starts; // of each example's first event in the run
  std::vector<Block> blocks;
  int64_t events = 0;
};

// Joins what examples share: overlapping slices of a history become one segment.
Run lay_out(const Plan &plan);

// One column of an answer, its parts still where they lie.
class AnswerColumn {
 public:
  // Throws Corrupt where a stripe contradicts itself.
  AnswerColumn(const Plan &plan, const Run &run, const Trait &trait);

  int64_t bytes() const { return bytes_; }
  void write(Writer &out) const;

 private:
  void number_words(const std::vector<Column> &columns, const std::vector<Slice> &slices,
                    const std::vector<size_t> &column_of);
  int narrow_codes(const std::vector<uint32_t> &codes); // into codes_; bytes of each
  int64_t count_bytes() const;

  const Trait &trait_;
  std::vector<int64_t> bases_;
  std::vector<uint8_t> widths_;
  std::vector<Bytes> data_; // in the order of the wire
  int64_t data_bytes_ = 0;
  std::vector<uint8_t> codes_; // what data_ points at, of a dictionary trait
  std::vector<uint8_t> present_;
  std::vector<int64_t> numbers_;
  std::vector<Bytes> texts_;
  int64_t bytes_ = 0;
};

// A MaterializeResponse, sized and ready to be written.
class Answer {
 public:
  // Throws TooLarge beyond `bytes_max`, Corrupt where a stripe contradicts itself.
  Answer(const Plan &plan, const std::vector<Trait> &traits, int64_t generation,
         int64_t watermark_ts, int64_t bytes_max);

  // With a cursor it is wrapped into a MaterializeStreamResponse.
  int64_t bytes(std::optional<uint64_t> cursor) const;
  // `server_us` tells, once all else is written, how long the work took.
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
  bool head_;
  std::vector<uint8_t> statuses_, view_starts_, view_lengths_, block_lengths_; // packed
  std::vector<AnswerColumn> columns_;
  int64_t body_bytes_ = 0, events_ = 0;
};
