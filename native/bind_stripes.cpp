// Binds the decoding of whole stripes, for compaction.
#include <nanobind/stl/string.h>

#include "bind.h"
#include "errors.h"
#include "python.h"
#include "stripe.h"

namespace thinrow {

namespace {

// The words, presence and texts of one trait.
struct Decoded {
  std::vector<uint64_t> words;
  std::vector<uint8_t> presence; // a byte for each event
  std::vector<int64_t> lengths;  // of lists
  std::vector<uint8_t> text;
  std::vector<int64_t> ends{0}; // of each text, after a 0
};

// Appends the texts that some words index, and makes the words index the appended ones.
void decode_texts(const Column &column, uint64_t *words, int64_t count, Decoded &out) {
  std::vector<int64_t> places(column.entries(), -1);
  for (int64_t i = 0; i < count; ++i) {
    int64_t &place = places[words[i]];
    if (place < 0) {
      const Bytes text = column.text(static_cast<int64_t>(words[i]));
      place = static_cast<int64_t>(out.ends.size()) - 1;
      out.text.insert(out.text.end(), text.data, text.data + text.size);
      out.ends.push_back(static_cast<int64_t>(out.text.size()));
    }
    words[i] = static_cast<uint64_t>(place);
  }
}

void decode_stripe(Bytes stripe, int64_t events, const Trait &trait, Decoded &out) {
  if (!stripe.data) throw Corrupt("a stripe is missing that its directory names");
  if (stripe_events(stripe) != events)
    throw Corrupt("a stripe has another number of events than its directory names");
  const Column column(stripe, trait);
  const Slice slice = column.slice(0, events);
  const size_t first = out.words.size();
  out.words.resize(first + slice.words);
  uint64_t *words = out.words.data() + first;
  decode(slice, words);
  if (trait.nullable)
    for (int64_t event = 0; event < events; ++event) out.presence.push_back(column.has(event));
  if (trait.length_max)
    for (int64_t event = 0; event < events; ++event) {
      out.lengths.push_back(column.length(event));
      if (out.lengths.back() && trait.nullable && !column.has(event))
        throw Corrupt("a stripe has elements of an event that lacks the trait");
    }
  if (!column.indexes()) return;
  for (int64_t i = 0; i < slice.words; ++i)
    if (words[i] >= static_cast<uint64_t>(column.entries()))
      throw Corrupt("a stripe's word points past its dictionary");
  if (trait.type == TraitType::string)
    decode_texts(column, words, slice.words, out);
  else
    for (int64_t i = 0; i < slice.words; ++i)
      words[i] = static_cast<uint64_t>(column.number(static_cast<int64_t>(words[i])));
}

using DecodedArrays =
    nb::typed<nb::tuple, Out<uint64_t>, Out<uint8_t>, nb::bytes, Out<int64_t>, Out<int64_t>>;

DecodedArrays decode_stripes(const Values &stripes, const In<int64_t> &counts, const Trait &trait) {
  const std::vector<Bytes> views = views_of(stripes);
  if (views.size() != counts.size())
    throw std::invalid_argument("stripes and counts differ in number");
  Decoded decoded;
  {
    const nb::gil_scoped_release release;
    for (size_t i = 0; i < views.size(); ++i)
      decode_stripe(views[i], counts.data()[i], trait, decoded);
  }
  return nb::make_tuple(array_of(std::move(decoded.words)), array_of(std::move(decoded.presence)),
                        bytes_of(decoded.text), array_of(std::move(decoded.ends)),
                        array_of(std::move(decoded.lengths)));
}

} // namespace

void bind_stripes(nb::module_ &m) {
  m.def("decode_stripes", &decode_stripes, "stripes"_a, "counts"_a, "trait"_a,
        R"(Decode one trait of whole stripes.

Args:
    stripes: Stripes of the trait's group.
    counts: Events of each stripe, as its directory names them.

Returns:
    The words of the events that have the trait (numbers of texts for a string); for each event
    whether it has the trait, empty if the trait is not nullable; the texts, one after the other;
    their ends, after a 0; the length of each event's list, empty if the trait is no list.

Raises:
    StoreCorruptError: A stripe contradicts itself or its count.)");
}

} // namespace thinrow
