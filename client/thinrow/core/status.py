"""Statuses of examples and their names."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Status", "status_name"]


class Status(IntEnum):
    """The result of looking up one example; the numbers are those of `thinrow.v1.Status`."""

    OK = 1
    NOT_READY = 2
    EXPIRED = 3
    DIGEST_MISMATCH = 4
    ERASED = 5
    INVALID = 6
    ELSEWHERE = 7
    """Between servers of a cluster and their clients only; no batch has it."""


NAMES = {status.value: status.name for status in Status}


def status_name(status: int) -> str:
    """Returns a status's name, or its number if a newer server sent it."""
    return NAMES.get(status, str(status))
