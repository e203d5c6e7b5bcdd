// A cache of the values that were read recently from the store. The interpreter's lock guards it.
#pragma once

#include <array>
#include <cstring>
#include <stdexcept>

#include "python.h"
#include "recent.h"
#include "stripe.h"

namespace thinrow {

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

  // Values of the keys, and the positions of the keys that are not cached.
  using Found = nb::typed<nb::tuple, Values, nb::typed<nb::list, int64_t>>;

  Found look_up(const nb::bytes &keys) {
    const auto *at = view_of(keys).data;
    if (keys.size() % key_bytes) throw std::invalid_argument("a key has another length");
    const int64_t count = static_cast<int64_t>(keys.size()) / key_bytes;
    nb::object values = nb::steal(PyList_New(count));
    nb::list missing;
    // Slots and values are spread over memory, so they are prefetched.
    const auto key = [&](int64_t number) { return StoreKey::at(at + number * key_bytes); };
    std::array<uint64_t, 4 * keys_ahead> hashes; // hashes of the keys from i to ahead
    for (int64_t ahead = 0; ahead < count + 2 * keys_ahead; ++ahead) {
      const int64_t next = ahead - keys_ahead, i = next - keys_ahead;
      if (ahead < count) {
        hashes[ahead % hashes.size()] = values_.hash_of(key(ahead));
        values_.prefetch(hashes[ahead % hashes.size()]);
      }
      if (next >= 0 && next < count)
        if (const nb::object *known = values_.peek(key(next), hashes[next % hashes.size()]))
          __builtin_prefetch(known->ptr());
      if (i < 0) continue;
      const nb::object *known = values_.find(key(i), hashes[i % hashes.size()], bytes_of);
      if (!known) missing.append(i);
      PyList_SetItem(values.ptr(), i, nb::object(known ? *known : nb::none()).release().ptr());
    }
    return nb::make_tuple(values, missing);
  }

  void add(const nb::bytes &keys, const Values &values) {
    if (keys.size() != values.size() * key_bytes)
      throw std::invalid_argument("keys and values differ in number");
    for (nb::handle value : values)
      if (!value.is_none() && !PyBytes_Check(value.ptr()))
        throw nb::type_error("values must be bytes or None");
    const auto *at = view_of(keys).data;
    for (nb::handle value : values) {
      const nb::object kept = nb::borrow(value);
      if (const int64_t bytes = bytes_of(kept); bytes <= value_bytes_max_)
        values_.add(StoreKey::at(at), kept, bytes);
      at += key_bytes;
    }
  }

 private:
  static constexpr int64_t keys_ahead = 16;
  // Approximate bytes of a bytes object and a slot of the map, which a value takes beyond its
  // bytes.
  static constexpr int64_t entry_bytes = 96;

  static int64_t bytes_of(const nb::object &value) {
    return entry_bytes + (value.is_none() ? 0 : PyBytes_Size(value.ptr()));
  }

  const int64_t value_bytes_max_; // limit on one value
  Recent<StoreKey, nb::object> values_;
};

} // namespace thinrow
