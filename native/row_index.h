// Rows of a table by their key: words of a fixed number each.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "keyed_hash.h"

namespace thinrow {

// Open addressing with linear probing; a slot has a part of the hash beside the row's number, so
// that few keys of other rows are read. `words` must outlive the index.
class RowIndex {
 public:
  // `words` holds `rows` keys of `size` words, one after the other.
  RowIndex(const uint64_t *words, int64_t rows, int64_t size)
      : words_(words), size_(size), firsts_(rows) {
    if (rows >= rows_max) throw std::invalid_argument("a table has too many rows");
    size_t slots = 16;
    while (slots < 2 * static_cast<size_t>(rows)) slots *= 2;
    slots_.resize(slots);
    each(words, rows, [&](int64_t row, uint64_t hash) {
      Slot &slot = slot_of(words + row * size_, hash);
      if (!slot.row) slot = {tag_of(hash), static_cast<uint32_t>(row + 1)};
      firsts_[row] = slot.row - 1;
    });
  }

  // The first row with the key of each row.
  const std::vector<int64_t> &firsts() const { return firsts_; }

  // Writes the first row with each of `count` keys; -1 for none.
  void find(const uint64_t *words, int64_t count, int64_t *rows) {
    each(words, count, [&](int64_t place, uint64_t hash) {
      rows[place] = static_cast<int64_t>(slot_of(words + place * size_, hash).row) - 1;
    });
  }

 private:
  struct Slot {
    uint32_t tag = 0, row = 0; // the row's number plus 1; 0 for an empty slot
  };

  static constexpr int64_t rows_max = (1LL << 32) - 1, ahead = 16, near = 8;

  static uint32_t tag_of(uint64_t hash) { return static_cast<uint32_t>(hash >> 32); }

  uint64_t hash_of(const uint64_t *key) const {
    KeyedHash hash;
    for (int64_t i = 0; i < size_; ++i) hash.add(key[i]);
    return hash.finish();
  }

  // Calls `visit` with each key's place and hash; the slots of later keys, and nearer to their turn
  // the rows that these slots name, are fetched meanwhile.
  template <typename Visit>
  void each(const uint64_t *words, int64_t count, const Visit &visit) {
    std::array<uint64_t, ahead> hashes;
    const auto prepare = [&](int64_t place) {
      const uint64_t hash = hash_of(words + place * size_);
      __builtin_prefetch(&slots_[hash & (slots_.size() - 1)]);
      hashes[place % ahead] = hash;
    };
    for (int64_t place = 0; place < std::min(ahead, count); ++place) prepare(place);
    for (int64_t place = 0; place < count; ++place) {
      const uint64_t hash = hashes[place % ahead];
      if (place + near < count) {
        const Slot &slot = slots_[hashes[(place + near) % ahead] & (slots_.size() - 1)];
        if (slot.row) __builtin_prefetch(words_ + (static_cast<int64_t>(slot.row) - 1) * size_);
      }
      visit(place, hash);
      if (place + ahead < count) prepare(place + ahead);
    }
  }

  Slot &slot_of(const uint64_t *key, uint64_t hash) {
    const size_t mask = slots_.size() - 1;
    for (size_t at = hash & mask;; at = (at + 1) & mask) {
      Slot &slot = slots_[at];
      if (!slot.row) return slot;
      const uint64_t *known = words_ + (static_cast<int64_t>(slot.row) - 1) * size_;
      if (slot.tag == tag_of(hash) && std::equal(key, key + size_, known)) return slot;
    }
  }

  const uint64_t *words_;
  int64_t size_;
  std::vector<int64_t> firsts_;
  std::vector<Slot> slots_;
};

} // namespace thinrow
