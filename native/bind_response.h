#pragma once

#include <nanobind/nanobind.h>

void bind_response(nanobind::module_ &m);
