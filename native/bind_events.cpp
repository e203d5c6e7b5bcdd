// Binds the scan of messages of a topic of events.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bind.h"
#include "event_scan.h"
#include "python.h"

namespace thinrow {

namespace {

// Name, thinrow field of an element, and true for vectors and lists.
using TraitArguments = std::tuple<std::string, int, bool>;
using Texts = nb::typed<nb::list, std::string>;
// Rows, lengths of vectors and lists, integers, numbers and texts.
using TraitColumns = std::tuple<Out<int64_t>, Out<int64_t>, Out<int64_t>, Out<double>, Texts>;

Texts texts_of(const std::vector<Bytes> &texts) {
  nb::list made;
  for (const Bytes &text : texts) {
    PyObject *decoded = PyUnicode_DecodeUTF8(reinterpret_cast<const char *>(text.data),
                                             static_cast<Py_ssize_t>(text.size), "strict");
    if (!decoded) {
      PyErr_Clear();
      throw std::invalid_argument("a text is no UTF-8");
    }
    made.append(nb::steal(decoded));
  }
  return Texts(made);
}

auto scan(const nb::typed<nb::list, nb::bytes> &messages,
          const std::vector<TraitArguments> &arguments, int64_t events_max) {
  std::vector<ScannedTrait> traits;
  traits.reserve(arguments.size());
  for (const auto &[name, field, is_many] : arguments) {
    if (field < 0 || field > static_cast<int>(ValueField::text))
      throw std::invalid_argument("there is no such field of a value");
    traits.push_back({name, static_cast<ValueField>(field), is_many, {}, {}, {}, {}, {}});
  }
  EventScan found(std::move(traits), events_max);
  const std::vector<Bytes> views = views_of(messages);
  for (const Bytes &message : views)
    if (!message.data) throw nb::type_error("a message must not be None");
  {
    const nb::gil_scoped_release release;
    for (const Bytes &message : views) found.add(message);
  }
  std::vector<TraitColumns> columns;
  columns.reserve(found.traits.size());
  for (ScannedTrait &trait : found.traits)
    columns.emplace_back(array_of(std::move(trait.rows)), array_of(std::move(trait.lengths)),
                         array_of(std::move(trait.integers)), array_of(std::move(trait.numbers)),
                         texts_of(trait.texts));
  return std::make_tuple(array_of(std::move(found.user_ids)), texts_of(found.user_texts),
                         array_of(std::move(found.counts)), array_of(std::move(found.event_ts)),
                         array_of(std::move(found.id_rows)), array_of(std::move(found.integer_ids)),
                         texts_of(found.text_ids), std::move(columns));
}

} // namespace

void bind_events(nb::module_ &m) {
  m.def("scan_events", &scan, "messages"_a, "traits"_a, "events_max"_a,
        R"(Read encoded UserEvents into columns.

Args:
    messages: The messages.
    traits: Of each trait its name, the field of its elements (0 integer, 1 number, 2 text), and
        True for a vector or a list.
    events_max: Most events of one message.

Returns:
    User ids as integers, and as texts; the number of events of each message; event_ts; the rows of
    events with ids, the ids as integers, and as texts; and for each trait the rows of the events
    that have it, the lengths of vectors and lists, and integers, numbers or texts.

Raises:
    ValueError: A message is malformed, or has a value of another type than its trait's.)");
}

} // namespace thinrow
