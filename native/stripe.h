// Reads stripes of the store (docs/reference/formats.md) without trusting them.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "fields.h"

namespace thinrow {

struct Bytes {
  const uint8_t *data = nullptr;
  int64_t size = 0;
};

// Reads a little-endian word of any alignment.
template <typename T>
T load(const uint8_t *at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

// Limit on the words per event, so that its product with a number of events cannot overflow.
constexpr int64_t trait_size_max = 1 << 16;

// Limit on the elements of a list, so that two bytes hold its length.
constexpr int64_t list_length_max = (1 << 16) - 1;

// Returns the bytes of each length of lists, in stripes and on the wire.
constexpr int64_t length_bytes(int64_t length_max) { return length_max < 1 << 8 ? 1 : 2; }

// Limit on the end of the codes of a vocabulary, which are int32.
constexpr int64_t codes_end_max = int64_t{1} << 31;

struct Trait {
  std::string name;
  int number;
  TraitType type;
  int64_t size; // words per event, or per element of a list
  bool nullable;
  bool has_default;
  int64_t default_word;
  std::string default_text;
  int group;
  int64_t length_max;    // elements of a list; 0 if the trait is no list
  bool filled = false;   // some values came after the events were served
  int64_t codes_end = 0; // end of the codes of its vocabulary; 0 if it has none
  int slot = 0;          // place of the group among those that a plan reads
};

// One trait of consecutive events of a stripe, encoded, and checked to lie within the stripe.
struct Slice {
  const uint8_t *offsets;
  int64_t base;
  int64_t words; // number of words; events without the trait have none
  int width;     // bytes per offset: 0, 1, 2, 4 or 8
};

enum class Presence : uint8_t { all, some, none };

// One trait of one stripe.
class Column {
 public:
  // Throws Corrupt if the stripe contradicts itself.
  Column(Bytes stripe, const Trait &trait);

  // Throws Corrupt if the stripe is too short for the slice.
  Slice slice(int64_t first, int64_t count) const;

  // Appends a bit for each of the events, set if the event has the trait.
  void append_presence(int64_t first, int64_t count, std::vector<uint8_t> &bits,
                       int64_t &bit_count) const;
  bool has(int64_t event) const;

  // Appends the lengths of lists, `length_bytes` each.
  void append_lengths(int64_t first, int64_t count, std::vector<uint8_t> &lengths) const;
  int64_t length(int64_t event) const; // of a list; 0 if the event lacks the trait

  // Returns true if words index the stripe's own dictionary. Words of strings always do; those of
  // categories do if that takes fewer bytes than the categories themselves.
  bool indexes() const { return trait_->type == TraitType::string || dictionary_count_; }
  int64_t entries() const { return stored_ ? dictionary_count_ : 1; }
  int64_t number(int64_t entry) const; // an entry of a categorical trait's dictionary
  Bytes text(int64_t entry) const;     // an entry of a string trait's dictionary

 private:
  int64_t words_between(int64_t first, int64_t last) const;

  Bytes stripe_;
  const Trait *trait_;
  bool stored_ = false; // false if the stripe was written before the trait was added
  Presence presence_ = Presence::all;
  int width_ = 0;
  int64_t base_ = 0, data_ = 0, bitmap_ = 0, dictionary_ = 0, dictionary_count_ = 0;
  int64_t lengths_ = 0; // position of the lengths of lists; 0 if all are empty or absent
};

// Limit on the events of one stripe, far above what compaction writes (store/stripe.py:
// EVENTS_MAX). A column of equal values takes no bytes per event, so that nothing else bounds its
// length.
constexpr int64_t stripe_events_max = 1 << 16;

// Throws Corrupt if the stripe has no header, or its header names more events than the limit.
int64_t stripe_events(Bytes stripe);

// Memory of one dictionary entry while an answer is made: its slot in a map that just grew, and a
// reference to its bytes.
constexpr int64_t dictionary_entry_bytes = 128;

// Memory of one element of a list while an answer is made: its code, twice.
constexpr int64_t list_element_bytes = 8;

// Returns the memory that a stripe takes: its bytes, and those that the entries of its dictionaries
// and the elements of its lists add.
int64_t stripe_memory_bytes(Bytes stripe);

// Counts the set bits of [first, last); the lowest bit of a byte is the first.
int64_t ones_within(const uint8_t *bits, int64_t first, int64_t last);

// Writes the words of a slice to `out`.
void decode(const Slice &slice, uint64_t *out);

// Calls `use(word)` for each word of a slice, in order.
template <typename Use>
void each_word(const Slice &slice, Use &&use) {
  const auto all = [&](auto narrow) {
    using Offset = decltype(narrow);
    for (int64_t i = 0; i < slice.words; ++i)
      use(static_cast<uint64_t>(slice.base) +
          load<Offset>(slice.offsets + i * static_cast<int64_t>(sizeof(Offset))));
  };
  switch (slice.width) {
    case 0:
      for (int64_t i = 0; i < slice.words; ++i) use(static_cast<uint64_t>(slice.base));
      break;
    case 1: all(uint8_t{}); break;
    case 2: all(uint16_t{}); break;
    case 4: all(uint32_t{}); break;
    default: all(uint64_t{});
  }
}

} // namespace thinrow
