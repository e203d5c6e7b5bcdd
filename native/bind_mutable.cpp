// Binds the check of mutable events, which come from files and topics of any origin.
#include <stdexcept>
#include <vector>

#include "bind.h"
#include "python.h"

namespace thinrow {

namespace {

nb::ndarray<nb::numpy, bool, nb::ndim<1>> arrived_outside(const In<int64_t> &arrival_ts,
                                                          const In<int64_t> &starts,
                                                          const In<int64_t> &lengths,
                                                          const In<int64_t> &first_ts,
                                                          const In<int64_t> &end_ts) {
  const size_t examples = starts.size();
  if (lengths.size() != examples || first_ts.size() != examples || end_ts.size() != examples)
    throw std::invalid_argument("examples need as many lengths and times as starts");
  const auto events = static_cast<int64_t>(arrival_ts.size());
  for (size_t example = 0; example < examples; ++example) {
    const int64_t start = starts.data()[example], length = lengths.data()[example];
    if (start < 0 || length < 0 || start > events - length)
      throw std::out_of_range("an example reaches past the events");
  }
  auto *found = new bool[examples]();
  const nb::capsule owner(found,
                          [](void *memory) noexcept { delete[] static_cast<bool *>(memory); });
  {
    const nb::gil_scoped_release release;
    for (size_t example = 0; example < examples; ++example) {
      const int64_t *arrived = arrival_ts.data() + starts.data()[example];
      const int64_t first = first_ts.data()[example], end = end_ts.data()[example];
      bool is_outside = false;
      for (int64_t event = 0; event < lengths.data()[example]; ++event)
        is_outside |= (arrived[event] < first) | (arrived[event] >= end);
      found[example] = is_outside;
    }
  }
  return {found, {examples}, owner};
}

} // namespace

void bind_mutable(nb::module_ &m) {
  m.def("arrived_outside", &arrived_outside, "arrival_ts"_a, "starts"_a, "lengths"_a, "first_ts"_a,
        "end_ts"_a,
        R"(Find the examples with an event that arrived outside [first_ts, end_ts).

Args:
    arrival_ts: Arrival of every event.
    starts: Place of each example's first event.
    lengths: Events of each example.
    first_ts: First arrival that each example may have, inclusive.
    end_ts: Last one, exclusive.)");
}

} // namespace thinrow
