// Binds the mutable tier's records.
#include <nanobind/stl/string.h>

#include <tuple>

#include "bind.h"
#include "event_write.h"
#include "python.h"
#include "records.h"

namespace thinrow {

namespace {

using Records = nb::typed<nb::list, nb::bytes>;
// Name, type, words per event, nullable, bytes per word, positions of its words and presence byte,
// limit on the elements of a list.
using ColumnArguments =
    std::tuple<std::string, int, int64_t, bool, int64_t, int64_t, int64_t, int64_t>;

std::vector<Bytes> records_of(const nb::list &records) {
  std::vector<Bytes> views = views_of(records);
  for (const Bytes &view : views)
    if (!view.data) throw nb::type_error("a record must not be None");
  return views;
}

void make_format(RecordFormat *made, int number, int64_t record_bytes,
                 const std::vector<ColumnArguments> &arguments) {
  std::vector<RecordColumn> columns;
  columns.reserve(arguments.size());
  for (const auto &[name, type, size, nullable, word_bytes, word_at, has_at, length_max] :
       arguments)
    columns.push_back({name, static_cast<TraitType>(type), size, nullable, word_bytes, word_at,
                       has_at, length_max});
  new (made) RecordFormat(number, record_bytes, std::move(columns));
}

std::optional<nb::bytes> events(const RecordFormat &format, const std::vector<int64_t> &arrival_ts,
                                const Records &records) {
  const std::vector<Bytes> views = records_of(records);
  for (const Bytes &view : views)
    if (!format.is_of(view)) return std::nullopt;
  return bytes_of(format.events(arrival_ts, views));
}

nb::typed<nb::list, nb::bytes> topic_events(const RecordFormat &format, const Records &records) {
  const std::vector<Bytes> views = records_of(records);
  for (const Bytes &view : views)
    if (!format.is_of(view)) throw std::invalid_argument("a record has another format");
  WrittenEvents written;
  {
    const nb::gil_scoped_release release;
    written = write_events(format, views);
  }
  nb::list made;
  size_t start = 0;
  for (const size_t end : written.ends) {
    made.append(nb::bytes(written.data.data() + start, end - start));
    start = end;
  }
  return nb::typed<nb::list, nb::bytes>(made);
}

} // namespace

void bind_records(nb::module_ &m) {
  nb::class_<RecordFormat>(m, "RecordFormat", "The layout of the records of one schema.")
      .def("__init__", &make_format, "number"_a, "record_bytes"_a, "columns"_a,
           R"(Check the layout.

Args:
    number: Number of the schema, with which its records begin.
    record_bytes: Bytes of a record without its texts and lists.
    columns: Name, thinrow.v1.TraitType, words per event, nullable, bytes per word, the positions of
        its words and of its presence byte, and the limit on the elements of a list, of each column.)")
      .def("events", &events, "arrival_ts"_a, "records"_a,
           R"(Return the records as an encoded MutableEvents.

Args:
    arrival_ts: Arrival of each record.
    records: At most as many as one response holds.

Returns:
    None if a record has another format.

Raises:
    StoreCorruptError: A record is cut off.)")
      .def("topic_events", &topic_events, "records"_a,
           R"(Return each record as an encoded field ``events`` of a UserEvents.

Args:
    records: Records of this format.

Raises:
    ValueError: A record has another format.
    StoreCorruptError: A record is cut off.)");
  m.def(
      "record_order",
      [](const Records &records, int event_id) {
        return record_order(records_of(records), static_cast<TraitType>(event_id));
      },
      "records"_a, "event_id"_a,
      R"(Return the order of records by event_ts, presence of event_id, and event_id.

Args:
    records: Records of one tier, of any of its schemas.
    event_id: thinrow.v1.TraitType of the ids.

Returns:
    Positions of the records; empty if two records are equal in all three.

Raises:
    StoreCorruptError: A record is cut off.)");
}

} // namespace thinrow
