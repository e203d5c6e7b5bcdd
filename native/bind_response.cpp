// Binds the reading of encoded answers. Large arrays refer to the bytes of the message.
#include "bind.h"
#include "errors.h"
#include "fields.h"
#include "protobuf.h"
#include "python.h"

namespace thinrow {

namespace column = fields::column;
namespace response = fields::materialize_response;
namespace stream = fields::materialize_stream_response;

namespace {

// Fields of thinrow.core.wire.response.Column.
using ColumnTuple =
    nb::typed<nb::tuple, nb::str, int64_t, int64_t, bool, Out<int64_t>, Out<const uint8_t>,
              Out<const uint8_t>, Out<const uint8_t>, Out<int64_t>, nb::typed<nb::list, nb::str>,
              std::optional<int64_t>, std::optional<nb::str>, int64_t, Out<const uint8_t>, bool>;
// Fields of thinrow.core.wire.response.Response.
using ResponseTuple =
    nb::typed<nb::tuple, uint64_t, int64_t, int64_t, Out<int64_t>, Out<int64_t>, Out<int64_t>,
              Out<int64_t>, nb::typed<nb::list, ColumnTuple>, int64_t, int64_t, int64_t, uint64_t>;

// Limit on the columns of one message (core/wire/sizes.py: COLUMNS_MAX).
constexpr size_t columns_max = 1 << 13;
// Bytes of a Python string beyond its text (core/wire/sizes.py: TEXT_BYTES), and the bytes that all
// texts of a message may take beyond a multiple of its size (CONSTANT_BYTES_MAX, VALUE_BYTES_MAX).
constexpr int64_t text_bytes = 64, constant_bytes_max = 128 << 20, value_bytes_max = 8;

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
  explicit ResponseReader(nb::bytes message) : message_(std::move(message)) {}

  ResponseTuple read(Bytes content, uint64_t cursor) {
    int64_t generation = 0, watermark_ts = 0, sequence_length = 0, truncation = 0, server_us = 0;
    uint64_t map_version = 0;
    std::vector<int64_t> statuses, view_starts, view_lengths, block_lengths;
    nb::list columns;
    for (Reader in(content); in.next();) {
      switch (in.field()) {
        case response::generation: generation = in.number(); break;
        case response::watermark_ts: watermark_ts = in.number(); break;
        case response::statuses: in.append_to(statuses); break;
        case response::view_starts: in.append_to(view_starts); break;
        case response::view_lengths: in.append_to(view_lengths); break;
        case response::block_lengths: in.append_to(block_lengths); break;
        case response::columns:
          // An empty column takes two bytes in the message, and a thousand as Python objects.
          if (nb::len(columns) == columns_max)
            throw std::invalid_argument("it has more columns than any schema");
          columns.append(column(in.bytes()));
          break;
        case response::sequence_length: sequence_length = in.number(); break;
        case response::truncation: truncation = in.number(); break;
        case response::server_us: server_us = in.number(); break;
        case response::map_version: map_version = in.number(); break;
        default: break; // unknown fields are ignored
      }
    }
    return nb::make_tuple(cursor, generation, watermark_ts, array_of(std::move(statuses)),
                          array_of(std::move(view_starts)), array_of(std::move(view_lengths)),
                          array_of(std::move(block_lengths)), columns, sequence_length, truncation,
                          server_us, map_version);
  }

 private:
  ColumnTuple column(Bytes content) {
    nb::object trait = nb::str(""), default_word = nb::none(), default_string = nb::none();
    int64_t type = 0, vector_size = 0, list_length_max = 0, codes_end = 0;
    bool nullable = false, filled = false;
    std::vector<int64_t> bases, dictionary;
    Bytes widths, data, present, list_lengths;
    nb::list strings;
    for (Reader in(content); in.next();) {
      switch (in.field()) {
        case column::trait: trait = text_of(in.bytes()); break;
        case column::type: type = in.number(); break;
        case column::vector_size: vector_size = in.number(); break;
        case column::nullable: nullable = in.number() != 0; break;
        case column::bases: in.append_fixed64_to(bases); break;
        case column::widths: widths = in.bytes(); break;
        case column::data: data = in.bytes(); break;
        case column::present: present = in.bytes(); break;
        case column::dictionary: in.append_fixed64_to(dictionary); break;
        case column::strings: strings.append(counted_text_of(in.bytes())); break;
        case column::default_word: default_word = nb::int_(in.fixed64()); break;
        case column::default_string: default_string = text_of(in.bytes()); break;
        case column::list_length_max: list_length_max = in.number(); break;
        case column::list_lengths: list_lengths = in.bytes(); break;
        case column::filled: filled = in.number() != 0; break;
        case column::codes_end: codes_end = in.number(); break;
        default: break; // unknown fields are ignored
      }
    }
    return nb::make_tuple(trait, type, vector_size, nullable, array_of(std::move(bases)),
                          array_view(widths), array_view(data), array_view(present),
                          array_of(std::move(dictionary)), strings, default_word, default_string,
                          list_length_max, array_view(list_lengths), filled, codes_end);
  }

  nb::object counted_text_of(Bytes value) {
    texts_bytes_ += text_bytes + value.size;
    if (texts_bytes_ > constant_bytes_max + value_bytes_max * static_cast<int64_t>(message_.size()))
      throw TooLarge(
          "The texts of the answer would take many times its bytes; request fewer "
          "examples at once, shorter sequences or fewer traits.");
    return text_of(value);
  }

  // Returns an array over a part of the message; it keeps the message alive.
  Out<const uint8_t> array_view(Bytes part) const {
    return Out<const uint8_t>(part.data, {static_cast<size_t>(part.size)}, message_);
  }

  nb::bytes message_;
  int64_t texts_bytes_ = 0;
};

ResponseTuple read_response(const nb::bytes &message) {
  return ResponseReader(message).read(view_of(message), 0);
}

ResponseTuple read_stream_response(const nb::bytes &message) {
  uint64_t cursor = 0;
  Bytes content;
  for (Reader in(view_of(message)); in.next();) {
    switch (in.field()) {
      case stream::cursor: cursor = in.number(); break;
      case stream::response: content = in.bytes(); break;
      default: break; // unknown fields are ignored
    }
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

nb::bytes varints(const In<int64_t> &numbers) {
  return bytes_of(packed(Numbers{numbers.data(), numbers.size()}));
}

int64_t count_fields_below(Bytes message, const std::vector<uint32_t> &path, size_t depth) {
  int64_t count = 0;
  for (Reader in(message); in.next();) {
    if (in.field() != path[depth]) continue;
    count += depth + 1 == path.size() ? 1 : count_fields_below(in.bytes(), path, depth + 1);
  }
  return count;
}

int64_t count_fields(const nb::bytes &message, const std::vector<uint32_t> &path) {
  if (path.empty()) throw std::invalid_argument("a path must have at least one field");
  return count_fields_below(view_of(message), path, 0);
}

} // namespace

void bind_response(nb::module_ &m) {
  m.def("varints", &varints, "numbers"_a, "Return the numbers as the content of a packed field.");
  m.def("count_fields", &count_fields, "message"_a, "path"_a,
        R"(Count the fields that a path of field numbers leads to, from a message into nested ones.

Raises:
    ValueError: The bytes are no protobuf message, or the path is empty.)");
  m.def("read_response", &read_response, "message"_a,
        R"(Read an encoded MaterializeResponse.

Returns:
    The fields of thinrow.core.wire.response.Response.

Raises:
    ValueError: The bytes are no such message.
    AnswerTooLargeError: Its texts would take many times the bytes of the message.)");
  m.def("read_stream_response", &read_stream_response, "message"_a,
        R"(Read an encoded MaterializeStreamResponse.

Returns:
    The fields of thinrow.core.wire.response.Response.

Raises:
    ValueError: The bytes are no such message.
    AnswerTooLargeError: Its texts would take many times the bytes of the message.)");
}

} // namespace thinrow
