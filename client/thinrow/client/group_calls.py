"""Calls to every group of a cluster, side by side, over connections of their own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from thinrow.client.channel import Channels
from thinrow.errors import DeadlineError, UnavailableError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from thinrow.client.config import ClientConfig
    from thinrow.core.cluster_map import Group

__all__ = ["call_each"]

T = TypeVar("T")

AT_ONCE_MAX = 16
"""Groups that are called side by side."""
RETRY_S_MAX = 5.0
"""Longest time for retries at one group: a report of what is there must not wait for what is not.
"""
UNREACHABLE_MAX = 10
"""Groups without an answer after which no further group is called."""


def call_each(
    groups: Sequence[Group],
    config: ClientConfig,
    chance: random.Random,
    call: Callable[[Channels], T],
) -> list[T]:
    """Calls each group, several side by side; returns the answers in their order.

    Args:
        groups: The groups.
        config: Credentials and limits.
        chance: Chooses the replica of each group to begin with.
        call: Calls a group.

    Raises:
        UnavailableError: Groups do not answer; names them.
        ThinRowError: Another error of a call.
    """
    config = replace(config, retry_deadline_s=min(config.retry_deadline_s, RETRY_S_MAX))
    unreachable: list[Group] = []

    def called(group: Group) -> T | None:
        if len(unreachable) >= UNREACHABLE_MAX:
            return None
        first = chance.randrange(len(group.targets))
        try:
            with closing(Channels(group.targets, config, first)) as channels:
                return call(channels)
        except (DeadlineError, UnavailableError):
            unreachable.append(group)
            return None

    with ThreadPoolExecutor(AT_ONCE_MAX, "thinrow-groups") as pool:
        answers = list(pool.map(called, groups))
    if unreachable:
        named = ", ".join(f"{each.name} ({', '.join(each.targets)})" for each in unreachable)
        raise UnavailableError(
            f"No server answers of these groups: {named}; see `thinrow cluster status`."
        )
    return [answer for answer in answers if answer is not None]
