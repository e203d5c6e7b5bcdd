// Binds the loops. They run without the interpreter's lock, once all arguments have been checked.
#include <cstring>
#include <stdexcept>
#include <tuple>

#include "bind.h"
#include "python.h"
#include "widen.h"

namespace thinrow {

namespace {

using AnyOut = nb::ndarray<nb::c_contig, nb::device::cpu>;

// Limit on words and bytes, far above any memory, below which sums and products cannot overflow.
constexpr int64_t words_max = int64_t{1} << 48;

// One column of an answer: narrow blocks, their positions, and the arrays that hold them.
class Run {
 public:
  Run(In<uint8_t> data, In<uint8_t> widths, In<int64_t> bases, const In<int64_t> &counts,
      std::optional<In<int64_t>> dictionary)
      : data_(std::move(data)),
        widths_(std::move(widths)),
        bases_(std::move(bases)),
        dictionary_(std::move(dictionary)) {
    const size_t blocks = widths_.size();
    if (bases_.size() != blocks || counts.size() != blocks)
      throw std::invalid_argument("blocks need as many bases and counts as widths");
    first_word_.assign(blocks + 1, 0);
    first_byte_.assign(blocks, 0);
    for (size_t b = 0; b < blocks; ++b) {
      const int width = widths_.data()[b];
      if (width > 8 || (width & (width - 1)))
        throw std::invalid_argument("a block's width must be 0, 1, 2, 4 or 8");
      if (counts.data()[b] < 0) throw std::invalid_argument("a block has a negative length");
      if (counts.data()[b] > words_max - first_word_[b])
        throw std::invalid_argument("the blocks have more words than any run");
      first_word_[b + 1] = first_word_[b] + counts.data()[b];
    }
    // Offsets of all blocks of width 1 come first, in block order, then of width 2, 4 and 8.
    int64_t byte = 0;
    for (const int width : {1, 2, 4, 8})
      for (size_t b = 0; b < blocks; ++b)
        if (widths_.data()[b] == width) {
          first_byte_[b] = byte;
          byte += width * counts.data()[b];
        }
    if (byte != static_cast<int64_t>(data_.size()))
      throw std::invalid_argument("the data has another size than the blocks");
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

// Throws if a view reaches past its run or the output.
Views checked(const In<int64_t> &runs, const In<int64_t> &starts, const In<int64_t> &lengths,
              const In<int64_t> &places, const std::vector<int64_t> &run_events,
              int64_t out_events) {
  const size_t count = lengths.size();
  if (runs.size() != count || starts.size() != count || places.size() != count)
    throw std::invalid_argument("views need as many runs, starts and places as lengths");
  for (size_t v = 0; v < count; ++v) {
    const int64_t run = runs.data()[v];
    if (run < 0 || run >= static_cast<int64_t>(run_events.size()))
      throw std::out_of_range("a view names a run that does not exist");
    const int64_t start = starts.data()[v], length = lengths.data()[v], place = places.data()[v];
    if (start < 0 || length < 0 || place < 0 || start > run_events[run] - length ||
        place > out_events - length)
      throw std::out_of_range("a view reaches past its run or the output");
  }
  return {runs.data(), starts.data(), lengths.data(), places.data(), count};
}

using Array = In<int64_t>;
// Runs; run, start, length and place of their views; words per event; integer types that words are
// read and written as; the output.
using JobArguments =
    std::tuple<std::vector<const Run *>, Array, Array, Array, Array, int64_t, int, int, AnyOut>;

size_t write_jobs(const std::vector<JobArguments> &arguments, int threads) {
  std::vector<Job> jobs;
  jobs.reserve(arguments.size());
  for (const auto &[runs, run_of, starts, lengths, places, size, from, to, out] : arguments) {
    if (from < 0 || from > 7 || to < 0 || to > 3)
      throw std::invalid_argument("an integer type does not exist");
    if (size < 1 || size > words_max)
      throw std::invalid_argument("an event must have at least one word");
    Job job{{},
            {},
            size,
            static_cast<Integer>(from),
            static_cast<Integer>(to),
            static_cast<uint8_t *>(out.data())};
    std::vector<int64_t> events;
    for (const Run *run : runs) {
      if (!run) throw std::invalid_argument("a run must not be None");
      job.runs.push_back(run->blocks());
      events.push_back(run->words() / size);
    }
    const auto out_words = static_cast<int64_t>(out.nbytes() >> to);
    job.views = checked(run_of, starts, lengths, places, events, out_words / size);
    jobs.push_back(std::move(job));
  }
  const nb::gil_scoped_release release;
  return write(jobs, threads);
}

Out<int64_t> present_counts(const In<uint8_t> &bits, const In<int64_t> &lengths) {
  const uint8_t *bytes = bits.data();
  const std::vector<int64_t> events(lengths.data(), lengths.data() + lengths.size());
  int64_t event = 0;
  for (const int64_t count : events) {
    if (count < 0 || count > 8 * static_cast<int64_t>(bits.size()) - event)
      throw std::out_of_range("the blocks have more events than presence bits");
    event += count;
  }
  std::vector<int64_t> counts;
  counts.reserve(events.size());
  event = 0;
  for (const int64_t count : events) {
    counts.push_back(ones_within(bytes, event, event + count));
    event += count;
  }
  return array_of(std::move(counts));
}

} // namespace

void bind_widen(nb::module_ &m) {
  nb::class_<Run>(m, "Run", "One column of an answer, in narrow blocks.")
      .def(nb::init<In<uint8_t>, In<uint8_t>, In<int64_t>, const In<int64_t> &,
                    std::optional<In<int64_t>>>(),
           "data"_a, "widths"_a, "bases"_a, "counts"_a, "dictionary"_a.none() = nb::none(),
           R"(Check the blocks; the arrays are not copied.

Args:
    data: Offsets of all blocks of width 1, in block order, then of width 2, 4 and 8.
    widths: Bytes per offset of each block: 0, 1, 2, 4 or 8.
    bases: Value to which the offsets of each block are added, modulo 2^64.
    counts: Words of each block.
    dictionary: Values that the words index; None if the words are the values.)");
  m.def("write", &write_jobs, "jobs"_a, "threads"_a,
        R"(Write every event of the jobs' views, on several threads if there is enough work.

Args:
    jobs: For each job its runs; the run, start, length and place of each view, in events; words per
        event; the integer types (0 to 7: i8, i16, i32, i64, u8, u16, u32, u64) that words are read
        as and written as (0 to 3); the output.
    threads: Limit on the threads.

Returns:
    Number of the first job with a word that exceeds its dictionary, or the number of jobs.)");
  m.def("present_counts", &present_counts, "bits"_a, "lengths"_a,
        R"(Count the events of each block that have a trait.

Args:
    bits: Presence bits of all events, lowest bit first.
    lengths: Events of each block.)");
}

} // namespace thinrow
