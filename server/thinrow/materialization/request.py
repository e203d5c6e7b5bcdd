"""Requests of MaterializationService: decoded by native code, or made in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from thinrow._native import MaterializeRequest, MaterializeStreamRequest
from thinrow.errors import RequestError
from thinrow.store.history import PointerBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "LocalRequest",
    "MaterializeRequest",
    "MaterializeStreamRequest",
    "check_examples",
    "request_decoder",
]

R = TypeVar("R", MaterializeRequest, MaterializeStreamRequest)
COLUMNS = (
    "user_ids",
    "start_ts",
    "end_ts",
    "max_lengths",
    "digests",
    "request_ts",
    "mutable_lengths",
    "user_texts",
)
"""Names of `MaterializeRequest.counts`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRequest(PointerBatch):
    """A request of this process, with the fields that a decoded one has."""

    tenant: str
    """The tenant whose projection applies; "" for none."""
    projection: bytes | None
    """The encoded projection; None for a tenant's."""
    user_id_kind: int = 0
    """Number of the kind of integers, where they are not int64."""
    user_texts: Sequence[str] = ()
    """Users named by texts, in place of `user_ids`."""
    map_version: int = 0
    """Always 0: a process that reads a store itself needs no map."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Elements of each of `COLUMNS`."""
        columns = len(COLUMNS) - 2
        if self.user_texts:
            return (0, *(len(self),) * columns, len(self))
        return (*(len(self),) * (columns + 1), 0)


def request_decoder(kind: type[R], examples_max: int) -> Callable[[bytes], R]:
    """Makes the deserializer of a kind of request, which raises RequestError for other bytes."""

    def decode(message: bytes) -> R:
        try:
            return kind(message, examples_max)
        except ValueError as error:
            raise RequestError(f"The bytes sent are no {kind.__name__}.") from error

    return decode


def check_examples(request: MaterializeRequest | LocalRequest, examples_max: int) -> None:
    """Checks that each example of a request has its pointer.

    Raises:
        RequestError: Columns differ in length, or there are more than `examples_max` examples.
    """
    counts = dict(zip(COLUMNS, request.counts, strict=True))
    by_id, by_text = counts.pop("user_ids"), counts.pop("user_texts")
    examples, end_count = max(by_id, by_text), counts.pop("end_ts")
    if examples > examples_max:
        raise RequestError(
            f"{examples} examples in one request; this server takes {examples_max}, so send "
            f"several."
        )
    users = "user_texts" if by_text > by_id else "user_ids"
    optional = ((name, count) for name, count in counts.items() if count)
    for name, count in (("end_ts", end_count), *optional):
        if count != examples:
            raise RequestError(
                f"{name} has {count} elements and {users} has {examples}; give each example one."
            )
