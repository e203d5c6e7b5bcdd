// Binds the index of a table's rows, for fills.
#include "bind.h"
#include "python.h"
#include "row_index.h"

namespace thinrow {

namespace {

class BoundRowIndex {
 public:
  BoundRowIndex(In<uint64_t> words, int64_t size)
      : words_(std::move(words)), size_(size), index_(built()) {}

  Out<int64_t> firsts() const { return array_of(std::vector<int64_t>(index_.firsts())); }

  Out<int64_t> find(const In<uint64_t> &words) {
    std::vector<int64_t> rows(count_of(words));
    {
      const nb::gil_scoped_release release;
      index_.find(words.data(), static_cast<int64_t>(rows.size()), rows.data());
    }
    return array_of(std::move(rows));
  }

 private:
  RowIndex built() const {
    const int64_t rows = count_of(words_);
    const nb::gil_scoped_release release;
    return RowIndex(words_.data(), rows, size_);
  }

  int64_t count_of(const In<uint64_t> &words) const {
    if (size_ < 1 || static_cast<int64_t>(words.size()) % size_)
      throw std::invalid_argument("words do not make up keys");
    return static_cast<int64_t>(words.size()) / size_;
  }

  In<uint64_t> words_; // keeps the memory that the index reads
  int64_t size_;
  RowIndex index_;
};

} // namespace

void bind_row_index(nb::module_ &m) {
  nb::class_<BoundRowIndex>(m, "RowIndex", R"(Rows of a table by their key.

Not safe for calls of several threads at once.)")
      .def(nb::init<In<uint64_t>, int64_t>(), "words"_a, "size"_a, R"(Index the rows.

Args:
    words: Keys, one after the other; they must not change.
    size: Words of each key.)")
      .def("firsts", &BoundRowIndex::firsts,
           "Return the first row with the key of each row; int64, shape (rows,).")
      .def("find", &BoundRowIndex::find, "words"_a,
           R"(Return the first row with each of some keys; int64, -1 for none.

Args:
    words: Keys, one after the other.)");
}

} // namespace thinrow
