// Counts the slots that native/flat_map.h compares: reads keys of 8 bytes from standard input, adds
// them to a map and finds them again, as numbers or as texts.
#include <cstdio>
#include <iostream>
#include <iterator>
#include <string>

#include "flat_map.h"

namespace {

uint64_t compared = 0;

template <typename Inner>
struct Counted {
  Inner inner;
  auto hashed() const { return inner.hashed(); }
  bool operator==(const Counted &other) const {
    ++compared;
    return inner == other.inner;
  }
};

struct Number {
  uint64_t value = 0;
  std::array<uint64_t, 1> hashed() const { return {value}; }
  bool operator==(const Number &other) const { return value == other.value; }
};

template <typename Inner>
void count(const std::string &input, Inner (*read)(const char *)) {
  thinrow::FlatMap<Counted<Inner>, uint32_t> map;
  const size_t keys = input.size() / 8;
  for (size_t i = 0; i < keys; ++i) map.add({read(input.data() + 8 * i)}, i);
  for (size_t i = 0; i < keys; ++i) {
    const Counted<Inner> key{read(input.data() + 8 * i)};
    const uint32_t *found = map.find(key, map.hash_of(key));
    if (!found || *found != i) std::exit(1);
  }
}

}  // namespace

int main(int, char **arguments) {
  const std::string input(std::istreambuf_iterator<char>(std::cin), {});
  if (std::string(arguments[1]) == "numbers")
    count<Number>(input, [](const char *at) {
      Number number;
      std::memcpy(&number.value, at, 8);
      return number;
    });
  else
    count<thinrow::TextKey>(input, [](const char *at) { return thinrow::TextKey{{at, 8}}; });
  std::printf("%llu\n", static_cast<unsigned long long>(compared));
}
