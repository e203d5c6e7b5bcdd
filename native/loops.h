// The loop over every event of a batch: narrow words become values, each view at its place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

// What a word is read as; written are the signed ones.
enum class Integer : int { i8, i16, i32, i64, u8, u16, u32, u64 };

// Blocks of narrow words. Word j of a block is base + offset j, modulo 2^64.
struct Blocks {
  const uint8_t *data;
  const uint8_t *widths; // bytes per offset: 0, 1, 2, 4 or 8
  const int64_t *bases;
  const int64_t *first_word; // of each block, and the number of all words at the end
  const int64_t *first_byte; // of each block's offsets in data
  size_t count;
  const int64_t *entries; // what the words index; nullptr: they are the values themselves
  uint64_t entry_count;
};

// Slices [start, start + length) of runs, and where in the output each goes; all in events.
struct Views {
  const int64_t *runs; // number of the run that each is a slice of
  const int64_t *starts;
  const int64_t *lengths;
  const int64_t *places;
  size_t count;
};

// Views of one trait.
struct Job {
  std::vector<Blocks> runs;
  Views views;
  int64_t size; // words per event
  Integer from, to;
  uint8_t *out;
};

// Does all jobs, with several threads where that pays. Returns the number of the first job with a
// word that indexes nothing, or of jobs.
size_t write(const std::vector<Job> &jobs, int threads);
