// What was added or asked for lately, within a bound.
#pragma once

#include "flat_map.h"

// Two maps, a young and an old one: what is asked for is (again) young; once the young cost half of
// what is allowed, the old are let go and the young are the old. An approximation of "least
// recently used" without lists.
template <typename Key, typename Value>
class Recent {
 public:
  explicit Recent(int64_t cost_max) : half_(cost_max / 2) {}

  static uint64_t hash_of(const Key &key) { return FlatMap<Key, Value>::hash_of(key); }

  // nullptr where the key is not there; else valid until the next call. `hash` is the key's.
  template <typename Cost>
  const Value *find(const Key &key, uint64_t hash, Cost &&cost) {
    if (const Value *known = young_.find(key, hash)) return known;
    const Value *known = old_.find(key, hash);
    return known ? &add(key, Value(*known), cost(*known)) : nullptr;
  }

  // Has the places that `find` will look at fetched into the processor's cache.
  void prefetch(uint64_t hash) const {
    young_.prefetch(hash);
    old_.prefetch(hash);
  }

  // As `find`, but the value is no younger for it.
  const Value *peek(const Key &key, uint64_t hash) {
    const Value *known = young_.find(key, hash);
    return known ? known : old_.find(key, hash);
  }

  const Value &add(const Key &key, Value value, int64_t cost) {
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
