// Adds the classes and functions of each binding to the module.
#pragma once

#include <nanobind/nanobind.h>

namespace thinrow {

void bind_events(nanobind::module_ &m);
void bind_widen(nanobind::module_ &m);
void bind_mutable(nanobind::module_ &m);
void bind_records(nanobind::module_ &m);
void bind_request(nanobind::module_ &m);
void bind_response(nanobind::module_ &m);
void bind_row_index(nanobind::module_ &m);
void bind_snapshot(nanobind::module_ &m);
void bind_store(nanobind::module_ &m);
void bind_stripes(nanobind::module_ &m);

} // namespace thinrow
