#include "plan.h"

#include <algorithm>
#include <optional>

#include "errors.h"
#include "flat_map.h"

namespace thinrow {

namespace {

// A length without limit; ordinals can be added to and subtracted from it without overflow.
constexpr int64_t unlimited = std::numeric_limits<int64_t>::max() / 4;

constexpr int64_t directory_row_bytes = 24, header_rows = 2, directory_format = 1;
constexpr int64_t header_bytes = header_rows * directory_row_bytes;

Status status_without_reading(const Pointer &pointer, const std::vector<int64_t> &watermarks) {
  if (pointer.is_elsewhere) return Status::elsewhere;
  const bool is_empty = pointer.start_ts == pointer.end_ts;
  const auto closing = std::lower_bound(watermarks.begin(), watermarks.end(), pointer.end_ts);
  const bool is_past = closing == watermarks.end();
  // All events before end_ts arrived before the watermark that closes end_ts's generation. If the
  // request is older than that watermark, the answer may contain events from its future.
  const bool is_from_future = !is_empty && !is_past && *closing > pointer.request_ts;
  if (pointer.start_ts > pointer.end_ts || pointer.max_length < 0 || pointer.mutable_length < 0 ||
      pointer.end_ts > pointer.request_ts || is_from_future)
    return Status::invalid;
  return !is_empty && is_past ? Status::not_ready : Status::ok;
}

struct UserKey {
  int64_t id = 0;
  std::array<uint64_t, 1> hashed() const { return {static_cast<uint64_t>(id)}; }
  bool operator==(const UserKey &other) const { return id == other.id; }
};

void append_key(std::vector<uint8_t> &keys, int64_t user_id, int group, int64_t stripe) {
  for (int shift = 56; shift >= 0; shift -= 8)
    keys.push_back(static_cast<uint8_t>(static_cast<uint64_t>(user_id) >> shift));
  keys.push_back(static_cast<uint8_t>(group));
  for (int shift = 24; shift >= 0; shift -= 8)
    keys.push_back(static_cast<uint8_t>(stripe >> shift));
}

// Returns visible_ts of every event of a stripe in which a window begins or ends.
std::vector<int64_t> visible_times(Bytes events, const Stripe &stripe) {
  static const Trait visible{"visible_ts", 1, TraitType::int64, 1, false, false, 0, "",
                             event_group,  0};
  std::vector<int64_t> times(stripe.end - stripe.ordinal);
  decode(Column(events, visible).slice(0, times.size()),
         reinterpret_cast<uint64_t *>(times.data()));
  if (times[0] != stripe.first_ts || !std::is_sorted(times.begin(), times.end()))
    throw Corrupt("a stripe's times differ from its directory's");
  return times;
}

int64_t events_before(const std::vector<int64_t> &times, int64_t ts) {
  return std::lower_bound(times.begin(), times.end(), ts) - times.begin();
}

} // namespace

Plan::Plan(std::vector<Pointer> pointers, const std::vector<int64_t> &watermarks,
           int64_t sequence_length, bool head, bool record_digests)
    : sequence_length_(sequence_length), head_(head), record_digests_(record_digests) {
  if (sequence_length < 0) throw std::invalid_argument("a sequence length must not be negative");
  FlatMap<UserKey, int64_t> numbers;
  examples.resize(pointers.size());
  for (size_t i = 0; i < pointers.size(); ++i) {
    Example &example = examples[i];
    example.pointer = pointers[i];
    example.status = status_without_reading(pointers[i], watermarks);
    // An empty window reads no events, but its user may have been erased.
    example.is_live = example.status == Status::ok;
    if (!example.is_live) continue;
    const auto [number, is_new] = numbers.add({pointers[i].user_id}, users.size());
    if (is_new) users.push_back({pointers[i].user_id});
    example.user = number;
  }
}

std::vector<uint8_t> Plan::directory_keys() const {
  std::vector<uint8_t> keys;
  for (const User &user : users) append_key(keys, user.user_id, 0, 0);
  return keys;
}

void Plan::choose_stripes(const std::vector<Bytes> &directories, std::vector<Group> groups) {
  if (!groups_.empty()) throw std::logic_error("a plan's stripes are already chosen");
  if (directories.size() != users.size())
    throw std::invalid_argument("directories and users differ in number");
  groups_ = std::move(groups);
  for (size_t number = 0; number < users.size(); ++number) {
    User &user = users[number];
    const Bytes directory = directories[number];
    user.begin = user.end = stripes.size();
    if (!directory.data) continue;
    if (directory.size % directory_row_bytes || directory.size < header_bytes)
      throw Corrupt("a directory has an impossible length");
    const auto word = [&](int64_t at) { return load<int64_t>(directory.data + 8 * at); };
    if (word(0) != directory_format) throw Corrupt("a directory has an unknown format");
    const int64_t stripe_count = directory.size / directory_row_bytes - header_rows;
    user.first_stripe = word(1);
    // A key has four bytes for the stripe number.
    if (user.first_stripe < 0 ||
        user.first_stripe > std::numeric_limits<uint32_t>::max() - stripe_count)
      throw Corrupt("a directory numbers its stripes out of range");
    user.event_count = user.first_ordinal = word(2);
    if (user.event_count < 0) throw Corrupt("a directory has a negative number of events");
    user.digest_sum = word(3);
    user.dropped_ts = word(4);
    user.erased_ts = word(5);
    for (int64_t row = header_rows; row < header_rows + stripe_count; ++row) {
      if (user.end > user.begin) stripes.back().end = word(3 * row + 1);
      stripes.push_back({static_cast<int64_t>(number), word(3 * row), word(3 * row + 1),
                         user.event_count, static_cast<uint64_t>(word(3 * row + 2))});
      ++user.end;
    }
    if (user.end > user.begin) user.first_ordinal = stripes[user.begin].ordinal;
    for (int64_t stripe = user.begin; stripe < user.end; ++stripe)
      if (stripes[stripe].ordinal < 0 || stripes[stripe].ordinal >= stripes[stripe].end ||
          stripes[stripe].end - stripes[stripe].ordinal > stripe_events_max ||
          (stripe > user.begin && stripes[stripe].first_ts < stripes[stripe - 1].first_ts))
        throw Corrupt("a directory's stripes are out of order");
  }
  for (Example &example : examples) {
    if (!example.is_live) continue;
    const Pointer &pointer = example.pointer;
    if (pointer.end_ts < users[example.user].erased_ts) {
      example.status = Status::erased;
    } else if (pointer.start_ts < pointer.end_ts) {
      example.is_active = true;
      bound(example);
      mark(example);
    }
  }
}

int64_t Plan::stripe_before(const User &user, int64_t ts) const {
  const auto begin = stripes.begin() + user.begin, end = stripes.begin() + user.end;
  const auto after = std::lower_bound(begin, end, ts, [](const Stripe &stripe, int64_t target) {
    return stripe.first_ts < target;
  });
  return after == begin ? -1 : after - stripes.begin() - 1;
}

void Plan::bound(Example &example) const {
  const Pointer &pointer = example.pointer;
  const User &user = users[example.user];
  example.start_ts = pointer.start_ts ? pointer.start_ts : never_ts;
  example.named = pointer.max_length > 0 ? pointer.max_length : unlimited;
  example.wanted = example.named;
  if (sequence_length_ > 0 && !head_) {
    const int64_t room = std::max<int64_t>(0, sequence_length_ - pointer.mutable_length);
    example.wanted = std::min(example.named, room);
  }
  example.newest = stripe_before(user, pointer.end_ts);
  if (example.newest < 0) return;
  example.end_at_least = stripes[example.newest].ordinal + 1;
  example.oldest = stripe_before(user, example.start_ts);
  // The wanted events start after that stripe.
  if (example.oldest >= 0 && stripes[example.oldest].end <= example.end_at_least - example.wanted)
    example.oldest = -1;
}

void Plan::mark(Example &example) {
  if (example.newest < 0) return;
  const int64_t newest = example.newest, oldest = example.oldest;
  example.is_checked = record_digests_ || example.pointer.digest;
  stripes[newest].is_cut = true;
  stripes[newest].is_checked |= example.is_checked;
  if (oldest >= 0) stripes[oldest].is_cut = true;
  if (!example.wanted) return;
  const int64_t from = users[example.user].first_ordinal;
  int64_t least = std::max(example.end_at_least - example.wanted, from);
  if (oldest >= 0) least = std::max(least, stripes[oldest].ordinal);
  const int64_t first = stripe_at(example.user, least);
  int64_t last = newest;
  if (head_ && sequence_length_ && example.named == unlimited) {
    // Without a length limit, the pointer's first event is at most one stripe after its start.
    const int64_t begins = oldest >= 0 ? stripes[oldest].end : from;
    const int64_t room = example.end_at_least - begins;
    const int64_t reach =
        sequence_length_ < room ? begins + sequence_length_ : example.end_at_least;
    last = std::max(first, std::min(last, stripe_at(example.user, reach - 1)));
  }
  for (int64_t stripe = first; stripe <= last; ++stripe) stripes[stripe].is_needed = true;
}

int64_t Plan::stripe_at(int64_t user, int64_t ordinal) const {
  const auto begin = stripes.begin() + users[user].begin, end = stripes.begin() + users[user].end;
  const auto after = std::upper_bound(
      begin, end, ordinal,
      [](int64_t target, const Stripe &stripe) { return target < stripe.ordinal; });
  return (after == begin ? begin : after - 1) - stripes.begin();
}

bool Plan::is_chosen(const Stripe &stripe, const Group &group) const {
  return (group.is_wanted && stripe.is_needed) || (group.is_key && stripe.is_checked) ||
         (group.number == event_group && stripe.is_cut);
}

std::vector<uint8_t> Plan::stripe_keys() const {
  std::vector<uint8_t> keys;
  for (const User &user : users)
    for (const Group &group : groups_)
      for (int64_t stripe = user.begin; stripe < user.end; ++stripe)
        if (is_chosen(stripes[stripe], group))
          append_key(keys, user.user_id, group.number, user.first_stripe + stripe - user.begin);
  return keys;
}

void Plan::set_stripes(const std::vector<Bytes> &values) {
  values_ = values;
  places_.assign(groups_.size() * stripes.size(), -1);
  size_t place = 0;
  for (const User &user : users)
    for (size_t slot = 0; slot < groups_.size(); ++slot)
      for (int64_t stripe = user.begin; stripe < user.end; ++stripe) {
        if (!is_chosen(stripes[stripe], groups_[slot])) continue;
        if (place == values_.size()) throw Corrupt("a stripe is missing");
        if (stripe_events(values_[place]) != stripes[stripe].end - stripes[stripe].ordinal)
          throw Corrupt("a stripe's length differs from its directory's");
        places_[slot * stripes.size() + stripe] = place++;
      }
}

Bytes Plan::value(int slot, int64_t stripe) const {
  const int64_t place = places_.at(slot * stripes.size() + stripe);
  if (place < 0) throw Corrupt("a directory names an event that its stripe lacks");
  return values_[place];
}

int Plan::slot_of(int group) const {
  for (size_t slot = 0; slot < groups_.size(); ++slot)
    if (groups_[slot].number == group) return static_cast<int>(slot);
  throw std::invalid_argument("a trait's group is not among those read");
}

int64_t Plan::events_at_most() const {
  std::vector<int64_t> totals(users.size(), 0);
  for (const Example &example : examples) {
    if (!example.is_active || example.newest < 0) continue;
    const User &user = users[example.user];
    int64_t most = std::min(stripes[example.newest].end - user.first_ordinal, example.wanted);
    if (head_ && sequence_length_) most = std::min(most, sequence_length_);
    // The answer contains each user's history at most once.
    totals[example.user] =
        std::min(totals[example.user] + most, user.event_count - user.first_ordinal);
  }
  int64_t total = 0;
  for (const int64_t events : totals) total += events;
  return total;
}

int64_t Plan::stripe_bytes_at_most() const {
  int64_t total = 0;
  for (const Stripe &stripe : stripes)
    for (const Group &group : groups_)
      if (is_chosen(stripe, group)) total += (stripe.end - stripe.ordinal) * group.event_bytes;
  return total;
}

void Plan::resolve(const std::vector<Trait> &key_traits,
                   const std::function<uint64_t(Bytes)> &text_hash, DigestMemory &memory) {
  const int events = slot_of(event_group);
  std::vector<std::vector<int64_t>> times(stripes.size());
  const auto cut = [&](int64_t stripe, int64_t ts) {
    if (times[stripe].empty())
      times[stripe] = visible_times(value(events, stripe), stripes[stripe]);
    return events_before(times[stripe], ts);
  };
  // Number of events of each stripe whose digest sums must be computed, since `memory` lacks them.
  std::vector<int64_t> longest(stripes.size(), 0);
  std::vector<int64_t> ends(examples.size(), 0);
  std::vector<std::optional<uint64_t>> remembered(examples.size());
  for (size_t i = 0; i < examples.size(); ++i) {
    Example &example = examples[i];
    if (!example.is_active) continue;
    const User &user = users[example.user];
    int64_t begin = user.first_ordinal, end = user.first_ordinal;
    if (example.newest >= 0) {
      const int64_t inside = cut(example.newest, example.pointer.end_ts);
      // Checks the events themselves, however they were found: none is from the request's future.
      if (!inside || times[example.newest][inside - 1] >= example.pointer.end_ts)
        throw Corrupt("a directory names an event that its stripe lacks");
      end = stripes[example.newest].ordinal + inside;
      if (example.is_checked && end < stripes[example.newest].end) {
        remembered[i] = memory.find(user.user_id, end);
        if (!remembered[i]) longest[example.newest] = std::max(longest[example.newest], inside);
      }
    }
    if (example.oldest >= 0)
      begin = stripes[example.oldest].ordinal + cut(example.oldest, example.start_ts);
    ends[i] = end;
    example.available_count = std::max<int64_t>(0, end - begin);
    if (user.dropped_ts != never_ts && user.dropped_ts >= example.start_ts &&
        example.available_count < example.wanted)
      example.status = Status::expired;
    example.count = std::min(example.available_count, example.wanted);
    example.first = end - example.count;
    if (head_ && sequence_length_ > 0) example.count = std::min(example.count, sequence_length_);
  }

  std::vector<std::vector<uint64_t>> sums(stripes.size());
  for (size_t stripe = 0; stripe < stripes.size(); ++stripe)
    if (longest[stripe]) {
      std::vector<Bytes> parts;
      parts.reserve(key_traits.size());
      for (const Trait &trait : key_traits) parts.push_back(value(trait.slot, stripe));
      sums[stripe] = digest_sums(key_traits, parts, stripes[stripe].ordinal, longest[stripe],
                                 stripes[stripe].sum, text_hash);
    }

  for (size_t i = 0; i < examples.size(); ++i) {
    Example &example = examples[i];
    if (!example.is_active) continue;
    const User &user = users[example.user];
    const int64_t newest = example.newest;
    if (example.is_checked || (newest < 0 && user.dropped_ts < example.pointer.end_ts)) {
      // The directory has the sum at the end of each stripe; inside one it is computed.
      const int64_t following = newest < 0 ? user.begin : newest + 1;
      uint64_t sum = following < user.end ? stripes[following].sum : user.digest_sum;
      if (const std::optional<uint64_t> &known = remembered[i]) {
        sum = *known;
      } else if (newest >= 0 && ends[i] < stripes[newest].end) {
        sum = sums[newest][ends[i] - stripes[newest].ordinal - 1];
        memory.add(user.user_id, ends[i], sum);
      }
      example.digest = close_digest(sum, ends[i]);
    }
    if (example.status == Status::ok && example.pointer.digest && example.digest &&
        example.digest != example.pointer.digest)
      example.status = Status::digest_mismatch;
    if (example.status != Status::ok) example.first = example.count = 0;
  }
}

} // namespace thinrow
