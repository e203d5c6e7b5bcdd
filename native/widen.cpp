#include "widen.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <system_error>
#include <thread>
#include <type_traits>

namespace thinrow {

namespace {

// Below this size, starting a second thread takes longer than the work.
constexpr int64_t shared_bytes_min = 4 << 20;
// Approximate output of one task, the unit that threads take from the queue.
constexpr int64_t task_bytes = 1 << 20;

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

template <typename To, typename Offset>
bool look_up(const uint8_t *data, uint64_t base, int64_t words, const Blocks &run, To *out) {
  bool is_inside = true;
  for (int64_t i = 0; i < words; ++i) {
    Offset offset;
    std::memcpy(&offset, data + i * sizeof(Offset), sizeof(Offset));
    const uint64_t word = base + offset;
    const bool is_entry = word < run.entry_count;
    is_inside &= is_entry;
    out[i] = static_cast<To>(run.entries[is_entry ? word : 0]);
  }
  return is_inside;
}

// Writes words of one block; returns false if one of them exceeds the dictionary.
template <typename From, typename To>
bool write_words(const Blocks &run, uint8_t width, const uint8_t *data, int64_t base, int64_t words,
                 To *out) {
  if (!run.entries) {
    switch (width) {
      case 0: std::fill_n(out, words, static_cast<To>(static_cast<From>(base))); break;
      case 1: widen<From, To, uint8_t>(data, base, words, out); break;
      case 2: widen<From, To, uint16_t>(data, base, words, out); break;
      case 4: widen<From, To, uint32_t>(data, base, words, out); break;
      default: widen<From, To, uint64_t>(data, base, words, out);
    }
    return true;
  }
  if (!run.entry_count) return false;
  switch (width) {
    case 0: {
      const bool is_entry = static_cast<uint64_t>(base) < run.entry_count;
      std::fill_n(out, words, static_cast<To>(run.entries[is_entry ? base : 0]));
      return is_entry;
    }
    case 1: return look_up<To, uint8_t>(data, base, words, run, out);
    case 2: return look_up<To, uint16_t>(data, base, words, run, out);
    case 4: return look_up<To, uint32_t>(data, base, words, run, out);
    default: return look_up<To, uint64_t>(data, base, words, run, out);
  }
}

template <typename From, typename To>
bool write_views(const Job &job, size_t first_view, size_t last_view) {
  bool is_inside = true;
  const Views &views = job.views;
  for (size_t v = first_view; v < last_view; ++v) {
    const Blocks &run = job.runs[views.runs[v]];
    int64_t word = views.starts[v] * job.size;
    const int64_t end = word + views.lengths[v] * job.size;
    To *target = reinterpret_cast<To *>(job.out) + views.places[v] * job.size;
    size_t block =
        std::upper_bound(run.first_word, run.first_word + run.count + 1, word) - run.first_word - 1;
    for (; word < end; ++block) {
      const int64_t words = std::min(end, run.first_word[block + 1]) - word;
      if (!words) continue; // the base and width of an empty block are undefined
      const uint8_t width = run.widths[block];
      const uint8_t *data =
          run.data + run.first_byte[block] + (word - run.first_word[block]) * width;
      is_inside &= write_words<From>(run, width, data, run.bases[block], words, target);
      target += words;
      word += words;
    }
  }
  return is_inside;
}

template <typename From>
bool write_from(const Job &job, size_t first_view, size_t last_view) {
  switch (job.to) {
    case Integer::i8: return write_views<From, int8_t>(job, first_view, last_view);
    case Integer::i16: return write_views<From, int16_t>(job, first_view, last_view);
    case Integer::i32: return write_views<From, int32_t>(job, first_view, last_view);
    default: return write_views<From, int64_t>(job, first_view, last_view);
  }
}

bool write_some(const Job &job, size_t first_view, size_t last_view) {
  switch (job.from) {
    case Integer::i8: return write_from<int8_t>(job, first_view, last_view);
    case Integer::i16: return write_from<int16_t>(job, first_view, last_view);
    case Integer::i32: return write_from<int32_t>(job, first_view, last_view);
    case Integer::i64: return write_from<int64_t>(job, first_view, last_view);
    case Integer::u8: return write_from<uint8_t>(job, first_view, last_view);
    case Integer::u16: return write_from<uint16_t>(job, first_view, last_view);
    case Integer::u32: return write_from<uint32_t>(job, first_view, last_view);
    default: return write_from<uint64_t>(job, first_view, last_view);
  }
}

struct Task {
  size_t job, first_view, last_view;
};

int64_t event_bytes(const Job &job) { return job.size << static_cast<int>(job.to); }

std::vector<Task> tasks_of(const std::vector<Job> &jobs, int64_t &bytes) {
  std::vector<Task> tasks;
  bytes = 0;
  for (size_t number = 0; number < jobs.size(); ++number) {
    const Job &job = jobs[number];
    size_t first = 0;
    int64_t task_size = 0;
    for (size_t view = 0; view < job.views.count; ++view) {
      task_size += job.views.lengths[view] * event_bytes(job);
      if (task_size < task_bytes && view + 1 < job.views.count) continue;
      tasks.push_back({number, first, view + 1});
      first = view + 1;
      bytes += task_size;
      task_size = 0;
    }
  }
  return tasks;
}

} // namespace

size_t write(const std::vector<Job> &jobs, int threads) {
  int64_t bytes;
  const std::vector<Task> tasks = tasks_of(jobs, bytes);
  std::atomic<size_t> next{0}, first_bad{jobs.size()};
  const auto work = [&] {
    for (size_t task; (task = next++) < tasks.size();) {
      const auto [job, first_view, last_view] = tasks[task];
      if (write_some(jobs[job], first_view, last_view)) continue;
      for (size_t least = first_bad; job < least && !first_bad.compare_exchange_weak(least, job);) {
      }
    }
  };
  std::vector<std::thread> helpers;
  const size_t wanted = bytes < shared_bytes_min ? 1 : std::min<size_t>(threads, tasks.size());
  try {
    helpers.reserve(wanted);
    while (helpers.size() + 1 < wanted) helpers.emplace_back(work);
  } catch (const std::exception &) {
    // If no thread or memory is available, the threads that exist do all tasks.
  }
  work();
  for (std::thread &helper : helpers) helper.join();
  return first_bad;
}

} // namespace thinrow
