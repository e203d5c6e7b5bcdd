// The numbers of thinrow.v1's fields and enumeration values that the native code reads or writes.
// tests compare each with the descriptors: a namespace is named after its message, a constant after
// its field (with a final underscore where the name is a keyword), an enum after the enumeration.
#pragma once

#include <cstdint>

namespace thinrow {

enum class Status : uint8_t {
  ok = 1,
  not_ready = 2,
  expired = 3,
  digest_mismatch = 4,
  erased = 5,
  invalid = 6,
  elsewhere = 7,
};

enum class Truncation : uint8_t { newest = 1, head = 2 };

// Only the types that native code treats specially; it handles all others by their width.
enum class TraitType : int {
  int8 = 1,
  int16 = 2,
  int32 = 3,
  int64 = 4,
  uint64 = 8,
  float16 = 9,
  float32 = 10,
  float64 = 11,
  categorical = 13,
  string = 14,
};

namespace fields {

namespace materialize_request {
constexpr uint32_t tenant = 1, projection = 2, user_ids = 3, start_ts = 4, end_ts = 5,
                   max_lengths = 6, digests = 7, request_ts = 8, mutable_lengths = 9,
                   user_id_kind = 10, user_texts = 11, map_version = 12;
} // namespace materialize_request

namespace materialize_stream_request {
constexpr uint32_t cursor = 1, request = 2, traceparent = 3;
} // namespace materialize_stream_request

namespace materialize_response {
constexpr uint32_t generation = 1, watermark_ts = 2, statuses = 3, view_starts = 4,
                   view_lengths = 5, block_lengths = 6, columns = 7, sequence_length = 8,
                   truncation = 9, server_us = 10, map_version = 11;
} // namespace materialize_response

namespace materialize_stream_response {
constexpr uint32_t cursor = 1, response = 2;
} // namespace materialize_stream_response

namespace column {
constexpr uint32_t trait = 1, type = 2, vector_size = 3, nullable = 4, bases = 5, widths = 6,
                   data = 7, present = 8, dictionary = 9, strings = 10, default_word = 11,
                   default_string = 12, list_length_max = 13, list_lengths = 14, filled = 15,
                   codes_end = 16;
} // namespace column

namespace snapshot_response {
constexpr uint32_t request_ts = 1, start_ts = 2, end_ts = 3, max_length = 4, digest = 5,
                   mutable_ = 6, immutable = 7;
} // namespace snapshot_response

namespace mutable_events {
constexpr uint32_t arrival_ts = 1, columns = 2;
} // namespace mutable_events

namespace user_events {
constexpr uint32_t user_id = 1, user_text = 2, events = 3;
} // namespace user_events

namespace event {
constexpr uint32_t event_ts = 1, event_id = 2, event_id_text = 3, traits = 4;
} // namespace event

namespace traits_entry {
constexpr uint32_t key = 1, value = 2;
} // namespace traits_entry

namespace trait_value {
constexpr uint32_t integer = 1, number = 2, text = 3, elements = 4;
} // namespace trait_value

namespace trait_values {
constexpr uint32_t integers = 1, numbers = 2, texts = 3;
} // namespace trait_values

} // namespace fields

} // namespace thinrow
