// Converts between Python's objects and the types of the native code.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "plan.h"
#include "stripe.h"

namespace thinrow {

namespace nb = nanobind;
using namespace nb::literals;

template <typename T>
using In = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Out = nb::ndarray<nb::numpy, T, nb::ndim<1>>;
// Values of the store, None for a key without a value.
using Values = nb::typed<nb::list, std::optional<nb::bytes>>;
using TextHash = nb::typed<nb::callable, uint64_t(nb::bytes)>;

// Returns the bytes of an object that outlives the result.
inline Bytes view_of(const nb::bytes &object) {
  return {static_cast<const uint8_t *>(object.data()), static_cast<int64_t>(object.size())};
}

// Returns the bytes of each value; `data` is nullptr for None. The list must outlive the result.
inline std::vector<Bytes> views_of(const nb::list &values) {
  std::vector<Bytes> views;
  views.reserve(values.size());
  for (const nb::handle value : values) {
    if (value.is_none())
      views.push_back({});
    else if (PyBytes_Check(value.ptr()))
      views.push_back({reinterpret_cast<const uint8_t *>(PyBytes_AsString(value.ptr())),
                       static_cast<int64_t>(PyBytes_Size(value.ptr()))});
    else
      throw nb::type_error("values must be bytes or None");
  }
  return views;
}

// Number, is_wanted, is_key and event_bytes of a Group.
using GroupArguments = std::tuple<int, bool, bool, int64_t>;

inline std::vector<Group> groups_of(const std::vector<GroupArguments> &arguments) {
  std::vector<Group> groups;
  groups.reserve(arguments.size());
  for (const auto &[number, is_wanted, is_key, event_bytes] : arguments)
    groups.push_back({number, is_wanted, is_key, event_bytes});
  return groups;
}

inline nb::bytes bytes_of(const std::vector<uint8_t> &data) {
  return nb::bytes(data.data(), data.size());
}

// Returns an object of undefined content. The caller writes it before any other code can see it.
inline nb::bytes new_bytes(int64_t size) {
  nb::bytes object = nb::steal<nb::bytes>(PyBytes_FromStringAndSize(nullptr, size));
  if (!object.ptr()) throw nb::python_error();
  return object;
}

inline uint8_t *begin_of(nb::bytes &object) {
  return reinterpret_cast<uint8_t *>(PyBytes_AsString(object.ptr()));
}

// Returns an array that owns the values.
template <typename T>
Out<T> array_of(std::vector<T> values) {
  auto *kept = new std::vector<T>(std::move(values));
  const nb::capsule owner(
      kept, [](void *pointer) noexcept { delete static_cast<std::vector<T> *>(pointer); });
  return Out<T>(kept->data(), {kept->size()}, owner);
}

} // namespace thinrow
