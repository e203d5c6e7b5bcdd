"""Errors of the operating system that say nothing about a file's content, and their remedies."""

from __future__ import annotations

import errno
import os

__all__ = ["access_failure", "failure_reason", "first_line", "is_temporary"]

_FILES = "raise the limit of open files (ulimit -n), and try again"
_PERMISSION = "give this process's user the permission, and try again"
REMEDIES = {
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: "mount the file system so that it can be written, and try again",
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.ENOMEM: "give this process more memory, and try again",
    errno.EIO: "check the disk (dmesg names its faults), and try again or use a replica",
    errno.ESTALE: "mount the file system again, and try again",
}


TEMPORARY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE})
"""Refusals that end when other work does, or that another machine does not meet."""


def access_failure(error: Exception) -> str | None:
    """Returns the reason and the remedy of an error of access; None for one of the content."""
    number = _number(error)
    if number not in REMEDIES:
        return None
    return f"{os.strerror(number)}; {REMEDIES[number]}"


def is_temporary(error: Exception) -> bool:
    """Returns whether the same access may succeed later, or elsewhere."""
    return _number(error) in TEMPORARY


def _number(error: Exception) -> int | None:
    """Returns the errno; RocksDB and Arrow quote the system's words where they keep no number."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and not str(error).startswith("Corruption"):
        quoted = [each for each in REMEDIES if os.strerror(each) in str(error)]
        number = max(quoted, key=lambda each: len(os.strerror(each)), default=None)
    return number


def failure_reason(error: Exception) -> str:
    """Returns why a file cannot be used: with the remedy, if the error is one of access."""
    if (failure := access_failure(error)) is not None:
        return failure
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error)


def first_line(error: Exception) -> str:
    """Returns an error's first line without its full stop, or its type's name if it is silent."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
