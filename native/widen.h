// The loop over every event of a batch: widens narrow words and writes each view to its place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace thinrow {

// Integer types that words are read as. Words are written as the signed ones.
enum class Integer : int { i8, i16, i32, i64, u8, u16, u32, u64 };

// Blocks of narrow words. Word j of a block is base + offset j, modulo 2^64.
struct Blocks {
  const uint8_t *data;
  const uint8_t *widths; // bytes per offset: 0, 1, 2, 4 or 8
  const int64_t *bases;
  const int64_t *first_word; // number of each block's first word; last, that of all words
  const int64_t *first_byte; // position of each block's offsets in `data`
  size_t count;
  const int64_t *entries; // dictionary that the words index; nullptr if words are values
  uint64_t entry_count;
};

// Slices [start, start + length) of runs, and the place of each in the output; all in events.
struct Views {
  const int64_t *runs; // number of the run that each view is a slice of
  const int64_t *starts;
  const int64_t *lengths;
  const int64_t *places;
  size_t count;
};

// The views of one trait of a batch.
struct Job {
  std::vector<Blocks> runs;
  Views views;
  int64_t size; // words per event
  Integer from, to;
  uint8_t *out;
};

// Does all jobs, on several threads if there is enough work. Returns the number of the first job
// with a word that exceeds its dictionary, or the number of jobs if there is none.
size_t write(const std::vector<Job> &jobs, int threads);

} // namespace thinrow
