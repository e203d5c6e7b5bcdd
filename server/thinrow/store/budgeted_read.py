"""Room for a batch's stripes: memory is held before it is taken, also where texts are long."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager, ExitStack

    from thinrow.store.history import HistoryPlan

    Extend = Callable[[int], bool]

__all__ = ["read_within_budget"]


def read_within_budget(
    plan: HistoryPlan,
    beside_bytes: int,
    bytes_max: int,
    hold: Callable[[int], AbstractContextManager[Extend]],
    room: ExitStack,
    extend: Extend,
) -> int:
    """Reads a plan's stripes while `room` holds `beside_bytes` and what the stripes may take.

    Texts take more than is known before. What they take is added to the room while it is free. If
    it is not, all room is given back before more is waited for, and the stripes are read again:
    requests that held room while they waited for more would wait for each other.

    Args:
        plan: The plan; `hold` was entered into `room` with its `stripe_bytes_at_most`.
        beside_bytes: Bytes held beside those of stripes.
        bytes_max: The most that `hold` grants.
        hold: Waits for a number of bytes, holds them until the block ends, and yields a function
            that adds to them.
        room: Holds them; closed and entered again where it must wait for more.
        extend: Adds to what `room` holds; False if that would have to wait.

    Returns:
        Bytes of the stripes.

    Raises:
        AnswerTooLargeError: There never will be so much room.
        DeadlineError: There was none in time.
        StoreCorruptError: A file failed its checksum, or stripes and directories disagree.
    """
    held = plan.stripe_bytes_at_most
    read_bytes = plan.read(held, bytes_max, extend)
    if read_bytes is None:
        room.close()
        room.enter_context(hold(plan.stripe_memory_bytes + beside_bytes))
        read_bytes = plan.read(plan.stripe_memory_bytes, bytes_max)
        assert read_bytes is not None, "stripes of a generation do not change"
    return read_bytes
