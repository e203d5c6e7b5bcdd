// Encodes the mutable tier's records as events of messages of a topic; the inverse of EventScan.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "records.h"

namespace thinrow {

// Encoded fields `events` of a UserEvents, one after the other.
struct WrittenEvents {
  std::vector<uint8_t> data;
  std::vector<size_t> ends; // of each field in `data`
};

// Encodes records of the format. Throws Corrupt if one is cut off.
WrittenEvents write_events(const RecordFormat &format, const std::vector<Bytes> &records);

} // namespace thinrow
