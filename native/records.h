// Encodes the mutable tier's records (server/thinrow/online/records.py) as columns of the wire,
// each of one block whose words are not narrowed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fields.h"
#include "protobuf.h"

namespace thinrow {

// The position of one column's value in a record. Texts and lists follow the record, in column
// order: of a list its elements, of a list of texts the size of each text, four bytes, and then the
// texts.
struct RecordColumn {
  std::string name;
  TraitType type;
  int64_t size; // words per event; 1 for a list
  bool nullable;
  int64_t word_bytes;      // of each element of a list
  int64_t word_at, has_at; // has_at: position of the byte that is 0 if the value is absent
  int64_t length_max;      // limit on the elements of a list, whose number is the word; 0: no list

  // Returns the bytes of the words that lie in the fixed part of a record.
  int64_t fixed_bytes() const { return length_max ? 2 : size * word_bytes; }
};

class RecordFormat {
 public:
  RecordFormat(int number, int64_t record_bytes, std::vector<RecordColumn> columns);

  // Returns true if the record has this format, by the number of its schema.
  bool is_of(Bytes record) const;

  // Returns an encoded MutableEvents. Throws Corrupt if a record is cut off.
  std::vector<uint8_t> events(const std::vector<int64_t> &arrival_ts,
                              const std::vector<Bytes> &records) const;

  int64_t record_bytes() const { return record_bytes_; }

  // event_ts, event_id and the traits in schema order.
  const std::vector<RecordColumn> &columns() const { return columns_; }

 private:
  int number_;
  int64_t record_bytes_;
  std::vector<RecordColumn> columns_;
};

// Returns the order of the records by event_ts, presence of event_id, and event_id, which has the
// given type. Returns an empty order if two records are equal in all three, since their traits
// decide then. Throws Corrupt if a record is cut off.
std::vector<int64_t> record_order(const std::vector<Bytes> &records, TraitType event_id);

} // namespace thinrow
