// Values of a store's keys that were read lately, kept within a bound.
//
// Two maps, a young and an old one: what is asked for is (again) young; once the young hold half of
// what is allowed, the old are let go and the young are the old. An approximation of "least recently
// used" without lists. Used under the interpreter's lock only.
#pragma once

#include <nanobind/nanobind.h>

#include "flat_map.h"
#include "stripe.h"

constexpr int64_t key_bytes = 13;

struct StoreKey {
  uint64_t user = 0, rest = 0;

  static StoreKey at(const uint8_t *bytes) {
    StoreKey key;
    key.user = load<uint64_t>(bytes);
    std::memcpy(&key.rest, bytes + 8, key_bytes - 8);
    return key;
  }
  uint64_t hash() const { return mixed(user ^ mixed(rest)); }
  bool operator==(const StoreKey &other) const { return user == other.user && rest == other.rest; }
};

class ValueCache {
 public:
  explicit ValueCache(int64_t bytes_max) : half_(bytes_max / 2) {}

  // The values of keys that lie one behind the other, None where a key has no value; and the
  // numbers of those that are not known here.
  nanobind::tuple look_up(nanobind::bytes keys) {
    const auto *at = reinterpret_cast<const uint8_t *>(keys.c_str());
    const int64_t count = static_cast<int64_t>(keys.size()) / key_bytes;
    nanobind::object values = nanobind::steal(PyList_New(count));
    nanobind::list missing;
    for (int64_t i = 0; i < count; ++i, at += key_bytes) {
      const StoreKey key = StoreKey::at(at);
      const nanobind::object *known = young_.find(key);
      if (!known && (known = old_.find(key))) known = &keep(key, *known);
      if (!known) missing.append(i);
      PyList_SET_ITEM(values.ptr(), i, nanobind::object(known ? *known : nanobind::none()).release().ptr());
    }
    return nanobind::make_tuple(values, missing);
  }

  // Takes the values of keys that lie one behind the other.
  void add(nanobind::bytes keys, nanobind::list values) {
    if (keys.size() != nanobind::len(values) * key_bytes)
      throw std::invalid_argument("as many values as keys");
    const auto *at = reinterpret_cast<const uint8_t *>(keys.c_str());
    for (nanobind::handle value : values) {
      keep(StoreKey::at(at), nanobind::borrow(value));
      at += key_bytes;
    }
  }

 private:
  // What an entry takes beside its value's bytes, about: its share of the map, a bytes object.
  static constexpr int64_t entry_bytes = 96;

  const nanobind::object &keep(const StoreKey &key, nanobind::object value) {
    const int64_t bytes = entry_bytes + (value.is_none() ? 0 : PyBytes_GET_SIZE(value.ptr()));
    if (young_bytes_ + bytes > half_) {
      old_ = std::move(young_);
      young_ = {};
      young_bytes_ = 0;
    }
    const auto [kept, is_new] = young_.add(key, value);
    if (is_new) young_bytes_ += bytes;
    return kept;
  }

  int64_t half_, young_bytes_ = 0;
  FlatMap<StoreKey, nanobind::object> young_, old_;
};
