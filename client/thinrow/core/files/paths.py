"""Paths, folders, globs and URLs, resolved to the Parquet files that they stand for.

docs/reference/formats.md has the rules, which are those of Spark and DuckDB.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from thinrow.core.files.io_errors import failure_reason
from thinrow.core.files.table_range import TableRange, is_versioned
from thinrow.core.kafka import TOPIC_PREFIX
from thinrow.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["SUFFIXES", "AnyFile", "DataFile", "Named", "OneNamed", "data_files", "located"]

SUFFIXES = (".parquet", ".parq", ".pq")
"""Extensions of Parquet files."""
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
NAMES_SHOWN = 3
INTEGER = re.compile(r"[+-]?\d{1,18}")
DATE = re.compile(r"\d{4}-\d\d-\d\d")
TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d(\.\d{1,6})?)?")


@dataclass(frozen=True, slots=True, order=True)
class DataFile:
    """One file to read."""

    name: str
    """Path or URL."""

    keys: tuple[tuple[str, Any], ...] = ()
    """Columns that the names of its Hive folders give, such as ("dt", date(2024, 1, 2))."""

    other_keys: tuple[str, ...] = ()
    """Keys that files beside it have: null here, unless the file has such a column."""

    shown: str = ""
    """Name of what the file holds, as errors show it instead of the path."""

    fingerprint: str = ""
    """Identity of the content, which runs record instead of the file's."""

    def __str__(self) -> str:
        return self.shown or self.name

    @property
    def local(self) -> Path | None:
        """The path on this machine; None if the file is elsewhere."""
        path, filesystem = located(self.name)
        return Path(path) if filesystem is None else None

    @property
    def absolute(self) -> DataFile:
        """The same file by a path that holds in every folder."""
        path = self.local
        return self if path is None else replace(self, name=str(path.absolute()), shown=str(self))

    def blocks(self, block_bytes: int) -> Iterator[bytes]:
        """Yields the bytes of the file.

        Raises:
            InputError: The file cannot be read.
        """
        path, filesystem = located(self.name)
        try:
            with Path(path).open("rb") if filesystem is None else filesystem.open(path) as file:
                while block := file.read(block_bytes):
                    yield block
        except OSError as error:
            raise InputError(f"{self} cannot be read: {error.strerror or error}.") from error

    def end(self, most: int) -> tuple[int, bytes]:
        """Reads the size and at most `most` of the last bytes.

        Raises:
            InputError: The file cannot be read.
        """
        path, filesystem = located(self.name)
        try:
            with Path(path).open("rb") if filesystem is None else filesystem.open(path) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - most))
                return size, file.read()
        except OSError as error:
            raise InputError(f"{self} cannot be read: {error.strerror or error}.") from error


OneNamed = str | Path | DataFile
"""A file, a folder, a glob or a URL."""
Named = OneNamed | Iterable[OneNamed]
"""Files, folders, globs and URLs, one or several."""
AnyFile = DataFile | Path
"""A file that was found, or one that is known to be there."""


def data_files(named: Named, suffixes: Sequence[str] = SUFFIXES) -> list[DataFile]:
    """Lists the files that paths stand for, each once, sorted by name.

    A file with several names, by links or relative paths, counts once.

    Args:
        named: Files, folders, globs and URLs.
        suffixes: Extensions of the files that a folder stands for, in lower case.

    Raises:
        InputError: A path stands for nothing, or a folder has files that may be forgotten data.
        UsageError: A URL needs a library that is not installed, or a name is no path.
    """
    found: dict[str, DataFile] = {}
    given: list[DataFile] = []
    for one in [named] if isinstance(named, OneNamed) else named:
        if isinstance(one, DataFile):
            given.append(one)
            continue
        if not isinstance(one, str | os.PathLike):
            raise UsageError(
                f"A {type(one).__name__} is among the names of files, but each must be a path; to "
                f"read tables in memory, join them into one."
            )
        if not str(one):
            raise InputError("A file's name is empty; check the names.")
        if isinstance(one, str) and is_versioned(one):
            given += _table_files(one)
            continue
        for file in sorted(_expand(str(one), suffixes), key=lambda file: file.name):
            local = file.local
            identity = file.name if local is None else os.path.realpath(local)
            known = found.get(identity)
            # A folder gives a file its keys, however else it is named.
            if known is None or len(file.keys) > len(known.keys):
                found[identity] = file
    if not found and not given:
        raise InputError("No file was named; name at least one.")
    files = [*_typed(list(found.values())), *{file.name: file for file in given}.values()]
    return sorted(files, key=lambda file: file.name)


def _table_files(name: str) -> list[DataFile]:
    """Lists the data files of a table with versions."""
    # These modules need the names of this one.
    from thinrow.core.files.delta import delta_files
    from thinrow.core.files.iceberg import iceberg_files

    wanted = TableRange.parse(name)
    return delta_files(wanted) if name.startswith("delta:") else iceberg_files(wanted)


def located(name: str) -> tuple[str, Any]:
    """Splits a URL into a path and the file system it lies in; None: this machine's."""
    if name.startswith("file://"):
        return name.removeprefix("file://"), None
    if "://" not in name and "::" not in name:
        return name, None
    try:
        import fsspec.core

        filesystem, inner = fsspec.core.url_to_fs(name)
    except ImportError as error:
        raise UsageError(f"{name} cannot be opened: {str(error).rstrip('.')}.") from error
    except ValueError as error:
        raise InputError(f"{name} is no URL that fsspec knows: {error}.") from error
    return str(inner), filesystem


def _expand(name: str, suffixes: Sequence[str]) -> list[DataFile]:
    path, filesystem = located(name)
    tree = _Local() if filesystem is None else _Remote(filesystem)
    if filesystem is None:
        path = str(Path(path))
    try:
        is_folder = tree.is_folder(path)
        if is_folder is None and glob.has_magic(path):
            return _matches(name, path, tree, suffixes)
        if is_folder is None:
            if name.startswith(TOPIC_PREFIX):
                raise UsageError(
                    f"{name} is a topic of Kafka, which thinrow compact and export read; export it "
                    f"to a file first."
                )
            raise InputError(f"There is no file {name}; check the name.")
        if is_folder:
            return _within(path, path, tree, suffixes)
    except OSError as error:
        raise InputError(f"{name} cannot be listed: {failure_reason(error)}.") from error
    return [DataFile(path if filesystem is None else name)]


class _Local:
    """Folders of this machine."""

    def is_folder(self, path: str) -> bool | None:
        """Returns None where there is nothing."""
        return Path(path).is_dir() if Path(path).exists() else None

    def files(self, folder: str) -> Iterator[str]:
        """Yields every file below, through links, each folder once."""
        seen: set[str] = set()
        for inner, folders, names in os.walk(folder, onerror=_fail, followlinks=True):
            real = os.path.realpath(inner)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            yield from (str(Path(inner, name)) for name in names)

    def glob(self, pattern: str) -> list[str]:
        return [str(Path(match)) for match in glob.iglob(pattern, recursive=True)]  # noqa: PTH207

    def name(self, path: str) -> str:
        return path


class _Remote:
    """Folders of a file system that fsspec knows."""

    def __init__(self, filesystem: Any) -> None:  # noqa: ANN401 - fsspec has no types
        self._filesystem = filesystem

    def is_folder(self, path: str) -> bool | None:
        """Returns None where there is nothing."""
        try:
            return bool(self._filesystem.info(path)["type"] == "directory")
        except FileNotFoundError:
            return None

    def files(self, folder: str) -> Iterator[str]:
        """Yields every file below."""
        return iter(self._filesystem.find(folder))

    def glob(self, pattern: str) -> list[str]:
        return list(self._filesystem.glob(pattern))

    def name(self, path: str) -> str:
        return str(self._filesystem.unstrip_protocol(path))


def _fail(error: OSError) -> None:
    raise error


def _matches(
    name: str, pattern: str, tree: _Local | _Remote, suffixes: Sequence[str]
) -> list[DataFile]:
    """Lists what a glob stands for: files that it names, and those of folders that it names."""
    parts = PurePosixPath(pattern).parts
    magic = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    root = str(PurePosixPath(*parts[:magic])) if magic else ""
    found: dict[str, DataFile] = {}
    for match in sorted(tree.glob(pattern)):
        if _is_ignored(_below(root, match)):
            continue
        if not tree.is_folder(match):
            found[match] = DataFile(tree.name(match), _keys(root, match))
        elif "**" not in parts:
            found.update({file.name: file for file in _within(match, root, tree, suffixes)})
    if not found:
        raise InputError(f"No file matches {name}; check the name.")
    return list(found.values())


def _within(
    folder: str, root: str, tree: _Local | _Remote, suffixes: Sequence[str]
) -> list[DataFile]:
    """Lists the files of data in a folder and all below it; keys count from `root`."""
    files: list[str] = []
    unclear: list[str] = []
    others: list[str] = []
    for path in sorted(tree.files(folder)):
        if _is_ignored(_below(folder, path)):
            continue
        is_data = path.lower().endswith(tuple(suffixes))
        has_suffix = PurePosixPath(path).suffix
        (files if is_data else others if has_suffix else unclear).append(path)
    shown = tree.name(folder)
    if unclear:
        raise InputError(
            f"The folder {shown} has files without an extension: {_some(unclear, tree.name)}; "
            f"where they are Parquet, name them with a glob such as {shown}/*, otherwise move them."
        )
    if not files:
        beside = f", but {_some(others, tree.name)}" if others else ""
        raise InputError(
            f"The folder {shown} has no *{' or *'.join(_shown(suffixes))} files{beside}; name the "
            f"right one."
        )
    return [DataFile(tree.name(path), _keys(root, path)) for path in files]


def _shown(suffixes: Sequence[str]) -> list[str]:
    """Returns the extensions that errors name: Parquet has one that is usual."""
    return [each for each in suffixes if each not in SUFFIXES[1:]]


def _some(paths: list[str], name: Callable[[str], str]) -> str:
    more = len(paths) - NAMES_SHOWN
    shown = ", ".join(name(path) for path in paths[:NAMES_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


def _below(root: str, path: str) -> tuple[str, ...]:
    """The names of folders and file below a folder."""
    whole, above = PurePosixPath(path).parts, PurePosixPath(root).parts
    return whole[len(above) :] if whole[: len(above)] == above else whole


def _is_ignored(parts: tuple[str, ...]) -> bool:
    """Returns True for names that Spark and Hive ignore: with a leading dot or underscore."""
    return any(part[0] == "." or (part[0] == "_" and "=" not in part) for part in parts)


def _keys(root: str, path: str) -> tuple[tuple[str, Any], ...]:
    """Reads the columns that folders named KEY=VALUE give."""
    keys: dict[str, str | None] = {}
    for part in _below(root, path)[:-1]:
        key, equals, value = part.partition("=")
        if key and equals:
            keys[unquote(key)] = None if value == HIVE_NULL else unquote(value)
    return tuple(keys.items())


def _typed(files: list[DataFile]) -> list[DataFile]:
    """Gives each key the narrowest type that all its values have: int64, date, time or text."""
    values: dict[str, list[str]] = {}
    for file in files:
        for key, value in file.keys:
            if isinstance(value, str):
                values.setdefault(key, []).append(value)
    reads = {key: _reader(texts) for key, texts in values.items()}
    every = dict.fromkeys(key for file in files for key, _ in file.keys)
    return [
        replace(
            file,
            keys=tuple(
                (key, reads[key](value) if isinstance(value, str) else value)
                for key, value in file.keys
            ),
            other_keys=tuple(key for key in every if key not in dict(file.keys)),
        )
        for file in files
    ]


def _reader(texts: list[str]) -> Callable[[str], object]:
    readers: list[tuple[re.Pattern[str], Callable[[str], object]]] = [
        (INTEGER, int),
        (DATE, date.fromisoformat),
        (TIME, datetime.fromisoformat),
    ]
    for pattern, read in readers:
        if all(pattern.fullmatch(text) for text in texts):
            try:
                for text in set(texts):
                    read(text)
            except ValueError:
                continue
            return read
    return str
