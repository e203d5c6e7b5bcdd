#include "loops.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#ifndef LOOPS
#define LOOPS any
#endif

namespace LOOPS {
namespace {

template <typename From, typename To, typename Offset>
void widen(const uint8_t *data, int64_t base, int64_t words, To *out) {
  using Word = std::make_unsigned_t<From>;
  const Word low = static_cast<Word>(base);
  for (int64_t i = 0; i < words; ++i) {
    Offset offset;
    std::memcpy(&offset, data + i * sizeof(Offset), sizeof(Offset));
    out[i] = static_cast<To>(static_cast<From>(static_cast<Word>(low + static_cast<Word>(offset))));
  }
}

template <typename From, typename To>
void widen_all(const Blocks &blocks, const Views &views, To *out) {
  for (size_t v = 0; v < views.count; ++v) {
    int64_t word = views.starts[v];
    const int64_t end = word + views.lengths[v];
    To *target = out + views.places[v];
    size_t block = std::upper_bound(blocks.first_word, blocks.first_word + blocks.count + 1, word) -
                   blocks.first_word - 1;
    while (word < end) {
      const int64_t words = std::min(end, blocks.first_word[block + 1]) - word;
      const int64_t within = word - blocks.first_word[block];
      const uint8_t width = blocks.widths[block];
      const uint8_t *data = blocks.data + blocks.first_byte[block] + within * width;
      const int64_t base = blocks.bases[block];
      switch (width) {
        case 0: std::fill_n(target, words, static_cast<To>(static_cast<From>(base))); break;
        case 1: widen<From, To, uint8_t>(data, base, words, target); break;
        case 2: widen<From, To, uint16_t>(data, base, words, target); break;
        case 4: widen<From, To, uint32_t>(data, base, words, target); break;
        default: widen<From, To, uint64_t>(data, base, words, target);
      }
      target += words;
      word += words;
      ++block;
    }
  }
}

template <typename From>
void widen_from(const Blocks &blocks, Integer to, const Views &views, uint8_t *out) {
  switch (to) {
    case Integer::i8: return widen_all<From>(blocks, views, reinterpret_cast<int8_t *>(out));
    case Integer::i16: return widen_all<From>(blocks, views, reinterpret_cast<int16_t *>(out));
    case Integer::i32: return widen_all<From>(blocks, views, reinterpret_cast<int32_t *>(out));
    default: return widen_all<From>(blocks, views, reinterpret_cast<int64_t *>(out));
  }
}

template <typename Item>
void copy_items(const Item *source, const Views &views, Item *out) {
  for (size_t v = 0; v < views.count; ++v)
    // A plain loop: the library's memcpy is slow here for some middling sizes.
    for (int64_t i = 0; i < views.lengths[v]; ++i)
      out[views.places[v] + i] = source[views.starts[v] + i];
}

}  // namespace

void widen_views(const Blocks &blocks, Integer from, Integer to, const Views &views, uint8_t *out) {
  switch (from) {
    case Integer::i8: return widen_from<int8_t>(blocks, to, views, out);
    case Integer::i16: return widen_from<int16_t>(blocks, to, views, out);
    case Integer::i32: return widen_from<int32_t>(blocks, to, views, out);
    case Integer::i64: return widen_from<int64_t>(blocks, to, views, out);
    case Integer::u8: return widen_from<uint8_t>(blocks, to, views, out);
    case Integer::u16: return widen_from<uint16_t>(blocks, to, views, out);
    case Integer::u32: return widen_from<uint32_t>(blocks, to, views, out);
    case Integer::u64: return widen_from<uint64_t>(blocks, to, views, out);
  }
}

void copy_views(const uint8_t *source, size_t item_bytes, const Views &views, uint8_t *out) {
  switch (item_bytes) {
    case 1: copy_items(source, views, out); return;
    case 2: copy_items(reinterpret_cast<const uint16_t *>(source), views,
                       reinterpret_cast<uint16_t *>(out)); return;
    case 4: copy_items(reinterpret_cast<const uint32_t *>(source), views,
                       reinterpret_cast<uint32_t *>(out)); return;
    case 8: copy_items(reinterpret_cast<const uint64_t *>(source), views,
                       reinterpret_cast<uint64_t *>(out)); return;
    default:
      for (size_t v = 0; v < views.count; ++v)
        std::memcpy(out + views.places[v] * item_bytes, source + views.starts[v] * item_bytes,
                    views.lengths[v] * item_bytes);
  }
}

}  // namespace LOOPS
