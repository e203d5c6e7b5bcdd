// Binds the snapshot of a user whose directory and stripes are cached: one native call in place of
// about twenty for a batch.
#include <algorithm>
#include <chrono>

#include "answer.h"
#include "bind.h"
#include "python.h"
#include "value_cache.h"

namespace thinrow {

namespace snapshot = fields::snapshot_response;

namespace {

// Returns the values of keys; nothing if one of them is not cached.
std::optional<nb::list> cached(ValueCache &cache, const std::vector<uint8_t> &keys) {
  const nb::tuple found = cache.look_up(bytes_of(keys));
  if (nb::borrow<nb::list>(found[1]).size()) return std::nullopt;
  return nb::borrow<nb::list>(found[0]);
}

// One projection of one generation.
class CachedSnapshotPath {
 public:
  using Snapshot = nb::typed<nb::tuple, nb::bytes, size_t>;

  CachedSnapshotPath(const std::vector<GroupArguments> &groups, std::vector<Trait> key_traits,
                     std::vector<Trait> traits, int64_t sequence_length, bool head,
                     std::vector<int64_t> watermarks, int64_t generation, int64_t event_bytes)
      : key_traits_(std::move(key_traits)),
        traits_(std::move(traits)),
        sequence_length_(sequence_length),
        head_(head),
        watermarks_(std::move(watermarks)),
        generation_(generation),
        event_bytes_(event_bytes),
        groups_(groups_of(groups)) {
    if (watermarks_.empty())
      throw std::invalid_argument("a generation must have at least one watermark");
  }

  std::optional<Snapshot> answer(ValueCache &cache, DigestMemory &memory, const TextHash &text_hash,
                                 int64_t user_id, int64_t start_ts, int64_t end_ts,
                                 int64_t max_length, int64_t request_ts, int64_t mutable_length,
                                 const nb::bytes &mutable_events, int64_t work_bytes_max,
                                 int64_t response_bytes_max) const {
    const auto start = std::chrono::steady_clock::now();
    Plan plan({{user_id, start_ts, end_ts, max_length, 0, request_ts, mutable_length}}, watermarks_,
              sequence_length_, head_, true);
    const auto directories = cached(cache, plan.directory_keys());
    if (!directories) return std::nullopt;
    plan.choose_stripes(views_of(*directories), groups_);
    const int64_t stripe_bytes = plan.stripe_bytes_at_most();
    const int64_t other_bytes =
        plan.events_at_most() * event_bytes_ + static_cast<int64_t>(mutable_events.size());
    if (stripe_bytes + other_bytes > work_bytes_max) return std::nullopt;
    const auto stripes = cached(cache, plan.stripe_keys());
    if (!stripes) return std::nullopt;
    const std::vector<Bytes> views = views_of(*stripes);
    int64_t memory_bytes = 0;
    for (const Bytes &view : views) {
      if (!view.data) return std::nullopt; // the plan of a batch reports the damaged file
      memory_bytes += stripe_memory_bytes(view);
    }
    if (std::max(stripe_bytes, memory_bytes) + other_bytes > work_bytes_max) return std::nullopt;
    plan.set_stripes(views);
    const std::vector<Trait> key_traits = placed(plan, key_traits_), traits = placed(plan, traits_);
    const auto hash = [&](Bytes text) {
      return nb::cast<uint64_t>(text_hash(nb::bytes(text.data, text.size)));
    };
    plan.resolve(key_traits, hash, memory);
    const Answer immutable(plan, traits, generation_, watermarks_.back(), 0, response_bytes_max);
    const Example &example = plan.examples.front();
    const int64_t mutable_bytes =
        example.status == Status::ok ? static_cast<int64_t>(mutable_events.size()) : 0;
    const int64_t immutable_bytes = immutable.bytes(std::nullopt);
    const int64_t size = number_bytes(snapshot::request_ts, request_ts) +
                         number_bytes(snapshot::start_ts, start_ts) +
                         number_bytes(snapshot::end_ts, end_ts) +
                         number_bytes(snapshot::max_length, max_length) +
                         (example.digest ? tag_bytes(snapshot::digest) + 8 : 0) +
                         optional_bytes(snapshot::mutable_, mutable_bytes) +
                         field_bytes(snapshot::immutable, immutable_bytes);
    nb::bytes message = new_bytes(size);
    Writer out(begin_of(message));
    out.number(snapshot::request_ts, request_ts);
    out.number(snapshot::start_ts, start_ts);
    out.number(snapshot::end_ts, end_ts);
    out.number(snapshot::max_length, max_length);
    if (example.digest) {
      out.tag(snapshot::digest, Wire::fixed64);
      out.raw(&example.digest, 8);
    }
    out.bytes(snapshot::mutable_, mutable_events.data(), mutable_bytes);
    out.open(snapshot::immutable, immutable_bytes);
    immutable.write(out, std::nullopt, [&] {
      const auto taken = std::chrono::steady_clock::now() - start;
      return std::chrono::duration_cast<std::chrono::microseconds>(taken).count();
    });
    if (out.at() != begin_of(message) + size) throw std::logic_error("a snapshot has another size");
    return Snapshot(nb::make_tuple(message, directories->size() + views.size()));
  }

 private:
  static std::vector<Trait> placed(const Plan &plan, std::vector<Trait> traits) {
    for (Trait &trait : traits) trait.slot = plan.slot_of(trait.group);
    return traits;
  }

  std::vector<Trait> key_traits_, traits_;
  int64_t sequence_length_;
  bool head_;
  std::vector<int64_t> watermarks_;
  int64_t generation_, event_bytes_;
  std::vector<Group> groups_;
};

} // namespace

void bind_snapshot(nb::module_ &m) {
  nb::class_<CachedSnapshotPath>(m, "CachedSnapshotPath",
                                 "Snapshots of cached users, of one projection and generation.")
      .def(nb::init<const std::vector<GroupArguments> &, std::vector<Trait>, std::vector<Trait>,
                    int64_t, bool, std::vector<int64_t>, int64_t, int64_t>(),
           "groups"_a, "key_traits"_a, "traits"_a, "sequence_length"_a, "head"_a, "watermarks"_a,
           "generation"_a, "event_bytes"_a,
           R"(Resolve the projection.

Args:
    groups: Groups to read, as for Plan.choose_stripes.
    key_traits: Traits of the digest.
    traits: Traits of the projection.
    sequence_length: Most events of immutable and mutable part; 0 for no limit.
    head: Keep the oldest events instead of the newest.
    watermarks: Watermarks of the generation, ascending.
    generation: Number of the generation.
    event_bytes: Bytes of a decoded event of the projection.)")
      .def("answer", &CachedSnapshotPath::answer, "cache"_a, "memory"_a, "text_hash"_a, "user_id"_a,
           "start_ts"_a, "end_ts"_a, "max_length"_a, "request_ts"_a, "mutable_length"_a,
           "mutable"_a, "work_bytes_max"_a, "response_bytes_max"_a,
           R"(Answer one request.

Args:
    mutable: An encoded MutableEvents of `mutable_length` events.
    work_bytes_max: Bytes of stripes and decoded events that the call may hold.

Returns:
    An encoded SnapshotResponse, and the number of values read. None if a value is not cached or the
    call would hold more than `work_bytes_max`.

Raises:
    AnswerTooLargeError: The response would have more than `response_bytes_max` bytes.
    StoreCorruptError: A stripe or a directory contradicts itself.)");
}

} // namespace thinrow
