#include "event_scan.h"

#include <stdexcept>
#include <string_view>

#include "fields.h"

namespace thinrow {

namespace {

std::string_view text_of(Bytes bytes) {
  return {reinterpret_cast<const char *>(bytes.data), static_cast<size_t>(bytes.size)};
}

[[noreturn]] void refuse(const std::string &name, const char *reason) {
  throw std::invalid_argument(name + " " + reason);
}

// Adds the elements of a vector or a list; returns their number.
int64_t add_elements(Bytes message, ScannedTrait &trait) {
  namespace elements = fields::trait_values;
  const size_t before = trait.integers.size() + trait.numbers.size() + trait.texts.size();
  for (Reader reader(message); reader.next();) {
    const uint32_t field = reader.field();
    if (field == elements::integers && trait.field == ValueField::integer)
      reader.append_to(trait.integers);
    else if (field == elements::numbers && trait.field == ValueField::number)
      reader.append_fixed64_to(trait.numbers);
    else if (field == elements::texts && trait.field == ValueField::text)
      trait.texts.push_back(reader.bytes());
    else if (field <= elements::texts)
      refuse(trait.name, "has elements of another type");
  }
  return static_cast<int64_t>(trait.integers.size() + trait.numbers.size() + trait.texts.size() -
                              before);
}

void add_value(Bytes message, ScannedTrait &trait) {
  namespace value = fields::trait_value;
  int values = 0;
  for (Reader reader(message); reader.next();) {
    const uint32_t field = reader.field();
    if (field > value::elements) continue;
    ++values;
    if (field == value::elements && trait.is_many)
      trait.lengths.push_back(add_elements(reader.bytes(), trait));
    else if (trait.is_many)
      refuse(trait.name, "has one value, and needs elements");
    else if (field == value::integer && trait.field == ValueField::integer)
      trait.integers.push_back(static_cast<int64_t>(reader.number()));
    else if (field == value::number && trait.field == ValueField::number)
      trait.numbers.push_back(reader.float64());
    else if (field == value::text && trait.field == ValueField::text)
      trait.texts.push_back(reader.bytes());
    else
      refuse(trait.name, "has a value of another type");
  }
  if (values != 1) refuse(trait.name, "has no value, or several");
}

} // namespace

EventScan::EventScan(std::vector<ScannedTrait> given, int64_t events_max)
    : traits(std::move(given)), events_max_(events_max) {
  for (size_t place = 0; place < traits.size(); ++place)
    by_name_.add({traits[place].name}, static_cast<uint32_t>(place));
}

void EventScan::add(Bytes message) {
  namespace user_events = fields::user_events;
  const size_t first = event_ts.size();
  int users = 0;
  for (Reader reader(message); reader.next();) {
    switch (reader.field()) {
      case user_events::user_id:
        user_ids.push_back(static_cast<int64_t>(reader.number()));
        ++users;
        break;
      case user_events::user_text:
        user_texts.push_back(reader.bytes());
        ++users;
        break;
      case user_events::events:
        if (static_cast<int64_t>(event_ts.size() - first) == events_max_)
          throw std::invalid_argument("a message has too many events");
        add_event(reader.bytes());
        break;
      default: break;
    }
  }
  if (users != 1) throw std::invalid_argument("a message names no user, or several");
  counts.push_back(static_cast<int64_t>(event_ts.size() - first));
}

void EventScan::add_event(Bytes message) {
  namespace event = fields::event;
  const auto row = static_cast<int64_t>(event_ts.size());
  int times = 0, ids = 0;
  for (Reader reader(message); reader.next();) {
    switch (reader.field()) {
      case event::event_ts:
        event_ts.push_back(static_cast<int64_t>(reader.number()));
        ++times;
        break;
      case event::event_id:
        integer_ids.push_back(static_cast<int64_t>(reader.number()));
        ++ids;
        break;
      case event::event_id_text:
        text_ids.push_back(reader.bytes());
        ++ids;
        break;
      case event::traits: add_trait(reader.bytes(), row); break;
      default: break;
    }
  }
  if (times != 1) throw std::invalid_argument("an event has no event_ts, or several");
  if (ids > 1) throw std::invalid_argument("an event has several ids");
  if (ids) id_rows.push_back(row);
}

void EventScan::add_trait(Bytes entry, int64_t row) {
  namespace traits_entry = fields::traits_entry;
  Bytes name, value;
  int names = 0, values = 0;
  for (Reader reader(entry); reader.next();) {
    if (reader.field() == traits_entry::key) {
      name = reader.bytes();
      ++names;
    } else if (reader.field() == traits_entry::value) {
      value = reader.bytes();
      ++values;
    }
  }
  // Readers would choose one of several, or merge them: there is no one meaning.
  if (names > 1 || values > 1)
    throw std::invalid_argument("an event has a trait with several names or values");
  const TextKey key{text_of(name)};
  const uint32_t *place = by_name_.find(key, by_name_.hash_of(key));
  if (!place) throw std::invalid_argument("an event has a trait that the schema lacks");
  ScannedTrait &trait = traits[*place];
  if (!trait.rows.empty() && trait.rows.back() == row) refuse(trait.name, "comes twice");
  trait.rows.push_back(row);
  add_value(value, trait);
}

} // namespace thinrow
