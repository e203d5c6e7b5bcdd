"""Statuses, digests and cuts, each explained in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.core.status import Status

if TYPE_CHECKING:
    from thinrow.explore.histories import Sight
    from thinrow.explore.moments import Kind

__all__ = ["cut_sentence", "digest_sentence", "status_sentence"]

SEEN: dict[Kind, str] = {
    "row": "The exact history: these are the events that serving saw.",
    "at": "These are the events that a request at this time would see from the store.",
    "now": "These are the events that a request now would see from the store.",
}
STATUSES = {
    Status.NOT_READY: "The row points past the store's watermark, so events may be missing that "
    "serving saw; retry once the store has that generation.",
    Status.EXPIRED: "Retention has dropped events that this answer needs; shown is what the store "
    "still has.",
    Status.DIGEST_MISMATCH: "The store's events differ from those that served the request; shown "
    "is what the store has, which serving did not see.",
    Status.ERASED: "The user was erased on request after this moment, so nothing of it is shown "
    "and no model may train on it.",
    Status.INVALID: "The pointer makes no sense: its times contradict each other, or an event of "
    "its snapshot did not arrive between watermark and request.",
}


def status_sentence(sight: Sight, kind: Kind, *, has_window: bool) -> str:
    """Explains the status of a moment; an empty window needs nothing from the store."""
    if sight.status == Status.OK and not sight.is_served:
        return (
            "What the model reads is exact; retention has dropped older events, so no others are "
            "proven."
        )
    if sight.status == Status.OK:
        if has_window:
            return SEEN[kind]
        if kind == "row":
            return "The pointer's window is empty, so nothing came from the store."
        return "No generation served yet, so nothing would come from the store."
    known = {int(each): text for each, text in STATUSES.items()}
    return known.get(
        sight.status, "A newer server sent this status; its documentation explains it."
    )


def digest_sentence(recorded: int | None, found: int | None) -> str:
    """Explains a digest.

    Args:
        recorded: The thin row's; 0 where it has none. None without a row.
        found: The digest of the store's history up to the moment; None where it is unknown.
    """
    if recorded is None:
        if found is None:
            return "No digest: the moment has no generation, or the server computes none."
        return "A thin row of this moment would carry this digest as the proof of its events."
    if not recorded:
        return "The row carries no digest, so its window is checked, but not its events."
    if found is None:
        return "The row carries a digest; the store computes none to compare it with here."
    if recorded == found:
        return (
            "The row's digest equals that of the store's history up to the watermark: the same "
            "events, in the same order, whatever part of them a model reads."
        )
    return (
        f"The row's digest differs from that of the store's history, {found:016x}: the store has "
        f"other events than serving saw."
    )


def cut_sentence(sight: Sight) -> str:
    """Explains the part of a history that a model reads."""
    if not sight.kept:
        return "The model reads no event."
    if sight.kept >= sight.total:
        limit = f", no more than {sight.sequence_length:,}" if sight.sequence_length else ""
        return f"The model reads all {sight.kept:,} events{limit}."
    end = "oldest" if sight.keeps_oldest else "newest"
    return (
        f"The model reads the {end} {sight.kept:,} of {sight.total:,} events; the others are cut."
    )
