// Reads messages of a topic of events (thinrow.v1.UserEvents) into columns of their fields.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "flat_map.h"
#include "protobuf.h"

namespace thinrow {

// The field of a TraitValue that holds an element of a trait.
enum class ValueField : int { integer = 0, number = 1, text = 2 };

// The values of one trait of the events that have it. Texts point into the messages.
struct ScannedTrait {
  std::string name;
  ValueField field;
  bool is_many; // a vector or a list, whose values are the elements of `lengths`
  std::vector<int64_t> rows;
  std::vector<int64_t> lengths;
  std::vector<int64_t> integers;
  std::vector<double> numbers;
  std::vector<Bytes> texts;
};

// Fields of consecutive messages; an event's row counts from the first event of the first message.
class EventScan {
 public:
  EventScan(std::vector<ScannedTrait> traits, int64_t events_max);

  // Adds a message, which must outlive the scan. Throws std::invalid_argument if it is malformed,
  // has more than `events_max` events, or has a value that no event of these traits has.
  void add(Bytes message);

  std::vector<int64_t> user_ids, counts, event_ts, id_rows, integer_ids;
  std::vector<Bytes> user_texts, text_ids;
  std::vector<ScannedTrait> traits;

 private:
  void add_event(Bytes message);
  void add_trait(Bytes entry, int64_t row);

  FlatMap<TextKey, uint32_t> by_name_;
  int64_t events_max_;
};

} // namespace thinrow
