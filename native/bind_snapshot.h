#pragma once

#include <nanobind/nanobind.h>

void bind_snapshot(nanobind::module_ &m);
