"""Arguments as people write them in Python, as fields of configurations."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from thinrow.core.files.paths import DataFile
from thinrow.core.files.tables import Table, is_table
from thinrow.core.settings import in_unit, unit_ms
from thinrow.errors import UsageError
from thinrow.jobs.memory_tables import write_scratch
from thinrow.jobs.option_values import time_ts
from thinrow.store.durations import duration_ms
from thinrow.store.shard import storage_error

__all__ = ["convert"]

TABLES = "a table of Arrow, Polars, pandas or Spark"


def convert(
    name: str,
    field: str,
    hint: Any,  # noqa: ANN401 - any type
    value: Any,  # noqa: ANN401 - anything that a user gave
    scratch: Callable[[str], Path],
) -> object:
    """Converts an argument to the type of its field.

    Args:
        name: Name of the argument.
        field: Name of the field, which ends in the unit of a time or of a duration.
        hint: Type of the field.
        value: The argument: what the command takes as text, or Python's own type of it.
        scratch: Returns the path at which to write a table in memory.

    Raises:
        UsageError: The argument has another type.
    """
    kinds = get_args(hint) or (hint,)
    if value is None and NoneType in kinds:
        return None
    if unit_ms(field) is not None or field.endswith("_ts"):
        try:
            return time_ts(value) if field.endswith("_ts") else in_unit(field, duration_ms(value))
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
    if DataFile in kinds:
        return _files(name, value, kinds, scratch)
    if (choices := _choices(hint)) is not None:
        if value in choices:
            return value
        raise UsageError(f"{name} is {value!r}; give one of {', '.join(map(str, choices))}.")
    if Path in kinds:
        return _paths(name, value, kinds)
    if int in kinds and not isinstance(value, bool) and hasattr(value, "__index__"):
        return operator.index(value)
    if get_origin(hint) is Sequence and isinstance(value, str):
        return [value]
    if any(kind in kinds and isinstance(value, kind) for kind in (str, bool)):
        return value
    is_several = Sequence[str] in (hint, *kinds) and isinstance(value, list | tuple)
    if is_several and all(isinstance(each, str) for each in value):
        return value
    raise UsageError(f"{name} is {value!r}; give {_named(kinds)}.")


def _choices(hint: Any) -> tuple[object, ...] | None:  # noqa: ANN401
    """Returns the values of a Literal, alone or beside None."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return next((get_args(kind) for kind in get_args(hint) if get_origin(kind) is Literal), None)


def _files(
    name: str,
    value: Any,  # noqa: ANN401
    kinds: tuple[Any, ...],
    scratch: Callable[[str], Path],
) -> object:
    """Returns names of files; a table is written to one, unless the job reads it as it is."""
    if is_table(value):
        if Table in kinds:
            return value
        path = scratch(name)
        try:
            return write_scratch(value, path)
        except OSError as error:
            raise storage_error(error, path) from error
    try:
        return _paths(name, value, kinds)
    except UsageError:
        raise UsageError(
            f"{name} is {_shown(value)}; give paths, URLs, globs, or {TABLES}."
        ) from None


def _paths(name: str, value: Any, kinds: tuple[Any, ...]) -> object:  # noqa: ANN401
    """Returns a path, or a list of them; texts stay where the field takes them, as URLs may be."""
    if isinstance(value, str | PathLike) and str(value):
        return value if isinstance(value, str) and str in kinds else Path(value)
    takes_several = any(get_origin(kind) is Iterable for kind in kinds)
    if takes_several and isinstance(value, Iterable) and not isinstance(value, str | Mapping):
        return [_paths(name, each, (str, Path)) for each in value]
    raise UsageError(f"{name} is {_shown(value)}; give {_named(kinds)}.")


def _shown(value: object) -> str:
    """Returns how an error shows an argument: a table may be long."""
    return (
        repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    )


def _named(kinds: tuple[Any, ...]) -> str:
    """Returns the names of the types that an argument may have."""
    names = {str: "a text", Path: "a path", int: "an integer", bool: "True or False"}
    several = ["a list of them" for kind in kinds if get_origin(kind) in (Iterable, Sequence)]
    return " or ".join([*(names[kind] for kind in kinds if kind in names), *several])
