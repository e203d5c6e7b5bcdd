// A hash map without removal: open addressing, linear probing.
//
// A key's `hashed()` returns the words or the text that identify it; the map hashes these with the
// process's secret.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "keyed_hash.h"

namespace thinrow {

template <typename Key, typename Value>
class FlatMap {
 public:
  // Returns the key's value, and true if the key is new; a new key gets the value `fresh`.
  std::pair<Value &, bool> add(const Key &key, const Value &fresh) {
    if (4 * (size_ + 1) > 3 * slots_.size()) grow();
    Slot &slot = slots_[place(key, hash_of(key))];
    const bool is_new = !slot.used;
    if (is_new) {
      slot = {key, fresh, true};
      ++size_;
    }
    return {slot.value, is_new};
  }

  static uint64_t hash_of(const Key &key) { return keyed_hash(key.hashed()); }

  // Returns nullptr if the key is absent. `hash` must be `hash_of(key)`.
  Value *find(const Key &key, uint64_t hash) {
    if (slots_.empty()) return nullptr;
    Slot &slot = slots_[place(key, hash)];
    return slot.used ? &slot.value : nullptr;
  }

  // Prefetches the first slot that `find` reads for this hash.
  void prefetch(uint64_t hash) const {
    if (!slots_.empty()) __builtin_prefetch(&slots_[hash & (slots_.size() - 1)]);
  }

  size_t size() const { return size_; }

  void clear() {
    slots_.clear();
    size_ = 0;
  }

 private:
  struct Slot {
    Key key;
    Value value;
    bool used = false;
  };

  size_t place(const Key &key, uint64_t hash) const {
    const size_t mask = slots_.size() - 1;
    size_t at = hash & mask;
    while (slots_[at].used && !(slots_[at].key == key)) at = (at + 1) & mask;
    return at;
  }

  void grow() {
    std::vector<Slot> old(slots_.empty() ? 16 : 2 * slots_.size());
    old.swap(slots_);
    for (Slot &slot : old)
      if (slot.used) slots_[place(slot.key, hash_of(slot.key))] = std::move(slot);
  }

  std::vector<Slot> slots_;
  size_t size_ = 0;
};

// A text as a key. It refers to bytes that must outlive the map.
struct TextKey {
  std::string_view value;
  std::string_view hashed() const { return value; }
  bool operator==(const TextKey &other) const { return value == other.value; }
};

} // namespace thinrow
