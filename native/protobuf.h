// Writes the protobuf wire format (its encoding specification) into memory of a known size, and
// reads untrusted messages.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "stripe.h"

namespace thinrow {

enum class Wire : uint32_t {
  varint = 0,
  fixed64 = 1,
  length = 2,
  group = 3,
  group_end = 4,
  fixed32 = 5
};

inline int64_t varint_bytes(uint64_t value) {
  return value ? (70 - __builtin_clzll(value)) / 7 : 1;
}

inline int64_t tag_bytes(uint32_t field) { return varint_bytes(field << 3); }

// Returns the bytes of a length-delimited field whose content has `length` bytes.
inline int64_t field_bytes(uint32_t field, int64_t length) {
  return tag_bytes(field) + varint_bytes(length) + length;
}

class Writer {
 public:
  explicit Writer(uint8_t *at) : at_(at) {}

  uint8_t *at() const { return at_; }

  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) *at_++ = static_cast<uint8_t>(value | 0x80);
    *at_++ = static_cast<uint8_t>(value);
  }

  void raw(const void *data, int64_t size) {
    if (size) std::memcpy(at_, data, size);
    at_ += size;
  }

  void tag(uint32_t field, Wire type) { varint(field << 3 | static_cast<uint32_t>(type)); }

  void open(uint32_t field, int64_t length) {
    tag(field, Wire::length);
    varint(length);
  }

  // Omits fields of value 0, as protobuf does.
  void number(uint32_t field, uint64_t value) {
    if (!value) return;
    tag(field, Wire::varint);
    varint(value);
  }

  void bytes(uint32_t field, const void *data, int64_t size) {
    if (!size) return;
    open(field, size);
    raw(data, size);
  }

 private:
  uint8_t *at_;
};

// Returns the content of a packed field.
template <typename Numbers>
std::vector<uint8_t> packed(const Numbers &numbers) {
  std::vector<uint8_t> bytes(10 * numbers.size());
  Writer out(bytes.data());
  for (const auto number : numbers) out.varint(number);
  bytes.resize(out.at() - bytes.data());
  return bytes;
}

inline int64_t number_bytes(uint32_t field, uint64_t value) {
  return value ? tag_bytes(field) + varint_bytes(value) : 0;
}

inline int64_t optional_bytes(uint32_t field, int64_t length) {
  return length ? field_bytes(field, length) : 0;
}

// Iterates over the fields of a message. Throws std::invalid_argument if it is malformed.
class Reader {
 public:
  explicit Reader(Bytes message) : at_(message.data), end_(message.data + message.size) {}

  // Advances to the next field; returns false at the end.
  bool next() {
    while (at_ != end_) {
      read_tag();
      if (type_ != Wire::group) {
        read_content();
        return true;
      }
      skip_group(1);
    }
    return false;
  }

  uint32_t field() const { return field_; }
  Wire type() const { return type_; }

  uint64_t number() const {
    require(Wire::varint);
    return number_;
  }
  Bytes bytes() const {
    require(Wire::length);
    return content_;
  }
  int64_t fixed64() const {
    require(Wire::fixed64);
    return load<int64_t>(content_.data);
  }
  double float64() const {
    require(Wire::fixed64);
    return load<double>(content_.data);
  }

  // Appends a repeated number: a packed field, or one element of an unpacked one.
  template <typename Number>
  void append_to(std::vector<Number> &numbers) const {
    if (type_ == Wire::varint) {
      numbers.push_back(static_cast<Number>(number_));
      return;
    }
    const Reader packed(bytes());
    // The last byte of each number has its highest bit clear, so the count is known beforehand;
    // growing step by step would take twice the memory.
    const size_t size = numbers.size() + std::count_if(packed.at_, packed.end_,
                                                       [](uint8_t byte) { return byte < 0x80; });
    // Twice at least, since many small fields would otherwise each move all numbers before.
    if (size > numbers.capacity()) numbers.reserve(std::max(size, 2 * numbers.capacity()));
    for_each_number([&](uint64_t number) { numbers.push_back(static_cast<Number>(number)); });
  }
  // Calls a function with each number of a repeated field: packed ones, or one element.
  template <typename Take>
  void for_each_number(Take &&take) const {
    if (type_ == Wire::varint) {
      take(number_);
      return;
    }
    for (Reader packed(bytes()); packed.at_ != packed.end_;) take(packed.varint());
  }
  template <typename Number, typename Take>
  void for_each_fixed64(Take &&take) const {
    if (type_ != Wire::fixed64 && bytes().size % 8)
      throw std::invalid_argument("a packed field is cut off");
    for (int64_t at = 0; at < content_.size; at += 8) take(load<Number>(content_.data + at));
  }
  template <typename Number>
  void append_fixed64_to(std::vector<Number> &numbers) const {
    if (type_ == Wire::fixed64) {
      numbers.push_back(load<Number>(content_.data));
      return;
    }
    const Bytes packed = bytes();
    if (packed.size % 8) throw std::invalid_argument("a packed field is cut off");
    const size_t before = numbers.size();
    numbers.resize(before + packed.size / 8);
    if (packed.size) std::memcpy(numbers.data() + before, packed.data, packed.size);
  }

 private:
  void require(Wire type) const {
    if (type_ != type) throw std::invalid_argument("a field has another type");
  }

  void read_tag() {
    const uint64_t tag = varint();
    if (tag > std::numeric_limits<uint32_t>::max() || tag < 8)
      throw std::invalid_argument("it is no protobuf message");
    field_ = static_cast<uint32_t>(tag >> 3);
    type_ = static_cast<Wire>(tag & 7);
  }

  void read_content() {
    switch (type_) {
      case Wire::varint: number_ = varint(); break;
      case Wire::fixed64: content_ = take(8); break;
      case Wire::fixed32: content_ = take(4); break;
      case Wire::length: content_ = take(varint()); break;
      default: throw std::invalid_argument("it is no protobuf message");
    }
  }

  // Skips a group, which is an unknown field of every message here.
  void skip_group(int depth) {
    const uint32_t group = field_;
    if (depth > groups_max) throw std::invalid_argument("groups are nested too deeply");
    for (read_tag(); type_ != Wire::group_end; read_tag()) {
      if (type_ == Wire::group)
        skip_group(depth + 1);
      else
        read_content();
    }
    if (field_ != group) throw std::invalid_argument("it is no protobuf message");
  }

  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      if (at_ == end_) throw std::invalid_argument("it is cut off");
      const uint8_t byte = *at_++;
      if (shift < 64) value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (!(byte & 0x80)) return value;
    }
    throw std::invalid_argument("a number has too many bytes");
  }

  Bytes take(uint64_t size) {
    if (size > static_cast<uint64_t>(end_ - at_)) throw std::invalid_argument("it is cut off");
    const Bytes taken{at_, static_cast<int64_t>(size)};
    at_ += size;
    return taken;
  }

  static constexpr int groups_max = 100; // as in protobuf

  const uint8_t *at_, *end_;
  uint32_t field_ = 0;
  Wire type_ = Wire::varint;
  uint64_t number_ = 0;
  Bytes content_;
};

} // namespace thinrow
