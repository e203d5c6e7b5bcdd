// Binds the reading of the store: the plan of a batch, its answer, and the cache of values.
#include <nanobind/stl/string.h>

#include <chrono>
#include <memory>

#include "answer.h"
#include "bind.h"
#include "errors.h"
#include "plan.h"
#include "python.h"
#include "request.h"
#include "value_cache.h"

namespace thinrow {

namespace {

template <typename Field>
auto array_of_field(const std::vector<Example> &examples, Field &&field) {
  std::vector<std::decay_t<decltype(field(examples.front()))>> values;
  values.reserve(examples.size());
  for (const Example &example : examples) values.push_back(field(example));
  return array_of(std::move(values));
}

// Below this number, releasing and acquiring the interpreter's lock takes longer than the work.
constexpr size_t examples_released_min = 16;

// A plan, and the objects whose bytes it refers to.
class BoundPlan {
 public:
  // An encoded message, and the events of its examples.
  using EncodedAnswer = nb::typed<nb::tuple, nb::bytes, int64_t>;
  // Statuses, first ordinals, counts, available counts and digests.
  using Selection =
      nb::typed<nb::tuple, Out<uint8_t>, Out<int64_t>, Out<int64_t>, Out<int64_t>, Out<uint64_t>>;

  BoundPlan(const In<int64_t> &user_ids, const In<int64_t> &start_ts, const In<int64_t> &end_ts,
            const In<int64_t> &max_lengths, const In<uint64_t> &digests,
            const In<int64_t> &request_ts, const In<int64_t> &mutable_lengths,
            const In<int64_t> &watermarks, int64_t sequence_length, bool head, bool record_digests)
      : plan_(
            pointers(user_ids, start_ts, end_ts, max_lengths, digests, request_ts, mutable_lengths),
            {watermarks.data(), watermarks.data() + watermarks.size()}, sequence_length, head,
            record_digests) {}

  BoundPlan(const MaterializeRequest &request, const In<int64_t> &watermarks,
            int64_t sequence_length, bool head, bool record_digests)
      : plan_(request.pointers(), {watermarks.data(), watermarks.data() + watermarks.size()},
              sequence_length, head, record_digests) {}

  nb::bytes directory_keys() const { return bytes_of(plan_.directory_keys()); }

  void choose_stripes(const Values &directories, const std::vector<GroupArguments> &groups) {
    if (directories.size() != plan_.users.size())
      throw std::invalid_argument("directories and users differ in number");
    directories_ = directories;
    const std::vector<Bytes> views = views_of(directories);
    std::vector<Group> chosen = groups_of(groups);
    const auto release = released();
    plan_.choose_stripes(views, std::move(chosen));
  }

  nb::bytes stripe_keys() const { return bytes_of(plan_.stripe_keys()); }

  int64_t set_stripes(const Values &stripes) {
    stripes_ = stripes;
    const std::vector<Bytes> views = views_of(stripes);
    const auto release = released();
    int64_t bytes = 0;
    for (const Bytes &view : views) {
      if (!view.data) throw Corrupt("a stripe is missing that its directory names");
      bytes += view.size;
    }
    plan_.set_stripes(views);
    return bytes;
  }

  void resolve(std::vector<Trait> key_traits, const TextHash &text_hash, DigestMemory &memory) {
    place(key_traits);
    const auto hash = [&](Bytes text) {
      const nb::gil_scoped_acquire acquire;
      return nb::cast<uint64_t>(text_hash(nb::bytes(text.data, text.size)));
    };
    const auto release = released();
    plan_.resolve(key_traits, hash, memory);
  }

  EncodedAnswer answer(std::vector<Trait> traits, int64_t generation, int64_t watermark_ts,
                       int64_t bytes_max, std::optional<uint64_t> cursor, uint64_t elapsed_us,
                       uint64_t map_version) {
    const auto start = std::chrono::steady_clock::now();
    place(traits);
    std::optional<Answer> answer;
    {
      const auto release = released();
      answer.emplace(plan_, traits, generation, watermark_ts, map_version, bytes_max);
    }
    const int64_t size = answer->bytes(cursor);
    nb::bytes message = new_bytes(size);
    uint8_t *begin = begin_of(message);
    {
      const auto release = released();
      Writer out(begin);
      answer->write(out, cursor, [&] {
        const auto taken = std::chrono::steady_clock::now() - start;
        return elapsed_us + std::chrono::duration_cast<std::chrono::microseconds>(taken).count();
      });
      if (out.at() != begin + size) throw std::logic_error("an answer has another size");
    }
    return nb::make_tuple(message, answer->events());
  }

  Selection selection() const {
    const std::vector<Example> &examples = plan_.examples;
    return nb::make_tuple(
        array_of_field(examples, [](const Example &e) { return static_cast<uint8_t>(e.status); }),
        array_of_field(examples, [](const Example &e) { return e.first; }),
        array_of_field(examples, [](const Example &e) { return e.count; }),
        array_of_field(examples, [](const Example &e) { return e.available_count; }),
        array_of_field(examples, [](const Example &e) { return e.digest; }));
  }

  int64_t events_at_most() const { return plan_.events_at_most(); }
  int64_t stripe_bytes_at_most() const { return plan_.stripe_bytes_at_most(); }

 private:
  static std::vector<Pointer> pointers(const In<int64_t> &user_ids, const In<int64_t> &start_ts,
                                       const In<int64_t> &end_ts, const In<int64_t> &max_lengths,
                                       const In<uint64_t> &digests, const In<int64_t> &request_ts,
                                       const In<int64_t> &mutable_lengths) {
    const size_t count = user_ids.size();
    for (const size_t size : {start_ts.size(), end_ts.size(), max_lengths.size(), digests.size(),
                              request_ts.size(), mutable_lengths.size()})
      if (size != count) throw std::invalid_argument("arrays of pointers differ in length");
    std::vector<Pointer> made(count);
    for (size_t i = 0; i < count; ++i)
      made[i] = {user_ids.data()[i],       start_ts.data()[i], end_ts.data()[i],
                 max_lengths.data()[i],    digests.data()[i],  request_ts.data()[i],
                 mutable_lengths.data()[i]};
    return made;
  }

  std::unique_ptr<nb::gil_scoped_release> released() const {
    if (plan_.examples.size() < examples_released_min) return nullptr;
    return std::make_unique<nb::gil_scoped_release>();
  }

  void place(std::vector<Trait> &traits) const {
    for (Trait &trait : traits) trait.slot = plan_.slot_of(trait.group);
  }

  Plan plan_;
  nb::list directories_, stripes_;
};

void make_trait(Trait *made, std::string name, int number, int type, int64_t size, bool nullable,
                std::optional<int64_t> default_word, std::optional<std::string> default_text,
                int group, int64_t length_max, bool filled, int64_t codes_end) {
  const auto trait_type = static_cast<TraitType>(type);
  const bool is_indexing = trait_type == TraitType::string || trait_type == TraitType::categorical;
  if (size < 1 || size > trait_size_max || (size > 1 && is_indexing))
    throw std::invalid_argument("no trait has this size");
  if (length_max < 0 || length_max > list_length_max || (length_max && size > 1))
    throw std::invalid_argument("no list has this limit");
  if (codes_end < 0 || codes_end > codes_end_max)
    throw std::invalid_argument("no vocabulary has this end");
  const bool has_default = default_word.has_value() || default_text.has_value();
  new (made) Trait{std::move(name),
                   number,
                   trait_type,
                   size,
                   nullable,
                   has_default,
                   default_word.value_or(0),
                   std::move(default_text).value_or(""),
                   group,
                   length_max,
                   filled,
                   codes_end};
}

void translate_exceptions() {
  nb::register_exception_translator([](const std::exception_ptr &thrown, void *) {
    const auto raise = [](const char *name, const char *message) {
      PyErr_SetString(nb::module_::import_("thinrow.errors").attr(name).ptr(), message);
    };
    try {
      std::rethrow_exception(thrown);
    } catch (const Corrupt &error) {
      raise("StoreCorruptError", error.what());
    } catch (const TooLarge &error) {
      raise("AnswerTooLargeError", error.what());
    }
  });
}

} // namespace

void bind_store(nb::module_ &m) {
  translate_exceptions();
  nb::class_<Trait>(m, "Trait", "A trait of the schema.")
      .def("__init__", &make_trait, "name"_a, "number"_a, "type"_a, "size"_a, "nullable"_a,
           "default_word"_a.none(), "default_text"_a.none(), "group"_a, "length_max"_a = 0,
           "filled"_a = false, "codes_end"_a = 0,
           R"(Check the trait.

Args:
    type: A value of thinrow.v1.TraitType.
    size: Words per event.
    default_word: Default of a trait that is no string.
    default_text: Default of a string, in UTF-8.
    group: Number of the stored group that has the trait.
    length_max: Limit on the elements of a list; 0 if the trait is no list.
    filled: True if some values came after the events were served.
    codes_end: End of the codes of its vocabulary; 0 if it has none.)");
  nb::class_<BoundPlan>(m, "Plan", R"(The resolution of a batch of pointers, in steps.

Methods raise StoreCorruptError if directories and stripes contradict themselves or each other.)")
      .def(nb::init<const In<int64_t> &, const In<int64_t> &, const In<int64_t> &,
                    const In<int64_t> &, const In<uint64_t> &, const In<int64_t> &,
                    const In<int64_t> &, const In<int64_t> &, int64_t, bool, bool>(),
           "user_ids"_a, "start_ts"_a, "end_ts"_a, "max_lengths"_a, "digests"_a, "request_ts"_a,
           "mutable_lengths"_a, "watermarks"_a, "sequence_length"_a, "head"_a, "record_digests"_a,
           R"(Decide each example as far as possible without reading.

Args:
    digests: Recorded digests; 0 where none was recorded.
    watermarks: Watermarks of the generation, ascending.
    sequence_length: Most events of immutable and mutable part; 0 for no limit.
    head: Keep the oldest events instead of the newest.
    record_digests: Compute the digest of every example, not only of those with a recorded one.)")
      .def(nb::init<const MaterializeRequest &, const In<int64_t> &, int64_t, bool, bool>(),
           "request"_a, "watermarks"_a, "sequence_length"_a, "head"_a, "record_digests"_a,
           R"(Decide each example of a decoded request, with its columns filled in.

Raises:
    ValueError: Columns differ in length, or there are too many examples.)")
      .def("directory_keys", &BoundPlan::directory_keys,
           "Return the keys of the users' directories, concatenated.")
      .def("choose_stripes", &BoundPlan::choose_stripes, "directories"_a, "groups"_a,
           R"(Choose the stripes to read.

Args:
    directories: Values of `directory_keys`.
    groups: Number of each stored group, whether its stripes are wanted, whether the digest has
        traits of it, and the bytes of one of its events.)")
      .def("stripe_keys", &BoundPlan::stripe_keys,
           "Return the keys of the chosen stripes, concatenated.")
      .def("set_stripes", &BoundPlan::set_stripes, "stripes"_a,
           R"(Set the stripes that were read.

Args:
    stripes: Values of `stripe_keys`.

Returns:
    Their bytes.)")
      .def("resolve", &BoundPlan::resolve, "key_traits"_a, "text_hash"_a, "memory"_a,
           R"(Find, check and truncate the window of every example.

Args:
    key_traits: Traits of the digest.
    text_hash: Returns the 64-bit hash of a text.
    memory: Remembers digest sums across batches.)")
      .def("selection", &BoundPlan::selection,
           R"(Return the statuses, first ordinals, counts, available counts and digests.)")
      .def("answer", &BoundPlan::answer, "traits"_a, "generation"_a, "watermark_ts"_a,
           "bytes_max"_a, "cursor"_a.none(), "elapsed_us"_a, "map_version"_a = 0,
           R"(Encode the selected events as a MaterializeResponse.

Args:
    traits: Traits of the columns, in order.
    bytes_max: Limit on the bytes of the message.
    cursor: If given, the message is wrapped in a MaterializeStreamResponse.
    elapsed_us: Time already spent, which `server_us` includes.
    map_version: Version of the cluster's map; 0 outside a cluster.

Returns:
    The message, and the events of its examples.

Raises:
    AnswerTooLargeError: The message would have more than `bytes_max` bytes.)")
      .def_prop_ro("events_at_most", &BoundPlan::events_at_most,
                   "Bound on the events of the answer, known before stripes are read.")
      .def_prop_ro("stripe_bytes_at_most", &BoundPlan::stripe_bytes_at_most,
                   "Bound on the bytes of the stripes without texts, known before they are read.");
  m.def(
      "stripe_memory_bytes",
      [](const Values &stripes) {
        int64_t bytes = 0;
        for (const Bytes &view : views_of(stripes))
          if (view.data) bytes += stripe_memory_bytes(view);
        return bytes;
      },
      "stripes"_a, R"(Return the memory that stripes take with their dictionaries' entries.

Raises:
    StoreCorruptError: A stripe contradicts itself.)");
  nb::class_<DigestMemory>(m, "DigestMemory", "Recently computed digest sums. Thread-safe.")
      .def(nb::init<int64_t>(), "sums_max"_a);
  nb::class_<ValueCache>(m, "ValueCache", "Recently read values of a store's keys.")
      .def(nb::init<int64_t>(), "bytes_max"_a)
      .def("look_up", &ValueCache::look_up, "keys"_a,
           R"(Look up concatenated keys.

Returns:
    A value for each key, None for a key without a value; and the positions of the keys that are not
    cached, whose values are None as well.)")
      .def("add", &ValueCache::add, "keys"_a, "values"_a,
           "Add the values of concatenated keys; None for a key without a value.");
}

} // namespace thinrow
