// Python's side of the loops: checks that nothing is read or written out of bounds, and lets go of
// the interpreter's lock.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "bind_records.h"
#include "bind_response.h"
#include "bind_store.h"
#include "loops.h"
#include "stripe.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <typename T>
using In = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using AnyOut = nb::ndarray<nb::c_contig, nb::device::cpu>;

// Far more than memory holds, and few enough that their bytes can be counted.
constexpr int64_t words_max = int64_t{1} << 48;

// One column of an answer: narrow blocks, where each begins, and the arrays that hold them.
class Run {
 public:
  Run(In<uint8_t> data, In<uint8_t> widths, In<int64_t> bases, In<int64_t> counts,
      std::optional<In<int64_t>> dictionary)
      : data_(data), widths_(widths), bases_(bases), dictionary_(dictionary) {
    const size_t blocks = widths.size();
    if (bases.size() != blocks || counts.size() != blocks)
      throw std::invalid_argument("blocks need as many bases and counts as widths");
    first_word_.assign(blocks + 1, 0);
    first_byte_.assign(blocks, 0);
    for (size_t b = 0; b < blocks; ++b) {
      const int width = widths.data()[b];
      if (width > 8 || (width & (width - 1))) throw std::invalid_argument("no such width");
      if (counts.data()[b] < 0) throw std::invalid_argument("a block has a negative length");
      if (counts.data()[b] > words_max - first_word_[b])
        throw std::invalid_argument("the blocks have more words than any run");
      first_word_[b + 1] = first_word_[b] + counts.data()[b];
    }
    // Offsets of all blocks of width 1 come first, in block order, then of width 2, 4 and 8.
    int64_t byte = 0;
    for (int width : {1, 2, 4, 8})
      for (size_t b = 0; b < blocks; ++b)
        if (widths.data()[b] == width) {
          first_byte_[b] = byte;
          byte += width * counts.data()[b];
        }
    if (byte != static_cast<int64_t>(data.size()))
      throw std::invalid_argument("the blocks' bytes are not those that are there");
  }

  int64_t words() const { return first_word_.back(); }

  Blocks blocks() const {
    static const int64_t no_entries = 0;
    Blocks blocks{data_.data(),       widths_.data(),     bases_.data(), first_word_.data(),
                  first_byte_.data(), first_byte_.size(), nullptr,       0};
    if (dictionary_) {
      blocks.entry_count = dictionary_->size();
      blocks.entries = blocks.entry_count ? dictionary_->data() : &no_entries;
    }
    return blocks;
  }

 private:
  In<uint8_t> data_, widths_;
  In<int64_t> bases_;
  std::optional<In<int64_t>> dictionary_;
  std::vector<int64_t> first_word_, first_byte_;
};

// Refuses views that reach past their runs or the output.
Views checked(const In<int64_t> &runs, const In<int64_t> &starts, const In<int64_t> &lengths,
              const In<int64_t> &places, const std::vector<int64_t> &run_events,
              int64_t out_events) {
  const size_t count = lengths.size();
  if (runs.size() != count || starts.size() != count || places.size() != count)
    throw std::invalid_argument("views need as many runs, starts and places as lengths");
  for (size_t v = 0; v < count; ++v) {
    const int64_t run = runs.data()[v];
    if (run < 0 || run >= static_cast<int64_t>(run_events.size()))
      throw std::out_of_range("a view is of a run that is not there");
    const int64_t start = starts.data()[v], length = lengths.data()[v], place = places.data()[v];
    if (start < 0 || length < 0 || place < 0 || start > run_events[run] - length ||
        place > out_events - length)
      throw std::out_of_range("a view reaches past what it is a view of");
  }
  return {runs.data(), starts.data(), lengths.data(), places.data(), count};
}

using Array = In<int64_t>;
// Runs; of their views the run, start, length and place; words per event; what words are read and
// written as; where to.
using JobArguments =
    std::tuple<std::vector<const Run *>, Array, Array, Array, Array, int64_t, int, int, AnyOut>;

// Does all jobs; the number of the first one with a word that indexes nothing, or of jobs.
size_t write_jobs(const std::vector<JobArguments> &given, int threads) {
  std::vector<Job> jobs;
  jobs.reserve(given.size());
  for (const auto &[runs, run_of, starts, lengths, places, size, from, to, out] : given) {
    if (from < 0 || from > 7 || to < 0 || to > 3) throw std::invalid_argument("no such integers");
    if (size < 1 || size > words_max) throw std::invalid_argument("an event has a word or more");
    Job job{{},
            {},
            size,
            static_cast<Integer>(from),
            static_cast<Integer>(to),
            static_cast<uint8_t *>(out.data())};
    std::vector<int64_t> events;
    for (const Run *run : runs) {
      if (!run) throw std::invalid_argument("no run");
      job.runs.push_back(run->blocks());
      events.push_back(run->words() / size);
    }
    const auto out_words = static_cast<int64_t>(out.nbytes() >> to);
    job.views = checked(run_of, starts, lengths, places, events, out_words / size);
    jobs.push_back(std::move(job));
  }
  nb::gil_scoped_release release;
  return write(jobs, threads);
}

// Slices of a buffer, one behind the other.
nb::bytes gather(In<uint8_t> buffer, In<int64_t> starts, In<int64_t> lengths) {
  const size_t count = lengths.size();
  if (starts.size() != count) throw std::invalid_argument("as many starts as lengths");
  const int64_t size = buffer.size();
  int64_t total = 0;
  for (size_t i = 0; i < count; ++i) {
    const int64_t start = starts.data()[i], length = lengths.data()[i];
    if (start < 0 || length < 0 || start > size - length)
      throw std::out_of_range("a slice reaches past the buffer");
    if (length > words_max - total) throw std::out_of_range("the slices are larger than memory");
    total += length;
  }
  // Bytes that nobody else has seen yet may be written.
  nb::bytes joined = nb::steal<nb::bytes>(PyBytes_FromStringAndSize(nullptr, total));
  if (!joined.ptr()) throw nb::python_error();
  auto *target = reinterpret_cast<uint8_t *>(PyBytes_AS_STRING(joined.ptr()));
  nb::gil_scoped_release release;
  for (size_t i = 0; i < count; ++i) {
    std::memcpy(target, buffer.data() + starts.data()[i], lengths.data()[i]);
    target += lengths.data()[i];
  }
  return joined;
}

// Events of each block that have a trait, by its presence bits.
nb::ndarray<nb::numpy, int64_t, nb::ndim<1>> present_counts(In<uint8_t> bits, In<int64_t> lengths) {
  const size_t count = lengths.size();
  int64_t event = 0;
  for (size_t i = 0; i < count; ++i) {
    const int64_t length = lengths.data()[i];
    if (length < 0 || length > 8 * static_cast<int64_t>(bits.size()) - event)
      throw std::out_of_range("the blocks have more events than presence bits");
    event += length;
  }
  auto *counts = new int64_t[count];
  const nb::capsule owner(counts,
                          [](void *made) noexcept { delete[] static_cast<int64_t *>(made); });
  event = 0;
  for (size_t i = 0; i < count; event += lengths.data()[i++])
    counts[i] = ones_within(bits.data(), event, event + lengths.data()[i]);
  return {counts, {count}, owner};
}

} // namespace

NB_MODULE(_native, m) {
  // What lives as long as the interpreter does is no leak.
  nb::set_leak_warnings(false);
  nb::class_<Run>(m, "Run").def(
      nb::init<In<uint8_t>, In<uint8_t>, In<int64_t>, In<int64_t>, std::optional<In<int64_t>>>(),
      "data"_a, "widths"_a, "bases"_a, "counts"_a, "dictionary"_a.none() = nb::none());
  m.def("write", &write_jobs);
  m.def("gather", &gather);
  m.def("present_counts", &present_counts);
  bind_records(m);
  bind_response(m);
  bind_store(m);
}
