#include "digest.h"

#include <algorithm>

#include "errors.h"

namespace thinrow {

namespace {

// Bytes 8 to 24 of XXH3's secret.
constexpr uint64_t bitflip = 0x1CAD21F72C81017CULL ^ 0xDB979083E96DD4DEULL;
constexpr uint64_t prime_mx2 = 0x9FB21C651E98DF25ULL;
constexpr uint64_t seed = 0x7468696E726F7731ULL;
constexpr uint64_t step = 0x9E3779B97F4A7C15ULL;

uint64_t rotated_left(uint64_t value, int bits) { return value << bits | value >> (64 - bits); }

// XXH3 (64 bits, seed 0) of a value's eight little-endian bytes (the XXH3 specification, inputs of
// 4 to 8 bytes).
uint64_t xxh3(uint64_t value) {
  uint64_t keyed = rotated_left(value, 32) ^ bitflip;
  keyed ^= rotated_left(keyed, 49) ^ rotated_left(keyed, 24);
  keyed *= prime_mx2;
  keyed ^= (keyed >> 35) + 8;
  keyed *= prime_mx2;
  return keyed ^ (keyed >> 28);
}

// Multiplies and folds, so that each word changes every bit of the state before it.
void fold(uint64_t &state, uint64_t word) {
  state = (state ^ word) * step;
  state ^= state >> 32;
}

void fold(std::vector<uint64_t> &states, const std::vector<uint64_t> &field) {
  for (size_t event = 0; event < states.size(); ++event) fold(states[event], field[event]);
}

// Replaces indexes into the stripe's dictionary by words that do not depend on the dictionary.
std::vector<uint64_t> canonical(const Column &column, const Trait &trait, const Slice &slice,
                                const std::function<uint64_t(Bytes)> &text_hash) {
  std::vector<uint64_t> words(slice.words);
  decode(slice, words.data());
  if (!column.indexes()) return words;
  std::vector<uint64_t> meanings(column.entries());
  for (size_t entry = 0; entry < meanings.size(); ++entry)
    meanings[entry] = trait.type == TraitType::string ? text_hash(column.text(entry))
                                                      : static_cast<uint64_t>(column.number(entry));
  for (uint64_t &word : words) {
    if (word >= meanings.size()) throw Corrupt("a stripe's word points past its dictionary");
    word = meanings[word];
  }
  return words;
}

// Replaces the words of lists by one word of each event, which depends on the length and on every
// element.
std::vector<uint64_t> list_words(const Column &column, const std::vector<uint64_t> &words,
                                 int64_t count) {
  std::vector<uint64_t> made(count);
  const uint64_t *word = words.data();
  for (int64_t event = 0; event < count; ++event) {
    const int64_t length = column.length(event);
    made[event] = static_cast<uint64_t>(length);
    for (const uint64_t *end = word + length; word != end; ++word) fold(made[event], *word);
  }
  return made;
}

} // namespace

std::vector<uint64_t> digest_sums(const std::vector<Trait> &traits, const std::vector<Bytes> &parts,
                                  int64_t ordinal, int64_t count, uint64_t before,
                                  const std::function<uint64_t(Bytes)> &text_hash) {
  if (parts.size() != traits.size())
    throw std::invalid_argument("parts and traits differ in number");
  std::vector<uint64_t> states(count), field(count);
  for (int64_t event = 0; event < count; ++event)
    states[event] = static_cast<uint64_t>(ordinal + event) * step + seed;
  for (size_t number = 0; number < traits.size(); ++number) {
    const Trait &trait = traits[number];
    if (count > stripe_events(parts[number]))
      throw Corrupt("a stripe has fewer events than its user");
    const Column column(parts[number], trait);
    std::vector<uint64_t> words = canonical(column, trait, column.slice(0, count), text_hash);
    if (trait.length_max) {
      if (trait.nullable) {
        for (int64_t event = 0; event < count; ++event) field[event] = column.has(event);
        fold(states, field);
      }
      fold(states, list_words(column, words, count));
      continue;
    }
    if (trait.nullable) {
      std::vector<uint64_t> spread(count * trait.size, 0);
      size_t word = 0;
      for (int64_t event = 0; event < count; ++event) {
        field[event] = column.has(event);
        if (field[event])
          for (int64_t element = 0; element < trait.size; ++element)
            spread[event * trait.size + element] = words[word++];
      }
      fold(states, field);
      words.swap(spread);
    }
    if (trait.size == 1) {
      fold(states, words);
      continue;
    }
    for (int64_t element = 0; element < trait.size; ++element) {
      for (int64_t event = 0; event < count; ++event)
        field[event] = words[event * trait.size + element];
      fold(states, field);
    }
  }
  uint64_t sum = before;
  for (uint64_t &state : states) state = sum += xxh3(state);
  return states;
}

uint64_t close_digest(uint64_t sum, int64_t event_count) {
  return std::max<uint64_t>(1, xxh3(sum ^ xxh3(static_cast<uint64_t>(event_count) ^ seed)));
}

std::optional<uint64_t> DigestMemory::find(int64_t user_id, int64_t ordinal) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const Place place{user_id, ordinal};
  const uint64_t *sum = sums_.find(place, sums_.hash_of(place), [](uint64_t) { return 1; });
  return sum ? std::optional(*sum) : std::nullopt;
}

void DigestMemory::add(int64_t user_id, int64_t ordinal, uint64_t sum) {
  const std::lock_guard<std::mutex> lock(mutex_);
  sums_.add({user_id, ordinal}, sum, 1);
}

} // namespace thinrow
