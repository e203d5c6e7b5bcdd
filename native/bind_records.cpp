// Python's side of the mutable tier's records.
#include "bind_records.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bind_snapshot.h"
#include "records.h"

namespace nb = nanobind;

namespace {

std::vector<Bytes> views_of(const nb::list &values) {
  std::vector<Bytes> views;
  views.reserve(nb::len(values));
  for (const nb::handle value : values) {
    if (!PyBytes_Check(value.ptr())) throw nb::type_error("records are bytes");
    views.push_back({reinterpret_cast<const uint8_t *>(PyBytes_AS_STRING(value.ptr())),
                     static_cast<int64_t>(PyBytes_GET_SIZE(value.ptr()))});
  }
  return views;
}

// None where a record is of another format.
nb::object events(const RecordFormat &format, const std::vector<int64_t> &arrival_ts,
                  const nb::list &records) {
  const std::vector<Bytes> views = views_of(records);
  for (const Bytes &view : views)
    if (!format.is_of(view)) return nb::none();
  const std::vector<uint8_t> message = format.events(arrival_ts, views);
  return nb::bytes(message.data(), message.size());
}

} // namespace

void bind_records(nb::module_ &m) {
  using Told = std::tuple<std::string, int, int64_t, bool, int64_t, int64_t, int64_t>;
  nb::class_<RecordFormat>(m, "RecordFormat")
      .def("__init__",
           [](RecordFormat *made, int number, int64_t record_bytes, const std::vector<Told> &told) {
             std::vector<RecordColumn> columns;
             for (const auto &[name, type, size, nullable, word_bytes, word_at, has_at] : told)
               columns.push_back({name, type, size, nullable, word_bytes, word_at, has_at});
             new (made) RecordFormat(number, record_bytes, std::move(columns));
           })
      .def("events", &events);
  m.def("record_order", [](const nb::list &records) { return record_order(views_of(records)); });
  bind_snapshot(m);
}
