#include "event_write.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "errors.h"
#include "fields.h"
#include "protobuf.h"

namespace thinrow {

namespace {

using Data = std::vector<uint8_t>;

void append_varint(Data &out, uint64_t value) {
  uint8_t bytes[10];
  Writer writer(bytes);
  writer.varint(value);
  out.insert(out.end(), bytes, writer.at());
}

void append_number(Data &out, uint32_t field, uint64_t value) {
  append_varint(out, field << 3 | static_cast<uint32_t>(Wire::varint));
  append_varint(out, value);
}

// Fields without content are written as well: those of a oneof say which one is set.
void append_bytes(Data &out, uint32_t field, const uint8_t *data, size_t size) {
  append_varint(out, field << 3 | static_cast<uint32_t>(Wire::length));
  append_varint(out, size);
  if (size) out.insert(out.end(), data, data + size);
}

void append_double(Data &out, double value) {
  uint8_t bytes[sizeof value];
  std::memcpy(bytes, &value, sizeof value);
  out.insert(out.end(), bytes, bytes + sizeof value);
}

double double_of_half(uint16_t half) {
  const int exponent = half >> 10 & 0x1f;
  const uint64_t fraction = half & 0x3ff;
  if (exponent == 0x1f) {
    // The bits of a NaN stay.
    const uint64_t bits = uint64_t{half} >> 15 << 63 | uint64_t{0x7ff} << 52 | fraction << 42;
    return load<double>(reinterpret_cast<const uint8_t *>(&bits));
  }
  const double size = exponent ? std::ldexp(static_cast<double>(fraction | 0x400), exponent - 25)
                               : std::ldexp(static_cast<double>(fraction), -24);
  return half >> 15 ? -size : size;
}

double number_of(const uint8_t *word, TraitType type) {
  if (type == TraitType::float64) return load<double>(word);
  if (type == TraitType::float32) return load<float>(word);
  return double_of_half(load<uint16_t>(word));
}

// Returns the int64 of an integer; of those of 64 bits, the one with the same bits.
uint64_t integer_of(const uint8_t *word, TraitType type, int64_t bytes) {
  uint64_t value = 0;
  std::memcpy(&value, word, bytes);
  const int64_t unused = 64 - 8 * bytes;
  if (type > TraitType::int32 || !unused) return value;
  return static_cast<uint64_t>(static_cast<int64_t>(value << unused) >> unused);
}

bool is_float(TraitType type) {
  return type == TraitType::float16 || type == TraitType::float32 || type == TraitType::float64;
}

// Writes one event after the other; its memory is used again for each.
class EventWriter {
 public:
  explicit EventWriter(const RecordFormat &format) : format_(format) {
    if (format.columns().size() < 2 || format.columns()[0].word_bytes != 8)
      throw std::invalid_argument("a record begins with event_ts and event_id");
    for (const RecordColumn &column : format.columns()) {
      Data name;
      append_bytes(name, fields::traits_entry::key,
                   reinterpret_cast<const uint8_t *>(column.name.data()), column.name.size());
      names_.push_back(std::move(name));
    }
  }

  void append_to(WrittenEvents &out, Bytes record) {
    namespace event = fields::event;
    require(record.size >= format_.record_bytes());
    record_ = record;
    rest_at_ = format_.record_bytes();
    event_.clear();
    const std::vector<RecordColumn> &columns = format_.columns();
    append_number(event_, event::event_ts, load<uint64_t>(record.data + columns[0].word_at));
    append_id(columns[1]);
    for (size_t i = 2; i < columns.size(); ++i) {
      value_.clear();
      append_value(columns[i]);
      if (!is_present(columns[i])) continue;
      entry_ = names_[i];
      append_bytes(entry_, fields::traits_entry::value, value_.data(), value_.size());
      append_bytes(event_, event::traits, entry_.data(), entry_.size());
    }
    append_bytes(out.data, fields::user_events::events, event_.data(), event_.size());
    out.ends.push_back(out.data.size());
  }

 private:
  static void require(bool is_whole) {
    if (!is_whole) throw Corrupt("an event of the mutable tier is cut off");
  }

  bool is_present(const RecordColumn &column) const {
    return !column.nullable || record_.data[column.has_at];
  }

  // Returns the next bytes behind the fixed part, where absent values have places as well.
  Bytes take(int64_t size) {
    require(size <= record_.size - rest_at_);
    const Bytes taken{record_.data + rest_at_, size};
    rest_at_ += size;
    return taken;
  }

  void append_id(const RecordColumn &column) {
    namespace event = fields::event;
    const uint8_t *word = record_.data + column.word_at;
    if (column.type == TraitType::string) {
      const Bytes text = take(load<uint32_t>(word));
      if (is_present(column)) append_bytes(event_, event::event_id_text, text.data, text.size);
    } else if (is_present(column)) {
      append_number(event_, event::event_id, integer_of(word, column.type, column.word_bytes));
    }
  }

  void append_value(const RecordColumn &column) {
    namespace value = fields::trait_value;
    const uint8_t *word = record_.data + column.word_at;
    if (column.length_max || column.size > 1) {
      append_elements(column, word);
    } else if (column.type == TraitType::string) {
      const Bytes text = take(load<uint32_t>(word));
      append_bytes(value_, value::text, text.data, text.size);
    } else if (is_float(column.type)) {
      append_varint(value_, value::number << 3 | static_cast<uint32_t>(Wire::fixed64));
      append_double(value_, number_of(word, column.type));
    } else {
      append_number(value_, value::integer, integer_of(word, column.type, column.word_bytes));
    }
  }

  void append_elements(const RecordColumn &column, const uint8_t *word) {
    namespace elements = fields::trait_values;
    const int64_t bytes = column.word_bytes;
    int64_t count = column.size;
    if (column.length_max) {
      count = load<uint16_t>(word);
      word = take(count * bytes).data;
    }
    packed_.clear();
    elements_.clear();
    for (int64_t i = 0; i < count; ++i) {
      const uint8_t *element = word + i * bytes;
      if (column.type == TraitType::string) {
        const Bytes text = take(load<uint32_t>(element));
        append_bytes(elements_, elements::texts, text.data, text.size);
      } else if (is_float(column.type)) {
        append_double(packed_, number_of(element, column.type));
      } else {
        append_varint(packed_, integer_of(element, column.type, bytes));
      }
    }
    if (!packed_.empty())
      append_bytes(elements_, is_float(column.type) ? elements::numbers : elements::integers,
                   packed_.data(), packed_.size());
    append_bytes(value_, fields::trait_value::elements, elements_.data(), elements_.size());
  }

  const RecordFormat &format_;
  std::vector<Data> names_; // encoded, of each column
  Bytes record_{};
  int64_t rest_at_ = 0;
  Data event_, entry_, value_, packed_, elements_;
};

} // namespace

WrittenEvents write_events(const RecordFormat &format, const std::vector<Bytes> &records) {
  WrittenEvents written;
  written.ends.reserve(records.size());
  EventWriter writer(format);
  for (const Bytes &record : records) writer.append_to(written, record);
  return written;
}

} // namespace thinrow
