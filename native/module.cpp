// The module thinrow._native. Its bindings check every bound that the loops rely on.
#include <nanobind/nanobind.h>

#include "bind.h"

NB_MODULE(_native, m) {
  // Objects that live until the interpreter exits are no leaks.
  nanobind::set_leak_warnings(false);
  m.doc() =
      "Loops over every event and example, in native code, without the interpreter's lock.\n\n"
      "Functions raise ValueError for arrays that do not fit together, and IndexError for "
      "positions "
      "out of bounds.";
  thinrow::bind_events(m);
  thinrow::bind_widen(m);
  thinrow::bind_mutable(m);
  thinrow::bind_records(m);
  thinrow::bind_request(m);
  thinrow::bind_response(m);
  thinrow::bind_row_index(m);
  thinrow::bind_store(m);
  thinrow::bind_stripes(m);
  thinrow::bind_snapshot(m);
}
