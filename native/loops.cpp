#include "loops.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

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

// Calls `write(run, block's width, its offsets, its base, words, target)` for what views show of
// each block.
template <typename To, typename Write>
void each_block(const Blocks *runs, const Views &views, To *out, Write &&write) {
  for (size_t v = 0; v < views.count; ++v) {
    const Blocks &blocks = runs[views.runs[v]];
    int64_t word = views.starts[v];
    const int64_t end = word + views.lengths[v];
    To *target = out + views.places[v];
    size_t block = std::upper_bound(blocks.first_word, blocks.first_word + blocks.count + 1, word) -
                   blocks.first_word - 1;
    for (; word < end; ++block) {
      const int64_t words = std::min(end, blocks.first_word[block + 1]) - word;
      if (!words) continue; // what an empty block says means nothing
      const int64_t within = word - blocks.first_word[block];
      const uint8_t width = blocks.widths[block];
      write(views.runs[v], width, blocks.data + blocks.first_byte[block] + within * width,
            blocks.bases[block], words, target);
      target += words;
      word += words;
    }
  }
}

template <typename From, typename To>
void widen_all(const Blocks *runs, const Views &views, To *out) {
  each_block(runs, views, out,
             [](int64_t, uint8_t width, const uint8_t *data, int64_t base, int64_t words, To *to) {
               switch (width) {
                 case 0: std::fill_n(to, words, static_cast<To>(static_cast<From>(base))); break;
                 case 1: widen<From, To, uint8_t>(data, base, words, to); break;
                 case 2: widen<From, To, uint16_t>(data, base, words, to); break;
                 case 4: widen<From, To, uint32_t>(data, base, words, to); break;
                 default: widen<From, To, uint64_t>(data, base, words, to);
               }
             });
}

template <typename To, typename Offset>
bool look_up(const uint8_t *data, uint64_t base, int64_t words, const Entries &entries, To *out) {
  bool is_inside = true;
  for (int64_t i = 0; i < words; ++i) {
    Offset offset;
    std::memcpy(&offset, data + i * sizeof(Offset), sizeof(Offset));
    const uint64_t word = base + offset;
    const bool is_entry = word < entries.count;
    is_inside &= is_entry;
    out[i] = static_cast<To>(entries.values[is_entry ? word : 0]);
  }
  return is_inside;
}

template <typename To>
bool look_up_all(const Blocks *runs, const Entries *entries, const Views &views, To *out) {
  bool is_inside = true;
  each_block(runs, views, out,
             [&](int64_t run, uint8_t width, const uint8_t *data, int64_t base, int64_t words,
                 To *to) {
               const Entries &mine = entries[run];
               if (!mine.count) {
                 is_inside = false;
                 return;
               }
               switch (width) {
                 case 0:
                   is_inside &= static_cast<uint64_t>(base) < mine.count;
                   if (is_inside) std::fill_n(to, words, static_cast<To>(mine.values[base]));
                   break;
                 case 1: is_inside &= look_up<To, uint8_t>(data, base, words, mine, to); break;
                 case 2: is_inside &= look_up<To, uint16_t>(data, base, words, mine, to); break;
                 case 4: is_inside &= look_up<To, uint32_t>(data, base, words, mine, to); break;
                 default: is_inside &= look_up<To, uint64_t>(data, base, words, mine, to);
               }
             });
  return is_inside;
}

template <typename From>
void widen_from(const Blocks *runs, Integer to, const Views &views, uint8_t *out) {
  switch (to) {
    case Integer::i8: return widen_all<From>(runs, views, reinterpret_cast<int8_t *>(out));
    case Integer::i16: return widen_all<From>(runs, views, reinterpret_cast<int16_t *>(out));
    case Integer::i32: return widen_all<From>(runs, views, reinterpret_cast<int32_t *>(out));
    default: return widen_all<From>(runs, views, reinterpret_cast<int64_t *>(out));
  }
}

template <typename Item>
void copy_items(const uint8_t *const *runs, const Views &views, uint8_t *out) {
  for (size_t v = 0; v < views.count; ++v) {
    const Item *source = reinterpret_cast<const Item *>(runs[views.runs[v]]) + views.starts[v];
    Item *target = reinterpret_cast<Item *>(out) + views.places[v];
    // A plain loop: the library's memcpy is slow here for some middling sizes.
    for (int64_t i = 0; i < views.lengths[v]; ++i) target[i] = source[i];
  }
}

}  // namespace

void widen_views(const Blocks *runs, Integer from, Integer to, const Views &views, uint8_t *out) {
  switch (from) {
    case Integer::i8: return widen_from<int8_t>(runs, to, views, out);
    case Integer::i16: return widen_from<int16_t>(runs, to, views, out);
    case Integer::i32: return widen_from<int32_t>(runs, to, views, out);
    case Integer::i64: return widen_from<int64_t>(runs, to, views, out);
    case Integer::u8: return widen_from<uint8_t>(runs, to, views, out);
    case Integer::u16: return widen_from<uint16_t>(runs, to, views, out);
    case Integer::u32: return widen_from<uint32_t>(runs, to, views, out);
    case Integer::u64: return widen_from<uint64_t>(runs, to, views, out);
  }
}

bool look_up_views(const Blocks *runs, const Entries *entries, Integer to, const Views &views,
                   uint8_t *out) {
  switch (to) {
    case Integer::i8: return look_up_all(runs, entries, views, reinterpret_cast<int8_t *>(out));
    case Integer::i16: return look_up_all(runs, entries, views, reinterpret_cast<int16_t *>(out));
    case Integer::i32: return look_up_all(runs, entries, views, reinterpret_cast<int32_t *>(out));
    default: return look_up_all(runs, entries, views, reinterpret_cast<int64_t *>(out));
  }
}

void copy_views(const uint8_t *const *runs, size_t item_bytes, const Views &views, uint8_t *out) {
  switch (item_bytes) {
    case 1: return copy_items<uint8_t>(runs, views, out);
    case 2: return copy_items<uint16_t>(runs, views, out);
    case 4: return copy_items<uint32_t>(runs, views, out);
    case 8: return copy_items<uint64_t>(runs, views, out);
    default:
      for (size_t v = 0; v < views.count; ++v)
        std::memcpy(out + views.places[v] * item_bytes,
                    runs[views.runs[v]] + views.starts[v] * item_bytes,
                    views.lengths[v] * item_bytes);
  }
}
