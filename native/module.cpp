// Python's side of the loops: checks that nothing is read or written out of bounds, and lets go of
// the interpreter's lock.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <stdexcept>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "bind_records.h"
#include "bind_response.h"
#include "bind_store.h"
#include "loops.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <typename T>
using In = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Out = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using AnyIn = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using AnyOut = nb::ndarray<nb::c_contig, nb::device::cpu>;

// Far more than memory holds, and few enough that their bytes can be counted.
constexpr int64_t words_max = int64_t{1} << 48;

// One column of an answer: narrow blocks, where each begins, and the arrays that hold them.
class Run {
 public:
  Run(In<uint8_t> data, In<uint8_t> widths, In<int64_t> bases, In<int64_t> counts)
      : data_(data), widths_(widths), bases_(bases) {
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
    return {data_.data(),       widths_.data(),     bases_.data(),
            first_word_.data(), first_byte_.data(), first_byte_.size()};
  }

 private:
  In<uint8_t> data_, widths_;
  In<int64_t> bases_;
  std::vector<int64_t> first_word_, first_byte_;
};

// Refuses views that reach past their runs or the output.
template <typename Items>
Views checked(const In<int64_t> &runs, const In<int64_t> &starts, const In<int64_t> &lengths,
              const In<int64_t> &places, const std::vector<Items> &run_items, int64_t out_items) {
  const size_t count = lengths.size();
  if (runs.size() != count || starts.size() != count || places.size() != count)
    throw std::invalid_argument("views need as many runs, starts and places as lengths");
  for (size_t v = 0; v < count; ++v) {
    const int64_t run = runs.data()[v];
    if (run < 0 || run >= static_cast<int64_t>(run_items.size()))
      throw std::out_of_range("a view is of a run that is not there");
    const int64_t start = starts.data()[v], length = lengths.data()[v], place = places.data()[v];
    if (start < 0 || length < 0 || place < 0 || start > run_items[run] - length ||
        place > out_items - length)
      throw std::out_of_range("a view reaches past what it is a view of");
  }
  return {runs.data(), starts.data(), lengths.data(), places.data(), count};
}

void widen(const std::vector<const Run *> &runs, int from, In<int64_t> run_of, In<int64_t> starts,
           In<int64_t> lengths, In<int64_t> places, int to, AnyOut out) {
  if (from < 0 || from > 7 || to < 0 || to > 3) throw std::invalid_argument("no such integers");
  std::vector<Blocks> blocks;
  std::vector<int64_t> words;
  for (const Run *run : runs) {
    blocks.push_back(run->blocks());
    words.push_back(run->words());
  }
  const Views views = checked(run_of, starts, lengths, places, words, out.nbytes() >> to);
  auto *target = static_cast<uint8_t *>(out.data());
  nb::gil_scoped_release release;
  ::widen_views(blocks.data(), static_cast<Integer>(from), static_cast<Integer>(to), views, target);
}

void look_up(const std::vector<const Run *> &runs, const std::vector<In<int64_t>> &dictionaries,
             In<int64_t> run_of, In<int64_t> starts, In<int64_t> lengths, In<int64_t> places, int to,
             AnyOut out) {
  if (to < 0 || to > 3) throw std::invalid_argument("no such integers");
  if (runs.size() != dictionaries.size()) throw std::invalid_argument("as many dictionaries as runs");
  std::vector<Blocks> blocks;
  std::vector<int64_t> words;
  std::vector<Entries> entries;
  for (size_t run = 0; run < runs.size(); ++run) {
    blocks.push_back(runs[run]->blocks());
    words.push_back(runs[run]->words());
    entries.push_back({dictionaries[run].data(), dictionaries[run].size()});
  }
  const Views views = checked(run_of, starts, lengths, places, words, out.nbytes() >> to);
  auto *target = static_cast<uint8_t *>(out.data());
  bool is_inside;
  {
    nb::gil_scoped_release release;
    is_inside = ::look_up_views(blocks.data(), entries.data(), static_cast<Integer>(to), views, target);
  }
  if (!is_inside) throw std::out_of_range("a word points past its dictionary");
}

void copy(const std::vector<AnyIn> &sources, In<int64_t> run_of, In<int64_t> starts,
          In<int64_t> lengths, In<int64_t> places, size_t item_bytes, AnyOut out) {
  if (!item_bytes) throw std::invalid_argument("items have no size");
  std::vector<const uint8_t *> runs;
  std::vector<int64_t> items;
  for (const AnyIn &source : sources) {
    runs.push_back(static_cast<const uint8_t *>(source.data()));
    items.push_back(source.nbytes() / item_bytes);
  }
  const Views views = checked(run_of, starts, lengths, places, items, out.nbytes() / item_bytes);
  auto *target = static_cast<uint8_t *>(out.data());
  nb::gil_scoped_release release;
  ::copy_views(runs.data(), item_bytes, views, target);
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

// Numbers values in the order of their first appearance: writes each one's number to `codes`, the
// distinct values to the front of `distinct`, and returns how many those are.
size_t number_values(In<int64_t> values, Out<uint32_t> codes, Out<int64_t> distinct) {
  if (codes.size() != values.size() || distinct.size() != values.size())
    throw std::invalid_argument("as many codes and distinct values as values");
  nb::gil_scoped_release release;
  std::unordered_map<int64_t, uint32_t> numbers;
  for (size_t i = 0; i < values.size(); ++i) {
    const auto [entry, is_new] = numbers.try_emplace(values.data()[i], numbers.size());
    if (is_new) distinct.data()[entry->second] = values.data()[i];
    codes.data()[i] = entry->second;
  }
  return numbers.size();
}

template <typename Offset, typename Code>
bool recode_block(const uint8_t *data, int64_t base, int64_t words, const uint32_t *codes,
                  uint64_t entries, Code *out) {
  for (int64_t i = 0; i < words; ++i) {
    uint64_t word = base;
    if constexpr (!std::is_void_v<Offset>) {
      Offset offset;
      std::memcpy(&offset, data + i * sizeof(Offset), sizeof(Offset));
      word += offset;
    }
    if (word >= entries) return false;
    out[i] = static_cast<Code>(codes[word]);
  }
  return true;
}

template <typename Code>
bool recode_all(const uint8_t *buffer, const int64_t *starts, const uint8_t *widths,
                const int64_t *bases, const int64_t *counts, size_t blocks, const uint32_t *codes,
                const int64_t *first_entries, const int64_t *entries, Code *out) {
  for (size_t b = 0; b < blocks; ++b) {
    const uint8_t *data = buffer + starts[b];
    const uint32_t *mine = codes + first_entries[b];
    bool inside;
    switch (widths[b]) {
      case 0: inside = recode_block<void>(data, bases[b], counts[b], mine, entries[b], out); break;
      case 1:
        inside = recode_block<uint8_t>(data, bases[b], counts[b], mine, entries[b], out);
        break;
      case 2:
        inside = recode_block<uint16_t>(data, bases[b], counts[b], mine, entries[b], out);
        break;
      case 4:
        inside = recode_block<uint32_t>(data, bases[b], counts[b], mine, entries[b], out);
        break;
      default: inside = recode_block<uint64_t>(data, bases[b], counts[b], mine, entries[b], out);
    }
    if (!inside) return false;
    out += counts[b];
  }
  return true;
}

// Replaces the words of blocks, each an index into its block's own part of `codes`, by the codes
// there: all as wide as `out`'s items.
void recode(In<uint8_t> buffer, In<int64_t> starts, In<uint8_t> widths, In<int64_t> bases,
            In<int64_t> counts, In<uint32_t> codes, In<int64_t> first_entries, In<int64_t> entries,
            int code_bytes, Out<uint8_t> out) {
  const size_t blocks = widths.size();
  if (starts.size() != blocks || bases.size() != blocks || counts.size() != blocks ||
      first_entries.size() != blocks || entries.size() != blocks)
    throw std::invalid_argument("blocks need as many of each");
  if (code_bytes != 1 && code_bytes != 2 && code_bytes != 4)
    throw std::invalid_argument("codes have 1, 2 or 4 bytes");
  const int64_t size = buffer.size(), known = codes.size();
  int64_t words = 0;
  for (size_t b = 0; b < blocks; ++b) {
    const int64_t start = starts.data()[b], count = counts.data()[b], width = widths.data()[b];
    const int64_t first = first_entries.data()[b], mine = entries.data()[b];
    if (width > 8 || (width & (width - 1)) || start < 0 || count < 0 ||
        count > (width ? size / width : INT64_MAX) || start > size - count * width || first < 0 ||
        mine < 0 || first > known - mine || count > words_max - words)
      throw std::out_of_range("a block reaches past its buffer or its entries");
    words += count;
  }
  if (words * code_bytes != static_cast<int64_t>(out.size()))
    throw std::invalid_argument("the output has another size");
  auto run = [&](auto *target) {
    nb::gil_scoped_release release;
    return recode_all(buffer.data(), starts.data(), widths.data(), bases.data(), counts.data(),
                      blocks, codes.data(), first_entries.data(), entries.data(), target);
  };
  bool inside;
  switch (code_bytes) {
    case 1: inside = run(out.data()); break;
    case 2: inside = run(reinterpret_cast<uint16_t *>(out.data())); break;
    default: inside = run(reinterpret_cast<uint32_t *>(out.data()));
  }
  if (!inside) throw std::out_of_range("a word points past its dictionary");
}

}  // namespace

NB_MODULE(_native, m) {
  // What lives as long as the interpreter does is no leak.
  nb::set_leak_warnings(false);
  nb::class_<Run>(m, "Run").def(
      nb::init<In<uint8_t>, In<uint8_t>, In<int64_t>, In<int64_t>>());
  m.def("widen_views", &widen);
  m.def("look_up_views", &look_up);
  m.def("copy_views", &copy);
  m.def("gather", &gather);
  m.def("number_values", &number_values);
  m.def("recode", &recode);
  bind_records(m);
  bind_response(m);
  bind_store(m);
}
