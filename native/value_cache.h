// Values of a store's keys that were read lately. Used under the interpreter's lock only.
#pragma once

#include <nanobind/nanobind.h>

#include "recent.h"
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
  std::array<uint64_t, 2> hashed() const { return {user, rest}; }
  bool operator==(const StoreKey &other) const { return user == other.user && rest == other.rest; }
};

class ValueCache {
 public:
  explicit ValueCache(int64_t bytes_max) : value_bytes_max_(bytes_max / 2), values_(bytes_max) {}

  // The values of keys that lie one behind the other, None where a key has no value; and the
  // numbers of those that are not known here.
  nanobind::tuple look_up(nanobind::bytes keys) {
    const auto *at = reinterpret_cast<const uint8_t *>(keys.c_str());
    if (keys.size() % key_bytes) throw std::invalid_argument("a key has another length");
    const int64_t count = static_cast<int64_t>(keys.size()) / key_bytes;
    nanobind::object values = nanobind::steal(PyList_New(count));
    nanobind::list missing;
    // Places and values lie all over the memory, whose answers are not waited for one by one.
    const auto key = [&](int64_t number) { return StoreKey::at(at + number * key_bytes); };
    std::array<uint64_t, 4 * keys_ahead> hashes; // of the keys from i to ahead
    for (int64_t ahead = 0; ahead < count + 2 * keys_ahead; ++ahead) {
      const int64_t next = ahead - keys_ahead, i = next - keys_ahead;
      if (ahead < count) {
        hashes[ahead % hashes.size()] = values_.hash_of(key(ahead));
        values_.prefetch(hashes[ahead % hashes.size()]);
      }
      if (next >= 0 && next < count)
        if (const nanobind::object *known = values_.peek(key(next), hashes[next % hashes.size()]))
          __builtin_prefetch(known->ptr());
      if (i < 0) continue;
      const nanobind::object *known = values_.find(key(i), hashes[i % hashes.size()], bytes_of);
      if (!known) missing.append(i);
      PyList_SET_ITEM(values.ptr(), i,
                      nanobind::object(known ? *known : nanobind::none()).release().ptr());
    }
    return nanobind::make_tuple(values, missing);
  }

  // Takes the values of keys that lie one behind the other.
  void add(nanobind::bytes keys, nanobind::list values) {
    if (keys.size() != nanobind::len(values) * key_bytes)
      throw std::invalid_argument("as many values as keys");
    for (nanobind::handle value : values)
      if (!value.is_none() && !PyBytes_Check(value.ptr()))
        throw nanobind::type_error("values are bytes or None");
    const auto *at = reinterpret_cast<const uint8_t *>(keys.c_str());
    for (nanobind::handle value : values) {
      const nanobind::object kept = nanobind::borrow(value);
      if (const int64_t bytes = bytes_of(kept); bytes <= value_bytes_max_)
        values_.add(StoreKey::at(at), kept, bytes);
      at += key_bytes;
    }
  }

 private:
  static constexpr int64_t keys_ahead = 16;
  // Beside its bytes a value takes, about, its share of the map and a bytes object.
  static constexpr int64_t entry_bytes = 96;

  static int64_t bytes_of(const nanobind::object &value) {
    return entry_bytes + (value.is_none() ? 0 : PyBytes_GET_SIZE(value.ptr()));
  }

  const int64_t value_bytes_max_; // larger ones would exceed the bound by themselves
  Recent<StoreKey, nanobind::object> values_;
};
