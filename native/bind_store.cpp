// Python's side of reading the store: the plan of a batch, its answer, and the cache of values.
#include "bind_store.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <memory>

#include "answer.h"
#include "errors.h"
#include "plan.h"
#include "value_cache.h"

namespace nb = nanobind;

namespace {

template <typename T>
using In = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Made = nb::ndarray<nb::numpy, T, nb::ndim<1>>;

nb::bytes as_bytes(const std::vector<uint8_t> &data) { return nb::bytes(data.data(), data.size()); }

std::vector<Bytes> views_of(const nb::list &values) {
  std::vector<Bytes> views;
  views.reserve(nb::len(values));
  for (const nb::handle value : values) {
    if (value.is_none()) {
      views.push_back({});
      continue;
    }
    if (!PyBytes_Check(value.ptr())) throw nb::type_error("values are bytes or None");
    views.push_back({reinterpret_cast<const uint8_t *>(PyBytes_AS_STRING(value.ptr())),
                     static_cast<int64_t>(PyBytes_GET_SIZE(value.ptr()))});
  }
  return views;
}

template <typename T, typename Field>
Made<T> array_of(const std::vector<Example> &examples, Field &&field) {
  auto *data = new T[examples.size()];
  for (size_t i = 0; i < examples.size(); ++i) data[i] = field(examples[i]);
  const nb::capsule owner(data, [](void *made) noexcept { delete[] static_cast<T *>(made); });
  return Made<T>(data, {examples.size()}, owner);
}

// Fewer examples are done sooner than the interpreter's lock is let go and had again.
constexpr size_t examples_released_min = 16;

// A plan, and what it points into.
class BoundPlan {
 public:
  BoundPlan(In<int64_t> user_ids, In<int64_t> start_ts, In<int64_t> end_ts, In<int64_t> max_lengths,
            In<uint64_t> digests, In<int64_t> request_ts, In<int64_t> mutable_lengths,
            In<int64_t> watermarks, int64_t sequence_length, bool head, bool record_digests)
      : plan_(
            pointers(user_ids, start_ts, end_ts, max_lengths, digests, request_ts, mutable_lengths),
            {watermarks.data(), watermarks.data() + watermarks.size()}, sequence_length, head,
            record_digests) {}

  nb::bytes directory_keys() const { return as_bytes(plan_.directory_keys()); }

  void choose(nb::list values, const std::vector<std::tuple<int, bool, bool, int64_t>> &groups) {
    if (nb::len(values) != plan_.users.size())
      throw std::invalid_argument("as many directories as users");
    directories_ = values;
    const std::vector<Bytes> views = views_of(values);
    std::vector<Group> chosen;
    for (const auto &[number, is_wanted, is_key, event_bytes] : groups)
      chosen.push_back({number, is_wanted, is_key, event_bytes});
    const auto release = released();
    plan_.choose(views, std::move(chosen));
  }

  nb::bytes stripe_keys() const { return as_bytes(plan_.stripe_keys()); }

  int64_t take(nb::list values) {
    stripes_ = values;
    const std::vector<Bytes> views = views_of(values);
    const auto release = released();
    int64_t bytes = 0;
    for (const Bytes &view : views) {
      if (!view.data) throw Corrupt("a stripe is missing that its directory names");
      bytes += view.size;
    }
    plan_.take(views);
    return bytes;
  }

  void resolve(std::vector<Trait> key_traits, nb::callable text_hash, DigestMemory &memory) {
    place(key_traits);
    const auto release = released();
    plan_.resolve(
        key_traits,
        [&](Bytes value) {
          nb::gil_scoped_acquire acquire;
          return nb::cast<uint64_t>(text_hash(nb::bytes(value.data, value.size)));
        },
        memory);
  }

  nb::tuple answer(std::vector<Trait> traits, int64_t generation, int64_t watermark_ts,
                   int64_t bytes_max, std::optional<uint64_t> cursor, uint64_t elapsed_us) {
    const auto start = std::chrono::steady_clock::now();
    place(traits);
    std::optional<Answer> answer;
    {
      const auto release = released();
      answer.emplace(plan_, traits, generation, watermark_ts, bytes_max);
    }
    const int64_t size = answer->bytes(cursor);
    // Bytes that nobody else has seen yet may be written.
    nb::bytes message = nb::steal<nb::bytes>(PyBytes_FromStringAndSize(nullptr, size));
    if (!message.ptr()) throw nb::python_error();
    auto *begin = reinterpret_cast<uint8_t *>(PyBytes_AS_STRING(message.ptr()));
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

  nb::tuple selection() const {
    const std::vector<Example> &examples = plan_.examples;
    return nb::make_tuple(array_of<uint8_t>(examples, [](const Example &e) { return e.status; }),
                          array_of<int64_t>(examples, [](const Example &e) { return e.first; }),
                          array_of<int64_t>(examples, [](const Example &e) { return e.count; }),
                          array_of<int64_t>(examples, [](const Example &e) { return e.left; }),
                          array_of<uint64_t>(examples, [](const Example &e) { return e.digest; }));
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
      if (size != count) throw std::invalid_argument("as many of each as users");
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

} // namespace

void bind_store(nb::module_ &m) {
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
  nb::class_<Trait>(m, "Trait")
      .def(
          "__init__",
          [](Trait *made, std::string name, int number, int type, int64_t size, bool nullable,
             std::optional<int64_t> default_word, std::optional<std::string> default_text,
             int group) {
            if (size < 1 || size > trait_size_max ||
                (size > 1 && (type == text || type == categorical)))
              throw std::invalid_argument("no trait has this size");
            new (made) Trait{std::move(name),
                             number,
                             type,
                             size,
                             nullable,
                             default_word.has_value() || default_text.has_value(),
                             default_word.value_or(0),
                             default_text.value_or(""),
                             group};
          },
          nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg().none(),
          nb::arg());
  nb::class_<BoundPlan>(m, "Plan")
      .def(nb::init<In<int64_t>, In<int64_t>, In<int64_t>, In<int64_t>, In<uint64_t>, In<int64_t>,
                    In<int64_t>, In<int64_t>, int64_t, bool, bool>())
      .def("directory_keys", &BoundPlan::directory_keys)
      .def("choose", &BoundPlan::choose)
      .def("stripe_keys", &BoundPlan::stripe_keys)
      .def("take", &BoundPlan::take)
      .def("resolve", &BoundPlan::resolve)
      .def("selection", &BoundPlan::selection)
      .def("answer", &BoundPlan::answer, nb::arg(), nb::arg(), nb::arg(), nb::arg(),
           nb::arg().none(), nb::arg())
      .def_prop_ro("events_at_most", &BoundPlan::events_at_most)
      .def_prop_ro("stripe_bytes_at_most", &BoundPlan::stripe_bytes_at_most);
  m.def("stripe_memory_bytes", [](const nb::list &values) {
    int64_t bytes = 0;
    for (const Bytes &view : views_of(values))
      if (view.data) bytes += stripe_memory_bytes(view);
    return bytes;
  });
  nb::class_<DigestMemory>(m, "DigestMemory").def(nb::init<int64_t>());
  nb::class_<ValueCache>(m, "ValueCache")
      .def(nb::init<int64_t>())
      .def("look_up", &ValueCache::look_up)
      .def("add", &ValueCache::add);
}
