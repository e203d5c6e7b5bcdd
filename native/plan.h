// Resolves pointers: chooses the stripes to read, and finds the events that each pointer names.
//
// docs/concepts/semantics.md defines pointers and statuses; server/thinrow/store/history.py calls
// the steps. An ordinal is an event's position in its user's whole history.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "digest.h"
#include "fields.h"
#include "stripe.h"

namespace thinrow {

constexpr int64_t never_ts = std::numeric_limits<int64_t>::min();

struct Pointer {
  int64_t user_id, start_ts, end_ts, max_length;
  uint64_t digest; // 0 if none was recorded
  int64_t request_ts, mutable_length;
  bool is_elsewhere = false; // the user's shard is not open here
};

struct Example {
  Pointer pointer;
  Status status = Status::ok;
  bool is_live = false;    // the user's directory is read
  bool is_active = false;  // the window may contain events
  bool is_checked = false; // the digest is computed
  int64_t user = 0;
  int64_t start_ts = 0, named = 0, wanted = 0;
  // The newest stripe of the window, and the stripe in which the window starts; -1 if the window
  // ends, or starts, before all events in the store.
  int64_t newest = -1, oldest = -1;
  int64_t end_at_least = 1; // lower bound on the ordinal at which the window ends
  // Results of `resolve`:
  int64_t first = 0, count = 0, available_count = 0;
  uint64_t digest = 0;
};

struct User {
  int64_t user_id;
  int64_t first_stripe = 0; // number, in the store, of the first stripe that exists
  int64_t event_count = 0;
  uint64_t digest_sum = 0;
  int64_t dropped_ts = never_ts, erased_ts = never_ts;
  int64_t begin = 0, end = 0; // range of the user's stripes in Plan::stripes
  int64_t first_ordinal = 0;  // ordinal of the first event in the store
};

struct Stripe {
  int64_t user;
  int64_t first_ts, ordinal, end;
  uint64_t sum;            // digest sum before it
  bool is_needed = false;  // the answer may contain its events
  bool is_cut = false;     // a window begins or ends in it
  bool is_checked = false; // a digest may end in it
};

// One stored group of traits.
struct Group {
  int number;
  bool is_wanted; // the projection has traits of it
  bool is_key;    // the digest has traits of it
  int64_t event_bytes;
};

constexpr int event_group = 1;

class Plan {
 public:
  Plan(std::vector<Pointer> pointers, const std::vector<int64_t> &watermarks,
       int64_t sequence_length, bool head, bool record_digests);

  // Reads the users' directories (`data` is nullptr for users without one) and chooses stripes.
  void choose_stripes(const std::vector<Bytes> &directories, std::vector<Group> groups);

  // Sets the stripes that were read, in the order of `stripe_keys`.
  void set_stripes(const std::vector<Bytes> &values);

  // Finds, checks and truncates the window of every example.
  void resolve(const std::vector<Trait> &key_traits,
               const std::function<uint64_t(Bytes)> &text_hash, DigestMemory &memory);

  std::vector<uint8_t> directory_keys() const;
  std::vector<uint8_t> stripe_keys() const;
  int64_t events_at_most() const;
  int64_t stripe_bytes_at_most() const;

  Bytes value(int slot, int64_t stripe) const; // throws Corrupt if it was not read
  int slot_of(int group) const;
  int64_t stripe_at(int64_t user, int64_t ordinal) const;
  bool is_head() const { return head_; }
  int64_t sequence_length() const { return sequence_length_; }

  std::vector<Example> examples;
  std::vector<User> users;
  std::vector<Stripe> stripes;

 private:
  void bound(Example &example) const;
  void mark(Example &example);
  bool is_chosen(const Stripe &stripe, const Group &group) const;
  int64_t stripe_before(const User &user, int64_t ts) const;

  int64_t sequence_length_;
  bool head_, record_digests_;
  std::vector<Group> groups_;
  std::vector<int64_t> places_; // place of each group and stripe in `values_`; -1 if not read
  std::vector<Bytes> values_;
};

} // namespace thinrow
