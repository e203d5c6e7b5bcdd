// A cache of the entries that were used recently, within a bound on their cost.
#pragma once

#include "flat_map.h"

namespace thinrow {

// Two maps, a young and an old one, approximate "least recently used" without linked lists: an
// entry that is used becomes young. When the young entries cost half of the bound, the old map is
// discarded and the young map becomes the old one.
template <typename Key, typename Value>
class Recent {
 public:
  explicit Recent(int64_t cost_max) : half_(cost_max / 2) {}

  static uint64_t hash_of(const Key &key) { return FlatMap<Key, Value>::hash_of(key); }

  // Returns nullptr if the key is absent; otherwise the pointer is valid until the next call.
  // `hash` must be `hash_of(key)`.
  template <typename Cost>
  const Value *find(const Key &key, uint64_t hash, Cost &&cost) {
    if (const Value *known = young_.find(key, hash)) return known;
    const Value *known = old_.find(key, hash);
    return known ? &add(key, Value(*known), cost(*known)) : nullptr;
  }

  // Prefetches the slots that `find` reads for this hash.
  void prefetch(uint64_t hash) const {
    young_.prefetch(hash);
    old_.prefetch(hash);
  }

  // Returns the same as `find` without making the entry young.
  const Value *peek(const Key &key, uint64_t hash) {
    const Value *known = young_.find(key, hash);
    return known ? known : old_.find(key, hash);
  }

  const Value &add(const Key &key, const Value &value, int64_t cost) {
    if (young_cost_ + cost > half_) {
      old_ = std::move(young_);
      young_ = {};
      young_cost_ = 0;
    }
    const auto [kept, is_new] = young_.add(key, value);
    if (is_new) young_cost_ += cost;
    return kept;
  }

 private:
  int64_t half_, young_cost_ = 0;
  FlatMap<Key, Value> young_, old_;
};

} // namespace thinrow
