// The loops over every event. They run at the speed of memory as any compiler makes them: neither
// wider vector units nor stores past the caches were faster.
#pragma once

#include <cstddef>
#include <cstdint>

// What a word is read as; written are the signed ones.
enum class Integer : int { i8, i16, i32, i64, u8, u16, u32, u64 };

// Blocks of narrow words. Word j of a block is base + offset j, modulo 2^64.
struct Blocks {
  const uint8_t *data;
  const uint8_t *widths;     // bytes per offset: 0, 1, 2, 4 or 8
  const int64_t *bases;
  const int64_t *first_word; // of each block, and the number of all words at the end
  const int64_t *first_byte; // of each block's offsets in data
  size_t count;
};

// Slices [start, start + length) of runs, and where in the output each goes.
struct Views {
  const int64_t *runs; // number of the run that each is a slice of
  const int64_t *starts;
  const int64_t *lengths;
  const int64_t *places;
  size_t count;
};

void widen_views(const Blocks *runs, Integer from, Integer to, const Views &, uint8_t *out);
// The values that words index.
struct Entries {
  const int64_t *values;
  uint64_t count;
};

// As widen_views, each word being replaced by what it indexes; false where it indexes nothing.
bool look_up_views(const Blocks *runs, const Entries *entries, Integer to, const Views &,
                   uint8_t *out);
void copy_views(const uint8_t *const *runs, size_t item_bytes, const Views &, uint8_t *out);
