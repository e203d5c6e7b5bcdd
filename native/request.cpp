#include "request.h"

#include <stdexcept>

#include "fields.h"
#include "protobuf.h"

namespace thinrow {

namespace {

bool is_utf8(Bytes text) {
  for (int64_t at = 0; at < text.size;) {
    const uint8_t first = text.data[at++];
    if (first < 0x80) continue;
    if (first < 0xc2 || first > 0xf4) return false;
    // The second byte's range excludes overlong forms, surrogates, and what follows U+10FFFF.
    uint8_t low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    uint8_t high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    for (int more = first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3; more; --more) {
      if (at == text.size || text.data[at] < low || text.data[at] > high) return false;
      ++at;
      low = 0x80;
      high = 0xbf;
    }
  }
  return true;
}

std::string string_of(Bytes bytes) {
  return {reinterpret_cast<const char *>(bytes.data), static_cast<size_t>(bytes.size)};
}

std::string text_of(Bytes bytes) {
  if (!is_utf8(bytes)) throw std::invalid_argument("a text is no UTF-8");
  return string_of(bytes);
}

} // namespace

template <typename Number>
void MaterializeRequest::add(Column column, Number Pointer::*member, Number value) {
  const int64_t row = counts_[column]++;
  if (row >= examples_max_) return;
  if (row >= static_cast<int64_t>(rows_.size())) rows_.resize(static_cast<size_t>(row) + 1);
  rows_[static_cast<size_t>(row)].*member = value;
}

void MaterializeRequest::merge(Bytes message) {
  namespace field = fields::materialize_request;
  // A known field of another wire type is an unknown field, and skipped.
  for (Reader in(message); in.next();) {
    const auto numbers = [&](Column column, int64_t Pointer::*member) {
      if (in.type() != Wire::varint && in.type() != Wire::length) return;
      in.for_each_number(
          [&](uint64_t number) { add(column, member, static_cast<int64_t>(number)); });
    };
    const auto fixed = [&](Column column, auto Pointer::*member) {
      if (in.type() != Wire::fixed64 && in.type() != Wire::length) return;
      using Number = std::decay_t<decltype(Pointer{}.*member)>;
      in.for_each_fixed64<Number>([&](Number number) { add(column, member, number); });
    };
    switch (in.field()) {
      case field::tenant:
        if (in.type() == Wire::length) tenant_ = text_of(in.bytes());
        break;
      case field::projection:
        // Messages one after the other are one merged message.
        if (in.type() == Wire::length)
          projection_ = std::move(projection_).value_or("") + string_of(in.bytes());
        break;
      case field::user_ids: fixed(user_ids, &Pointer::user_id); break;
      case field::start_ts: numbers(start_ts, &Pointer::start_ts); break;
      case field::end_ts: numbers(end_ts, &Pointer::end_ts); break;
      case field::max_lengths: numbers(max_lengths, &Pointer::max_length); break;
      case field::digests: fixed(digests, &Pointer::digest); break;
      case field::request_ts: numbers(request_ts, &Pointer::request_ts); break;
      case field::mutable_lengths: numbers(mutable_lengths, &Pointer::mutable_length); break;
      case field::user_id_kind:
        if (in.type() == Wire::varint) user_id_kind_ = in.number();
        break;
      case field::map_version:
        if (in.type() == Wire::varint) map_version_ = in.number();
        break;
      case field::user_texts:
        if (in.type() != Wire::length) break;
        if (counts_[user_texts]++ < examples_max_) texts_.push_back(text_of(in.bytes()));
        break;
      default: break;
    }
  }
}

std::vector<int64_t> MaterializeRequest::ids() const {
  const int64_t kept = std::min(counts_[user_ids], examples_max_);
  std::vector<int64_t> ids(static_cast<size_t>(kept));
  for (size_t row = 0; row < ids.size(); ++row) ids[row] = rows_[row].user_id;
  return ids;
}

void MaterializeRequest::set_ids(const int64_t *ids, int64_t size) {
  const int64_t users = std::max(counts_[user_ids], counts_[user_texts]);
  if (size != users || size > examples_max_)
    throw std::invalid_argument("keys and users differ in number");
  counts_[user_ids] = 0;
  for (int64_t row = 0; row < size; ++row) add(user_ids, &Pointer::user_id, ids[row]);
}

void MaterializeRequest::set_elsewhere(const bool *is_elsewhere, int64_t size) {
  if (size != counts_[user_ids] || size > static_cast<int64_t>(rows_.size()))
    throw std::invalid_argument("marks and users differ in number");
  for (int64_t row = 0; row < size; ++row) rows_[row].is_elsewhere = is_elsewhere[row];
}

std::vector<Pointer> MaterializeRequest::pointers() const {
  const int64_t examples = counts_[user_ids];
  for (int column = 0; column < columns; ++column)
    if (counts_[column] != examples && (counts_[column] || column == end_ts))
      throw std::invalid_argument("columns of pointers differ in length");
  if (examples > examples_max_) throw std::invalid_argument("there are too many examples");
  std::vector<Pointer> pointers = rows_;
  if (!counts_[request_ts])
    for (Pointer &pointer : pointers) pointer.request_ts = pointer.end_ts;
  return pointers;
}

MaterializeStreamRequest::MaterializeStreamRequest(Bytes message, int64_t examples_max)
    : request(examples_max, message.size) {
  namespace field = fields::materialize_stream_request;
  for (Reader in(message); in.next();) {
    if (in.field() == field::cursor && in.type() == Wire::varint) cursor = in.number();
    if (in.type() != Wire::length) continue;
    if (in.field() == field::request) {
      has_request = true;
      request.merge(in.bytes());
    }
    if (in.field() == field::traceparent) traceparent = text_of(in.bytes());
  }
}

} // namespace thinrow
