// The digest of a history (docs/semantics.md, Pointer); the same sums as store/hashing.py.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "stripe.h"

// Digest sums after each of the first `count` events of a stripe.
//
// `traits` are visible_ts, event_ts, event_id and the key traits; `parts` the stripe of each one's
// group; `ordinal` that of the stripe's first event; `before` the sum before it.
std::vector<uint64_t> digest_sums(const std::vector<Trait> &traits, const std::vector<Bytes> &parts,
                                  int64_t ordinal, int64_t count, uint64_t before,
                                  const std::function<uint64_t(Bytes)> &text_hash);

// A digest as pointers carry it, never 0.
uint64_t close_digest(uint64_t sum, int64_t event_count);
