// The digest of a history (docs/concepts/semantics.md, Pointer), equal to that of store/hashing.py.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <vector>

#include "recent.h"
#include "stripe.h"

namespace thinrow {

// Returns the digest sum after each of the first `count` events of a stripe.
//
// `traits` are visible_ts, event_ts, event_id and the key traits, and `parts` the stripes of their
// groups. `ordinal` is that of the stripe's first event, and `before` the digest sum before it.
std::vector<uint64_t> digest_sums(const std::vector<Trait> &traits, const std::vector<Bytes> &parts,
                                  int64_t ordinal, int64_t count, uint64_t before,
                                  const std::function<uint64_t(Bytes)> &text_hash);

// Returns the digest as pointers carry it; never 0.
uint64_t close_digest(uint64_t sum, int64_t event_count);

// Recently computed digest sums at positions inside stripes. Requests of one user within a day end
// at the same position, so each sum is computed once.
class DigestMemory {
 public:
  explicit DigestMemory(int64_t sums_max) : sums_(sums_max) {}

  // Returns the sum before a position in a user's history, if it is remembered.
  std::optional<uint64_t> find(int64_t user_id, int64_t ordinal);
  void add(int64_t user_id, int64_t ordinal, uint64_t sum);

 private:
  struct Place {
    int64_t user_id = 0, ordinal = 0;
    std::array<uint64_t, 2> hashed() const {
      return {static_cast<uint64_t>(user_id), static_cast<uint64_t>(ordinal)};
    }
    bool operator==(const Place &other) const {
      return user_id == other.user_id && ordinal == other.ordinal;
    }
  };

  std::mutex mutex_;
  Recent<Place, uint64_t> sums_;
};

} // namespace thinrow
