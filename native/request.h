// Requests of MaterializationService, decoded into the rows that planning needs.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "plan.h"
#include "stripe.h"

namespace thinrow {

// A MaterializeRequest. On the wire its pointers are columns; here they are rows.
class MaterializeRequest {
 public:
  // The columns, in the order of `counts`.
  enum Column {
    user_ids,
    start_ts,
    end_ts,
    max_lengths,
    digests,
    request_ts,
    mutable_lengths,
    user_texts
  };
  static constexpr int columns = 8;

  // An example takes at least 2 bytes for its user's text and 1 for its end, so a message of few
  // bytes cannot fill many rows.
  static constexpr int64_t example_bytes_min = 3;

  // `bytes` are those of all messages that will be merged.
  MaterializeRequest(int64_t examples_max, int64_t bytes)
      : examples_max_(std::min(examples_max, bytes / example_bytes_min)) {}

  // Reads a message; a second one is merged into the first, as protobuf does. Throws
  // std::invalid_argument if the bytes are no message.
  void merge(Bytes message);

  // Returns one row per example; a column without elements has its default. Throws
  // std::invalid_argument if columns differ in length or have more than `examples_max` elements.
  std::vector<Pointer> pointers() const;

  const std::string &tenant() const { return tenant_; }
  // The encoded projection; none if the request has none, which differs from an empty one.
  const std::optional<std::string> &projection() const { return projection_; }
  // Elements of each column. Those beyond `examples_max` are counted, but not kept.
  const std::array<int64_t, columns> &counts() const { return counts_; }
  // The kind of user ids that the request names; 0 for none.
  uint64_t user_id_kind() const { return user_id_kind_; }
  // Users given as text, in place of ids.
  const std::vector<std::string> &texts() const { return texts_; }
  // Users given as ids.
  std::vector<int64_t> ids() const;
  // Version of the cluster's map that the client knows; 0 for none.
  uint64_t map_version() const { return map_version_; }
  // Marks the examples whose users' shards are not open here. Throws std::invalid_argument if the
  // marks are not as many as the users.
  void set_elsewhere(const bool *is_elsewhere, int64_t size);
  // Gives each example the key of its user. Throws std::invalid_argument if they are not as many
  // as the users.
  void set_ids(const int64_t *ids, int64_t size);

 private:
  template <typename Number>
  void add(Column column, Number Pointer::*member, Number value);

  int64_t examples_max_;
  std::string tenant_;
  std::optional<std::string> projection_;
  std::vector<Pointer> rows_;
  std::array<int64_t, columns> counts_{};
  uint64_t user_id_kind_ = 0, map_version_ = 0;
  std::vector<std::string> texts_;
};

// A MaterializeStreamRequest.
struct MaterializeStreamRequest {
  uint64_t cursor = 0;
  bool has_request = false;
  MaterializeRequest request;
  std::string traceparent;

  // Throws std::invalid_argument if the bytes are no such message.
  MaterializeStreamRequest(Bytes message, int64_t examples_max);
};

} // namespace thinrow
