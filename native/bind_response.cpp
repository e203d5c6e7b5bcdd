// Python's side of reading an answer: its arrays, of which the large ones stay where they lie.
#include "bind_response.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <vector>

#include "errors.h"
#include "fields.h"
#include "protobuf.h"

namespace nb = nanobind;

namespace {

template <typename T>
using Made = nb::ndarray<nb::numpy, T, nb::ndim<1>>;

// Limit on the columns of one message (core/wire/sizes.py: COLUMNS_MAX).
constexpr size_t columns_max = 1 << 13;
// A text as an object of Python, beside its bytes (core/wire/sizes.py: TEXT_BYTES), and what all
// texts of a message may take beyond a multiple of its bytes (CONSTANT_BYTES_MAX, VALUE_BYTES_MAX).
constexpr int64_t text_bytes = 64, constant_bytes_max = 128 << 20, value_bytes_max = 8;

Made<int64_t> array_of(std::vector<int64_t> values) {
  auto *kept = new std::vector<int64_t>(std::move(values));
  const nb::capsule owner(
      kept, [](void *made) noexcept { delete static_cast<std::vector<int64_t> *>(made); });
  return Made<int64_t>(kept->data(), {kept->size()}, owner);
}

nb::object text_of(Bytes value) {
  PyObject *text =
      PyUnicode_DecodeUTF8(reinterpret_cast<const char *>(value.data), value.size, nullptr);
  if (!text) {
    PyErr_Clear();
    throw std::invalid_argument("a text is not UTF-8");
  }
  return nb::steal(text);
}

class ResponseReader {
 public:
  explicit ResponseReader(nb::bytes message) : message_(message) {}

  nb::tuple read(Bytes content, uint64_t cursor) {
    int64_t generation = 0, watermark_ts = 0, sequence_length = 0, truncation = 0, server_us = 0;
    std::vector<int64_t> statuses, view_starts, view_lengths, block_lengths;
    nb::list columns;
    for (Reader in(content); in.next();) switch (in.field()) {
        case response::generation: generation = in.number(); break;
        case response::watermark_ts: watermark_ts = in.number(); break;
        case response::statuses: in.append_to(statuses); break;
        case response::view_starts: in.append_to(view_starts); break;
        case response::view_lengths: in.append_to(view_lengths); break;
        case response::block_lengths: in.append_to(block_lengths); break;
        case response::columns:
          // An empty column has two bytes in the message, and a thousand here.
          if (nb::len(columns) == columns_max)
            throw std::invalid_argument("it has more columns than any schema");
          columns.append(column(in.bytes()));
          break;
        case response::sequence_length: sequence_length = in.number(); break;
        case response::truncation: truncation = in.number(); break;
        case response::server_us: server_us = in.number(); break;
      }
    return nb::make_tuple(cursor, generation, watermark_ts, array_of(std::move(statuses)),
                          array_of(std::move(view_starts)), array_of(std::move(view_lengths)),
                          array_of(std::move(block_lengths)), columns, sequence_length, truncation,
                          server_us);
  }

 private:
  nb::tuple column(Bytes content) {
    nb::object trait = nb::str(""), default_word = nb::none(), default_string = nb::none();
    int64_t type = 0, vector_size = 0;
    bool nullable = false;
    std::vector<int64_t> bases, dictionary;
    Bytes widths, data, present;
    nb::list strings;
    for (Reader in(content); in.next();) switch (in.field()) {
        case column::trait: trait = text_of(in.bytes()); break;
        case column::type: type = in.number(); break;
        case column::vector_size: vector_size = in.number(); break;
        case column::nullable: nullable = in.number(); break;
        case column::bases: in.append_fixed64_to(bases); break;
        case column::widths: widths = in.bytes(); break;
        case column::data: data = in.bytes(); break;
        case column::present: present = in.bytes(); break;
        case column::dictionary: in.append_fixed64_to(dictionary); break;
        case column::strings: strings.append(counted_text_of(in.bytes())); break;
        case column::default_word: default_word = nb::int_(in.fixed64()); break;
        case column::default_string: default_string = text_of(in.bytes()); break;
      }
    return nb::make_tuple(trait, type, vector_size, nullable, array_of(std::move(bases)),
                          view_of(widths), view_of(data), view_of(present),
                          array_of(std::move(dictionary)), strings, default_word, default_string);
  }

  nb::object counted_text_of(Bytes value) {
    texts_bytes_ += text_bytes + value.size;
    if (texts_bytes_ > constant_bytes_max + value_bytes_max * static_cast<int64_t>(message_.size()))
      throw TooLarge(
          "The texts of the answer would take many times its bytes; ask for fewer "
          "examples at once, shorter sequences or fewer traits.");
    return text_of(value);
  }

  // Part of the message, which lives as long as the view.
  Made<const uint8_t> view_of(Bytes part) const {
    return Made<const uint8_t>(part.data, {static_cast<size_t>(part.size)}, message_);
  }

  nb::bytes message_;
  int64_t texts_bytes_ = 0;
};

Bytes content_of(const nb::bytes &message) {
  return {reinterpret_cast<const uint8_t *>(message.c_str()), static_cast<int64_t>(message.size())};
}

nb::tuple read_response(nb::bytes message) {
  return ResponseReader(message).read(content_of(message), 0);
}

nb::tuple read_stream_response(nb::bytes message) {
  uint64_t cursor = 0;
  Bytes content;
  for (Reader in(content_of(message)); in.next();) switch (in.field()) {
      case stream::cursor: cursor = in.number(); break;
      case stream::response: content = in.bytes(); break;
    }
  return ResponseReader(message).read(content, cursor);
}

struct Numbers {
  const int64_t *first;
  size_t count;
  size_t size() const { return count; }
  const int64_t *begin() const { return first; }
  const int64_t *end() const { return first + count; }
};

nb::bytes varints(nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> numbers) {
  const std::vector<uint8_t> bytes = packed(Numbers{numbers.data(), numbers.size()});
  return nb::bytes(bytes.data(), bytes.size());
}

// Counts the fields that a path of field numbers leads to, from a message into those within it.
// Throws std::invalid_argument for bytes that are no message.
int64_t count_fields(Bytes message, const std::vector<uint32_t> &path, size_t depth = 0) {
  int64_t count = 0;
  for (Reader in(message); in.next();) {
    if (in.field() != path[depth]) continue;
    count += depth + 1 == path.size() ? 1 : count_fields(in.bytes(), path, depth + 1);
  }
  return count;
}

} // namespace

void bind_response(nb::module_ &m) {
  m.def("varints", &varints);
  m.def("count_fields", [](nb::bytes message, const std::vector<uint32_t> &path) {
    if (path.empty()) throw std::invalid_argument("a path has a field or more");
    return count_fields(content_of(message), path);
  });
  m.def("read_response", &read_response);
  m.def("read_stream_response", &read_stream_response);
}
