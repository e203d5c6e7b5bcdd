#pragma once

#include <stdexcept>

namespace thinrow {

// A stripe or a directory contradicts itself: thinrow.errors.StoreCorruptError.
struct Corrupt : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The answer would be larger than allowed: thinrow.errors.AnswerTooLargeError.
struct TooLarge : std::runtime_error {
  using std::runtime_error::runtime_error;
};

} // namespace thinrow
