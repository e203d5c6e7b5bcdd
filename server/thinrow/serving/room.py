"""Room for a batch's stripes: memory is held before it is taken, also where texts are long."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager, ExitStack

    from thinrow.store.history import HistoryPlan


def read_in_room(
    plan: HistoryPlan,
    beside_bytes: int,
    bytes_max: int,
    hold: Callable[[int], AbstractContextManager[None]],
    room: ExitStack,
) -> int:
    """Reads a plan's stripes while `room` holds `beside_bytes` and what the stripes may take.

    If texts take more than that, all of it is given back before more is waited for: requests that
    held room while they waited for more would wait for each other.

    Args:
        plan: The plan; `hold` was entered into `room` with its `stripe_bytes_at_most`.
        beside_bytes: Bytes held beside those of stripes.
        bytes_max: The most that `hold` grants.
        hold: Waits for so many bytes, until the block ends.
        room: Holds them; closed and entered again where it must grow.

    Returns:
        Bytes of the stripes.

    Raises:
        AnswerTooLargeError: There never will be so much room.
        DeadlineError: There was none in time.
        StoreCorruptError: A file failed its checksum, or stripes and directories disagree.
    """
    held = plan.stripe_bytes_at_most
    read_bytes = plan.read(held, bytes_max)
    if plan.stripe_memory_bytes > held:
        room.close()
        room.enter_context(hold(plan.stripe_memory_bytes + beside_bytes))
        read_bytes = plan.read(plan.stripe_memory_bytes, bytes_max)
    return read_bytes
