// Fields of thinrow.v1's messages, by number.
#pragma once

#include <cstdint>

namespace response {
constexpr uint32_t generation = 1, watermark_ts = 2, statuses = 3, view_starts = 4,
                   view_lengths = 5, block_lengths = 6, columns = 7, sequence_length = 8,
                   truncation = 9, server_us = 10;
constexpr uint64_t truncation_newest = 1, truncation_head = 2;
} // namespace response
namespace stream {
constexpr uint32_t cursor = 1, response = 2;
} // namespace stream
namespace column {
constexpr uint32_t trait = 1, type = 2, vector_size = 3, nullable = 4, bases = 5, widths = 6,
                   data = 7, present = 8, dictionary = 9, strings = 10, default_word = 11,
                   default_string = 12;
} // namespace column
