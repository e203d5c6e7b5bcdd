// SipHash-1-3 (Jean-Philippe Aumasson and Daniel J. Bernstein, 2012) under a key that each process
// draws at random. Callers choose keys, and must not be able to choose their slots in a map.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <random>
#include <string_view>

namespace thinrow {

class KeyedHash {
 public:
  KeyedHash() {
    const auto &[first, second] = secret();
    a_ ^= first;
    b_ ^= second;
    c_ ^= first;
    d_ ^= second;
  }

  void add(uint64_t word) {
    d_ ^= word;
    round();
    a_ ^= word;
  }

  uint64_t finish() {
    c_ ^= 0xff;
    for (int i = 0; i < 3; ++i) round();
    return a_ ^ b_ ^ c_ ^ d_;
  }

 private:
  static const std::array<uint64_t, 2> &secret() {
    static const std::array<uint64_t, 2> drawn = [] {
      std::random_device device;
      const auto word = [&] { return static_cast<uint64_t>(device()) << 32 | device(); };
      return std::array<uint64_t, 2>{word(), word()};
    }();
    return drawn;
  }

  static uint64_t rotated(uint64_t value, int bits) { return value << bits | value >> (64 - bits); }

  void round() {
    a_ += b_;
    b_ = rotated(b_, 13) ^ a_;
    a_ = rotated(a_, 32);
    c_ += d_;
    d_ = rotated(d_, 16) ^ c_;
    a_ += d_;
    d_ = rotated(d_, 21) ^ a_;
    c_ += b_;
    b_ = rotated(b_, 17) ^ c_;
    c_ = rotated(c_, 32);
  }

  uint64_t a_ = 0x736f6d6570736575ULL, b_ = 0x646f72616e646f6dULL, c_ = 0x6c7967656e657261ULL,
           d_ = 0x7465646279746573ULL;
};

// All keys of one map have the same number of words.
template <size_t words>
uint64_t keyed_hash(const std::array<uint64_t, words> &key) {
  KeyedHash hash;
  for (const uint64_t word : key) hash.add(word);
  return hash.finish();
}

inline uint64_t keyed_hash(std::string_view key) {
  KeyedHash hash;
  hash.add(key.size());
  for (; key.size() >= 8; key.remove_prefix(8)) {
    uint64_t word;
    std::memcpy(&word, key.data(), 8);
    hash.add(word);
  }
  uint64_t rest = 0;
  if (!key.empty()) std::memcpy(&rest, key.data(), key.size());
  hash.add(rest);
  return hash.finish();
}

} // namespace thinrow
