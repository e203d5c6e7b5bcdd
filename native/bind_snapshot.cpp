// One user's snapshot in one step, where all that it needs was read before: what the plan of a
// batch does in some twenty calls from Python.
#include "bind_snapshot.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "answer.h"
#include "value_cache.h"

namespace nb = nanobind;

namespace {

// Fields of thinrow.v1.SnapshotResponse, by number.
constexpr uint32_t request_ts_field = 1, start_ts_field = 2, end_ts_field = 3, max_length_field = 4,
                   digest_field = 5, mutable_field = 6, immutable_field = 7;

// They live as long as the list does.
std::vector<Bytes> views_of(const nb::list &values) {
  std::vector<Bytes> views;
  views.reserve(nb::len(values));
  for (const nb::handle value : values) {
    if (value.is_none())
      views.push_back({});
    else
      views.push_back({reinterpret_cast<const uint8_t *>(PyBytes_AS_STRING(value.ptr())),
                       static_cast<int64_t>(PyBytes_GET_SIZE(value.ptr()))});
  }
  return views;
}

// The values of keys; nothing where one is not in memory.
std::optional<nb::list> known(ValueCache &cache, const std::vector<uint8_t> &keys) {
  const nb::tuple found = cache.look_up(nb::bytes(keys.data(), keys.size()));
  if (nb::borrow<nb::list>(found[1]).size()) return std::nullopt;
  return nb::borrow<nb::list>(found[0]);
}

// One projection of one generation.
class OneUser {
 public:
  using Told = std::tuple<int, bool, bool, int64_t>;

  OneUser(const std::vector<Told> &groups, std::vector<Trait> key_traits, std::vector<Trait> traits,
          int64_t sequence_length, bool head, std::vector<int64_t> watermarks, int64_t generation,
          int64_t event_bytes)
      : key_traits_(std::move(key_traits)),
        traits_(std::move(traits)),
        sequence_length_(sequence_length),
        head_(head),
        watermarks_(std::move(watermarks)),
        generation_(generation),
        event_bytes_(event_bytes) {
    if (watermarks_.empty()) throw std::invalid_argument("a generation has a watermark");
    for (const auto &[number, is_wanted, is_key, bytes] : groups)
      groups_.push_back({number, is_wanted, is_key, bytes});
  }

  // The bytes of a SnapshotResponse, and how many values were asked for. None where one of them is
  // not in memory, or where the work may hold more than `work_bytes_max`.
  nb::object answer(ValueCache &cache, DigestMemory &memory, nb::callable text_hash,
                    int64_t user_id, int64_t start_ts, int64_t end_ts, int64_t max_length,
                    int64_t request_ts, int64_t mutable_length, nb::bytes mutable_events,
                    int64_t work_bytes_max, int64_t response_bytes_max) const {
    const auto start = std::chrono::steady_clock::now();
    Plan plan({{user_id, start_ts, end_ts, max_length, 0, request_ts, mutable_length}}, watermarks_,
              sequence_length_, head_, true);
    const auto directories = known(cache, plan.directory_keys());
    if (!directories) return nb::none();
    plan.choose(views_of(*directories), groups_);
    const int64_t stripe_bytes = plan.stripe_bytes_at_most();
    const int64_t beside_bytes =
        plan.events_at_most() * event_bytes_ + static_cast<int64_t>(mutable_events.size());
    if (stripe_bytes + beside_bytes > work_bytes_max) return nb::none();
    const auto stripes = known(cache, plan.stripe_keys());
    if (!stripes) return nb::none();
    const std::vector<Bytes> views = views_of(*stripes);
    int64_t memory_bytes = 0;
    for (const Bytes &view : views) {
      if (!view.data) return nb::none(); // damage: to be told by who can name the file
      memory_bytes += stripe_memory_bytes(view);
    }
    if (std::max(stripe_bytes, memory_bytes) + beside_bytes > work_bytes_max) return nb::none();
    plan.take(views);
    std::vector<Trait> key_traits = placed(plan, key_traits_), traits = placed(plan, traits_);
    plan.resolve(
        key_traits,
        [&](Bytes value) {
          return nb::cast<uint64_t>(text_hash(nb::bytes(value.data, value.size)));
        },
        memory);
    const Answer immutable(plan, traits, generation_, watermarks_.back(), response_bytes_max);
    const Example &example = plan.examples.front();
    const int64_t mutable_bytes =
        example.status == Status::ok ? static_cast<int64_t>(mutable_events.size()) : 0;
    const int64_t immutable_bytes = immutable.bytes(std::nullopt);
    const int64_t size =
        number_bytes(request_ts_field, request_ts) + number_bytes(start_ts_field, start_ts) +
        number_bytes(end_ts_field, end_ts) + number_bytes(max_length_field, max_length) +
        (example.digest ? tag_bytes(digest_field) + 8 : 0) +
        optional_bytes(mutable_field, mutable_bytes) +
        field_bytes(immutable_field, immutable_bytes);
    // Bytes that nobody else has seen yet may be written.
    nb::bytes message = nb::steal<nb::bytes>(PyBytes_FromStringAndSize(nullptr, size));
    if (!message.ptr()) throw nb::python_error();
    auto *begin = reinterpret_cast<uint8_t *>(PyBytes_AS_STRING(message.ptr()));
    Writer out(begin);
    out.number(request_ts_field, request_ts);
    out.number(start_ts_field, start_ts);
    out.number(end_ts_field, end_ts);
    out.number(max_length_field, max_length);
    if (example.digest) {
      out.tag(digest_field, Wire::fixed64);
      out.raw(&example.digest, 8);
    }
    out.bytes(mutable_field, mutable_events.c_str(), mutable_bytes);
    out.open(immutable_field, immutable_bytes);
    immutable.write(out, std::nullopt, [&] {
      const auto taken = std::chrono::steady_clock::now() - start;
      return std::chrono::duration_cast<std::chrono::microseconds>(taken).count();
    });
    if (out.at() != begin + size) throw std::logic_error("a snapshot has another size");
    return nb::make_tuple(message, directories->size() + views.size());
  }

 private:
  static std::vector<Trait> placed(const Plan &plan, std::vector<Trait> traits) {
    for (Trait &trait : traits) trait.slot = plan.slot_of(trait.group);
    return traits;
  }

  std::vector<Group> groups_;
  std::vector<Trait> key_traits_, traits_;
  int64_t sequence_length_;
  bool head_;
  std::vector<int64_t> watermarks_;
  int64_t generation_, event_bytes_;
};

} // namespace

void bind_snapshot(nb::module_ &m) {
  nb::class_<OneUser>(m, "OneUser")
      .def(nb::init<const std::vector<OneUser::Told> &, std::vector<Trait>, std::vector<Trait>,
                    int64_t, bool, std::vector<int64_t>, int64_t, int64_t>())
      .def("answer", &OneUser::answer);
}
