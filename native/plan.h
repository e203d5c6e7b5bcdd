// From pointers to the events they name: which stripes to read, and where in them to cut.
//
// docs/concepts/semantics.md says what pointers and statuses mean; the steps are those of
// server/thinrow/store/history.py. An ordinal is an event's place in its user's whole history.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "digest.h"
#include "stripe.h"

// The numbers of thinrow.v1.Status.
enum Status : uint8_t { ok = 1, not_ready, expired, digest_mismatch, erased, invalid };

constexpr int64_t never_ts = std::numeric_limits<int64_t>::min();

struct Pointer {
  int64_t user_id, start_ts, end_ts, max_length;
  uint64_t digest; // 0: not recorded
  int64_t request_ts, mutable_length;
};

struct Example {
  Pointer pointer;
  Status status = ok;
  bool is_live = false;   // its user matters
  bool is_active = false; // it has a window to look for
  bool is_checked = false;
  int64_t user = 0;
  int64_t start_ts = 0, named = 0, wanted = 0;
  // The newest stripe of the window and the one in which it starts; -1 where the window ends, or
  // starts, before every event that is left.
  int64_t newest = -1, oldest = -1;
  int64_t end_at_least = 1; // the window's end is no ordinal before this one
  // What came of it:
  int64_t first = 0, count = 0, left = 0;
  uint64_t digest = 0;
};

struct User {
  int64_t user_id;
  int64_t first_stripe = 0; // number, in the store, of the first stripe left
  int64_t event_count = 0;
  uint64_t digest_sum = 0;
  int64_t dropped_ts = never_ts, erased_ts = never_ts;
  int64_t begin = 0, end = 0; // its stripes
  int64_t first_ordinal = 0;  // of its first event left
};

struct Stripe {
  int64_t user;
  int64_t first_ts, ordinal, end;
  uint64_t sum;            // digest sum before it
  bool is_needed = false;  // its events may be in the answer
  bool is_cut = false;     // a window begins or ends in it
  bool is_checked = false; // a digest may end in it
};

// What is read of a stripe: one stored group.
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

  // Takes the users' directories, data being nullptr for one without, and chooses stripes.
  void choose(const std::vector<Bytes> &directories, std::vector<Group> groups);

  // Takes the stripes, in the order of `stripe_keys`.
  void take(const std::vector<Bytes> &values);

  // Cuts, checks, truncates: fills in every example.
  void resolve(const std::vector<Trait> &key_traits,
               const std::function<uint64_t(Bytes)> &text_hash, DigestMemory &memory);

  std::vector<uint8_t> directory_keys() const;
  std::vector<uint8_t> stripe_keys() const;
  int64_t events_at_most() const;
  int64_t stripe_bytes_at_most() const;

  Bytes value(int slot, int64_t stripe) const; // throws Corrupt where it was not read
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
  std::vector<int64_t> places_; // of each group and stripe among the values; -1: not read
  std::vector<Bytes> values_;
};
