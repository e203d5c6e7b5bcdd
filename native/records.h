// The mutable tier's records (server/thinrow/online/records.py) as the wire's columns: one block,
// whose words need no narrowing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "protobuf.h"

// Where a record has one column's value; its texts stand behind the record, in column order.
struct RecordColumn {
  std::string name;
  int type;     // as thinrow.v1.TraitType numbers them
  int64_t size; // words per event
  bool nullable;
  int64_t word_bytes;
  int64_t word_at, has_at; // has_at: of the byte that is 0 where the value is absent
};

class RecordFormat {
 public:
  RecordFormat(int number, int64_t record_bytes, std::vector<RecordColumn> columns);

  // Whether the record is of this format: its schema has this number.
  bool is_of(Bytes record) const;

  // The content of a MutableEvents. Throws Corrupt for a record that is cut off.
  std::vector<uint8_t> events(const std::vector<int64_t> &arrival_ts,
                              const std::vector<Bytes> &records) const;

 private:
  int number_;
  int64_t record_bytes_;
  std::vector<RecordColumn> columns_;
};

// Places of records in the order of event_ts, whether there is an id, and event_id. Empty where
// two are equal in all of them: their traits decide. Throws Corrupt for a record that is cut off.
std::vector<int64_t> record_order(const std::vector<Bytes> &records);
