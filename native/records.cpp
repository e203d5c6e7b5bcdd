#include "records.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <string_view>
#include <tuple>

#include "errors.h"
#include "fields.h"
#include "flat_map.h"

namespace thinrow {

namespace column = fields::column;

namespace {

// The head of a record: schema number, event_ts, a byte that is 1 if event_id is present, event_id.
constexpr int64_t event_ts_at = 2, has_id_at = 10, event_id_at = 11, head_bytes = 19;

// Where event_id is a text, its size, and then its position in the record.
constexpr int64_t id_size_at = event_id_at, id_place_at = event_id_at + 4;

void require(bool is_whole) {
  if (!is_whole) throw Corrupt("an event of the mutable tier is cut off");
}

void append_code(std::vector<uint8_t> &data, uint64_t code, int width) {
  for (int i = 0; i < width; ++i) data.push_back(static_cast<uint8_t>(code >> 8 * i));
}

// Returns the bytes that a code below `bound` needs.
int code_width(size_t bound) { return bound > 1 << 16 ? 4 : bound > 1 << 8 ? 2 : 1; }

template <typename Word>
Word id_word(Bytes record) {
  return load<Word>(record.data + event_id_at);
}

std::string_view id_text(Bytes record) {
  const int64_t size = load<uint32_t>(record.data + id_size_at);
  const int64_t place = load<uint32_t>(record.data + id_place_at);
  require(place + size <= record.size);
  return {reinterpret_cast<const char *>(record.data + place), static_cast<size_t>(size)};
}

template <typename Id>
std::vector<int64_t> ordered_by(const std::vector<Bytes> &records, Id (*id_of)(Bytes)) {
  using Key = std::tuple<int64_t, uint8_t, Id>;
  std::vector<Key> keys;
  keys.reserve(records.size());
  for (const Bytes &record : records)
    keys.emplace_back(load<int64_t>(record.data + event_ts_at), record.data[has_id_at],
                      id_of(record));
  std::vector<int64_t> order(records.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](int64_t one, int64_t other) { return keys[one] < keys[other]; });
  for (size_t i = 1; i < order.size(); ++i)
    if (keys[order[i - 1]] == keys[order[i]]) return {};
  return order;
}

// One column of the wire, encoded.
class RecordsColumn {
 public:
  // `rest_at` is the position in each record of this column's text or list; it is advanced past it.
  RecordsColumn(const RecordColumn &column, const std::vector<Bytes> &records,
                std::vector<int64_t> &rest_at)
      : column_(column), width_(static_cast<int>(column.word_bytes)) {
    if (column.nullable) present_.assign((records.size() + 7) / 8, 0);
    is_signed_ = column.type <= TraitType::int32;
    // Signed values are written as offsets from the smallest value of their type.
    if (is_signed_) base_ = static_cast<int64_t>(~uint64_t{0} << (8 * column.word_bytes - 1));
    if (column.type != TraitType::string && !column.length_max)
      data_.reserve(column.fixed_bytes() * records.size());
    for (size_t row = 0; row < records.size(); ++row) {
      const uint8_t *word = records[row].data + column.word_at;
      const bool is_there = !column.nullable || records[row].data[column.has_at];
      if (column.nullable && is_there) present_[row / 8] |= static_cast<uint8_t>(1 << row % 8);
      if (column.length_max)
        add_list(records[row], rest_at[row], is_there, load<uint16_t>(word));
      else if (column.type == TraitType::string)
        add_text(records[row], rest_at[row], is_there, load<uint32_t>(word));
      else if (is_there)
        add_words(word, column.fixed_bytes());
    }
    if (column.type != TraitType::string) return;
    width_ = code_width(texts_.size());
    data_.reserve(width_ * codes_.size());
    for (const uint32_t code : codes_) append_code(data_, code, width_);
    codes_ = {};
    by_text_ = {};
  }

  int64_t bytes() const {
    int64_t total = optional_bytes(column::trait, column_.name.size()) +
                    number_bytes(column::type, static_cast<uint64_t>(column_.type)) +
                    number_bytes(column::vector_size, vector_size()) +
                    number_bytes(column::nullable, column_.nullable) +
                    field_bytes(column::bases, 8) + field_bytes(column::widths, 1) +
                    optional_bytes(column::data, data_.size()) +
                    optional_bytes(column::present, present_.size()) +
                    number_bytes(column::list_length_max, column_.length_max) +
                    optional_bytes(column::list_lengths, lengths_.size());
    for (const Bytes &value : texts_) total += field_bytes(column::strings, value.size);
    return total;
  }

  void write(Writer &out) const {
    out.bytes(column::trait, column_.name.data(), column_.name.size());
    out.number(column::type, static_cast<uint64_t>(column_.type));
    out.number(column::vector_size, vector_size());
    out.number(column::nullable, column_.nullable);
    out.bytes(column::bases, &base_, 8);
    const auto width = static_cast<uint8_t>(width_);
    out.bytes(column::widths, &width, 1);
    out.bytes(column::data, data_.data(), data_.size());
    out.bytes(column::present, present_.data(), present_.size());
    for (const Bytes &value : texts_) {
      out.open(column::strings, value.size);
      out.raw(value.data, value.size);
    }
    out.number(column::list_length_max, column_.length_max);
    out.bytes(column::list_lengths, lengths_.data(), lengths_.size());
  }

 private:
  int64_t vector_size() const { return column_.length_max ? 0 : column_.size; }

  void add_words(const uint8_t *words, int64_t bytes) {
    data_.insert(data_.end(), words, words + bytes);
    if (!is_signed_) return;
    for (size_t at = data_.size() - bytes; at < data_.size(); at += column_.word_bytes)
      data_[at + column_.word_bytes - 1] ^= 0x80;
  }

  void add_text(Bytes record, int64_t &at, bool is_there, uint32_t size) {
    require(size <= record.size - at);
    const Bytes value{record.data + at, size};
    at += size;
    if (!is_there) return;
    const std::string_view view(reinterpret_cast<const char *>(value.data), value.size);
    const auto [code, is_new] = by_text_.add({view}, static_cast<uint32_t>(texts_.size()));
    if (is_new) texts_.push_back(value);
    codes_.push_back(code);
  }

  void add_list(Bytes record, int64_t &at, bool is_there, uint16_t length) {
    if (length > column_.length_max) throw Corrupt("a list of the mutable tier exceeds its limit");
    append_code(lengths_, is_there ? length : 0,
                static_cast<int>(length_bytes(column_.length_max)));
    const uint8_t *words = record.data + at;
    const int64_t bytes = length * column_.word_bytes;
    require(bytes <= record.size - at);
    at += bytes;
    if (column_.type == TraitType::string) {
      for (int64_t i = 0; i < length; ++i)
        add_text(record, at, is_there, load<uint32_t>(words + 4 * i));
    } else if (is_there) {
      add_words(words, bytes);
    }
  }

  const RecordColumn &column_;
  int width_;
  bool is_signed_;
  int64_t base_ = 0;
  std::vector<uint8_t> data_, present_, lengths_;
  std::vector<Bytes> texts_;
  std::vector<uint32_t> codes_;
  FlatMap<TextKey, uint32_t> by_text_;
};

} // namespace

RecordFormat::RecordFormat(int number, int64_t record_bytes, std::vector<RecordColumn> columns)
    : number_(number), record_bytes_(record_bytes), columns_(std::move(columns)) {
  if (record_bytes < head_bytes) throw std::invalid_argument("a record is shorter than its head");
  for (const RecordColumn &column : columns_) {
    if (column.word_bytes < 1 || column.word_bytes > 8 || column.size < 1 ||
        column.size > record_bytes / column.word_bytes || column.word_at < 0 ||
        column.word_at > record_bytes - column.fixed_bytes() || column.has_at < 0 ||
        column.has_at >= record_bytes || column.length_max < 0 ||
        column.length_max > std::numeric_limits<uint16_t>::max() ||
        (column.type == TraitType::string && column.word_bytes != 4) ||
        (column.type == TraitType::float16 && column.word_bytes != 2) ||
        (column.type == TraitType::float32 && column.word_bytes != 4) ||
        (column.type == TraitType::float64 && column.word_bytes != 8) ||
        (column.type == TraitType::categorical && column.word_bytes != 8))
      throw std::invalid_argument("a column lies outside its record");
  }
}

bool RecordFormat::is_of(Bytes record) const {
  require(record.size >= head_bytes);
  return load<uint16_t>(record.data) == number_;
}

std::vector<uint8_t> RecordFormat::events(const std::vector<int64_t> &arrival_ts,
                                          const std::vector<Bytes> &records) const {
  if (arrival_ts.size() != records.size())
    throw std::invalid_argument("arrivals and records differ in number");
  for (const Bytes &record : records) require(record.size >= record_bytes_);
  std::vector<int64_t> rest_at(records.size(), record_bytes_);
  std::vector<RecordsColumn> columns;
  columns.reserve(columns_.size());
  int64_t total = optional_bytes(fields::mutable_events::arrival_ts, 8 * arrival_ts.size());
  for (const RecordColumn &column : columns_) {
    columns.emplace_back(column, records, rest_at);
    total += field_bytes(fields::mutable_events::columns, columns.back().bytes());
  }
  std::vector<uint8_t> message(total);
  Writer out(message.data());
  out.bytes(fields::mutable_events::arrival_ts, arrival_ts.data(), 8 * arrival_ts.size());
  for (const RecordsColumn &column : columns) {
    out.open(fields::mutable_events::columns, column.bytes());
    column.write(out);
  }
  return message;
}

std::vector<int64_t> record_order(const std::vector<Bytes> &records, TraitType event_id) {
  for (const Bytes &record : records) require(record.size >= head_bytes);
  if (event_id == TraitType::string) return ordered_by(records, id_text);
  if (event_id == TraitType::uint64) return ordered_by(records, id_word<uint64_t>);
  return ordered_by(records, id_word<int64_t>);
}

} // namespace thinrow
