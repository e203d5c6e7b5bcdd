#include "stripe.h"

#include <algorithm>

#include "errors.h"

namespace thinrow {

namespace {

constexpr int64_t header_bytes = 8, record_bytes = 32;

void check_within(Bytes stripe, int64_t begin, int64_t length) {
  if (begin < 0 || length < 0 || begin > stripe.size - length)
    throw Corrupt("a stripe is shorter than its header says");
}

int64_t ones(const uint8_t *bits, int64_t count) {
  int64_t total = 0, at = 0;
  for (; at + 64 <= count; at += 64) total += __builtin_popcountll(load<uint64_t>(bits + at / 8));
  for (; at + 8 <= count; at += 8) total += __builtin_popcount(bits[at / 8]);
  if (at < count) total += __builtin_popcount(bits[at / 8] & ((1 << (count - at)) - 1));
  return total;
}

// A column's kind: its presence and, from this bit on, the bytes of each length of lists.
constexpr int length_shift = 2, presence_mask = (1 << length_shift) - 1;

bool has_bitmap(const uint8_t *record) {
  return static_cast<Presence>(record[3] & presence_mask) == Presence::some;
}

// Returns the position of the lengths of lists, which follow the bitmap.
int64_t lengths_at(Bytes stripe, const uint8_t *record) {
  const int64_t events = load<uint32_t>(stripe.data);
  return load<uint32_t>(record + 8) + (has_bitmap(record) ? (events + 7) / 8 : 0);
}

// Returns the sum of `count` lengths. Throws Corrupt if one is above the limit.
int64_t sum_of_lengths(Bytes stripe, int64_t at, int64_t width, int64_t count, int64_t length_max) {
  if (width > 2) throw Corrupt("a stripe has a column of no known kind");
  check_within(stripe, at, count * width);
  const auto sum = [&](auto narrow) {
    using Length = decltype(narrow);
    int64_t total = 0;
    Length longest = 0;
    for (const uint8_t *next = stripe.data + at, *end = next + count * width; next != end;
         next += sizeof(Length)) {
      const Length length = load<Length>(next);
      total += length;
      longest = std::max(longest, length);
    }
    if (longest > length_max) throw Corrupt("a stripe has a list that is longer than its limit");
    return total;
  };
  return width == 1 ? sum(uint8_t{}) : sum(uint16_t{});
}

} // namespace

int64_t ones_within(const uint8_t *bits, int64_t first, int64_t last) {
  int64_t total = 0;
  for (; first < last && first % 8; ++first) total += bits[first / 8] >> first % 8 & 1;
  return first < last ? total + ones(bits + first / 8, last - first) : total;
}

int64_t stripe_events(Bytes stripe) {
  if (stripe.size < header_bytes) throw Corrupt("a stripe has no header");
  if (stripe.size < header_bytes + record_bytes * load<uint16_t>(stripe.data + 4))
    throw Corrupt("a stripe is shorter than its header says");
  const int64_t events = load<uint32_t>(stripe.data);
  if (events > stripe_events_max)
    throw Corrupt("a stripe's header says more events than any stripe has");
  return events;
}

int64_t stripe_memory_bytes(Bytes stripe) {
  stripe_events(stripe);
  int64_t entries = 0;
  int64_t elements = 0;
  const uint8_t *record = stripe.data + header_bytes;
  for (int left = load<uint16_t>(stripe.data + 4); left; --left, record += record_bytes) {
    entries += load<uint32_t>(record + 16);
    if (const int width = record[3] >> length_shift)
      elements += sum_of_lengths(stripe, lengths_at(stripe, record), width,
                                 load<uint32_t>(stripe.data), list_length_max);
  }
  return stripe.size + dictionary_entry_bytes * entries + list_element_bytes * elements;
}

void decode(const Slice &slice, uint64_t *out) {
  each_word(slice, [&](uint64_t word) { *out++ = word; });
}

Column::Column(Bytes stripe, const Trait &trait) : stripe_(stripe), trait_(&trait) {
  const int64_t events = stripe_events(stripe);
  const int columns = load<uint16_t>(stripe.data + 4);
  const uint8_t *record = stripe.data + header_bytes;
  for (int column = 0; column < columns; ++column, record += record_bytes) {
    if (load<uint16_t>(record) != trait.number) continue;
    stored_ = true;
    width_ = record[2];
    const int presence = record[3] & presence_mask, length_width = record[3] >> length_shift;
    if (width_ > 8 || (width_ & (width_ - 1)) || presence > 2)
      throw Corrupt("a stripe has a column of no known kind");
    presence_ = static_cast<Presence>(presence);
    if (length_width != (trait.length_max ? length_bytes(trait.length_max) : 0))
      throw Corrupt("a stripe has lists of another kind than the schema's");
    // Callers read one value per event of a column that is not nullable.
    if (!trait.nullable && presence_ != Presence::all)
      throw Corrupt("a stripe lacks values of a trait that every event has");
    data_ = load<uint32_t>(record + 4);
    bitmap_ = load<uint32_t>(record + 8);
    dictionary_ = load<uint32_t>(record + 12);
    dictionary_count_ = load<uint32_t>(record + 16);
    base_ = load<int64_t>(record + 24);
    if (presence_ == Presence::some) check_within(stripe, bitmap_, (events + 7) / 8);
    if (trait.length_max) {
      lengths_ = lengths_at(stripe, record);
      check_within(stripe, lengths_, events * length_width);
    }
    if (trait.type == TraitType::string || trait.type == TraitType::categorical)
      check_within(stripe, dictionary_,
                   dictionary_count_ * (trait.type == TraitType::string ? 4 : 8));
    else
      dictionary_count_ = 0;
    return;
  }
  // The stripe lacks the trait: every event has its default, or null.
  base_ = trait.type == TraitType::string ? 0 : trait.default_word;
  presence_ = trait.nullable ? Presence::none : Presence::all;
}

int64_t Column::words_between(int64_t first, int64_t last) const {
  if (trait_->length_max) {
    const int64_t width = length_bytes(trait_->length_max);
    return lengths_ ? sum_of_lengths(stripe_, lengths_ + first * width, width, last - first,
                                     trait_->length_max)
                    : 0;
  }
  switch (presence_) {
    case Presence::all: return (last - first) * trait_->size;
    case Presence::none: return 0;
    default: return ones_within(stripe_.data + bitmap_, first, last) * trait_->size;
  }
}

Slice Column::slice(int64_t first, int64_t count) const {
  const int64_t before = words_between(0, first), words = words_between(first, first + count);
  if (width_) check_within(stripe_, data_ + before * width_, words * width_);
  return {width_ ? stripe_.data + data_ + before * width_ : nullptr, base_, words, width_};
}

bool Column::has(int64_t event) const {
  if (presence_ != Presence::some) return presence_ == Presence::all;
  return stripe_.data[bitmap_ + event / 8] >> (event % 8) & 1;
}

void Column::append_presence(int64_t first, int64_t count, std::vector<uint8_t> &bits,
                             int64_t &bit_count) const {
  bits.resize((bit_count + count + 7) / 8);
  if (presence_ == Presence::none) {
    bit_count += count;
    return;
  }
  for (int64_t event = first; event < first + count; ++event, ++bit_count)
    if (has(event)) bits[bit_count / 8] |= static_cast<uint8_t>(1 << (bit_count % 8));
}

void Column::append_lengths(int64_t first, int64_t count, std::vector<uint8_t> &lengths) const {
  const int64_t width = length_bytes(trait_->length_max);
  const size_t before = lengths.size();
  lengths.resize(before + count * width);
  if (lengths_)
    std::memcpy(lengths.data() + before, stripe_.data + lengths_ + first * width, count * width);
}

int64_t Column::length(int64_t event) const {
  if (!lengths_) return 0;
  const uint8_t *at = stripe_.data + lengths_;
  return length_bytes(trait_->length_max) == 1 ? at[event] : load<uint16_t>(at + 2 * event);
}

int64_t Column::number(int64_t entry) const {
  return load<int64_t>(stripe_.data + dictionary_ + 8 * entry);
}

Bytes Column::text(int64_t entry) const {
  if (!stored_)
    return {reinterpret_cast<const uint8_t *>(trait_->default_text.data()),
            static_cast<int64_t>(trait_->default_text.size())};
  const uint8_t *ends = stripe_.data + dictionary_;
  const int64_t begin = entry ? load<uint32_t>(ends + 4 * (entry - 1)) : 0;
  const int64_t end = load<uint32_t>(ends + 4 * entry);
  const int64_t body = dictionary_ + 4 * dictionary_count_;
  check_within(stripe_, body + begin, end - begin);
  return {stripe_.data + body + begin, end - begin};
}

} // namespace thinrow
