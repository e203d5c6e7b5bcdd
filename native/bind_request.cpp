// Binds the decoding of requests.
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>

#include "bind.h"
#include "python.h"
#include "request.h"

namespace thinrow {

namespace {

void make_request(MaterializeRequest *made, const nb::bytes &message, int64_t examples_max) {
  const Bytes bytes = view_of(message);
  MaterializeRequest request(examples_max, bytes.size);
  request.merge(bytes);
  new (made) MaterializeRequest(std::move(request));
}

void make_stream_request(MaterializeStreamRequest *made, const nb::bytes &message,
                         int64_t examples_max) {
  MaterializeStreamRequest request(view_of(message), examples_max);
  new (made) MaterializeStreamRequest(std::move(request));
}

std::optional<nb::bytes> projection_of(const MaterializeRequest &request) {
  if (!request.projection()) return std::nullopt;
  return nb::bytes(request.projection()->data(), request.projection()->size());
}

void set_elsewhere(MaterializeRequest &request, const In<bool> &is_elsewhere) {
  request.set_elsewhere(is_elsewhere.data(), static_cast<int64_t>(is_elsewhere.size()));
}

void set_user_ids(MaterializeRequest &request, const In<int64_t> &ids) {
  request.set_ids(ids.data(), static_cast<int64_t>(ids.size()));
}

} // namespace

void bind_request(nb::module_ &m) {
  nb::class_<MaterializeRequest>(m, "MaterializeRequest", "A decoded MaterializeRequest.")
      .def("__init__", &make_request, "message"_a, "examples_max"_a,
           R"(Decode a message.

Args:
    examples_max: Elements of each column that are kept; those beyond are counted.

Raises:
    ValueError: The bytes are no such message.)")
      .def_prop_ro("tenant", &MaterializeRequest::tenant, "Name of the tenant; empty for none.")
      .def_prop_ro("projection", &projection_of,
                   "The encoded Projection, not checked; None if the request has none.")
      .def_prop_ro("counts", &MaterializeRequest::counts,
                   R"(Elements of user_ids, start_ts, end_ts, max_lengths, digests, request_ts,
mutable_lengths and user_texts.)")
      .def_prop_ro("user_id_kind", &MaterializeRequest::user_id_kind,
                   "Number of the kind of user ids that the request names; 0 for none.")
      .def_prop_ro("user_texts", &MaterializeRequest::texts, "Users given as text.")
      .def_prop_ro(
          "user_ids", [](const MaterializeRequest &request) { return array_of(request.ids()); },
          nb::rv_policy::move, "Users given as ids; int64.")
      .def_prop_ro("map_version", &MaterializeRequest::map_version,
                   "Version of the cluster's map that the client knows; 0 for none.")
      .def("set_elsewhere", &set_elsewhere, "is_elsewhere"_a,
           R"(Mark the examples whose users' shards are not open here.

Args:
    is_elsewhere: bool, shape (examples,).

Raises:
    ValueError: The marks are not as many as the users.)")
      .def("set_user_ids", &set_user_ids, "user_ids"_a,
           R"(Give each example the key of its user.

Args:
    user_ids: int64, shape (examples,).

Raises:
    ValueError: They are not as many as the users.)");
  nb::class_<MaterializeStreamRequest>(m, "MaterializeStreamRequest",
                                       "A decoded MaterializeStreamRequest.")
      .def("__init__", &make_stream_request, "message"_a, "examples_max"_a,
           R"(Decode a message.

Args:
    examples_max: Elements of each column that are kept; those beyond are counted.

Raises:
    ValueError: The bytes are no such message.)")
      .def_ro("cursor", &MaterializeStreamRequest::cursor, "Chosen by the client.")
      .def_ro("has_request", &MaterializeStreamRequest::has_request, "False without a batch.")
      .def_ro("request", &MaterializeStreamRequest::request, "The batch; empty without one.")
      .def_ro("traceparent", &MaterializeStreamRequest::traceparent,
              "The caller's span, as W3C Trace Context writes it.");
}

} // namespace thinrow
