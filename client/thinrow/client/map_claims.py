"""Newer maps that a server claims to follow, compared with what others follow.

One server that errs, such as one of another cluster at an address of this one, must not make a
client follow a map that is none: it would ignore every later map of its own cluster.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from thinrow.client.channel import Channels
from thinrow.client.polling import poll

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from thinrow.client.config import ClientConfig
    from thinrow.core.cluster_map import ServerState

__all__ = ["confirmed"]

COMPARED_MAX = 3
"""Other replicas that are requested, of the client's map and of the claimed one."""


def confirmed(
    claim: ServerState,
    claimant: str,
    known: AbstractSet[str],
    claimed: Iterable[str],
    config: ClientConfig,
    chance: random.Random,
) -> ServerState:
    """Returns a claim if another replica has a map as new, or if none answers.

    Otherwise returns the newest of what the others describe.

    Args:
        claim: The description whose map is newer than the client's.
        claimant: Address of its server.
        known: Addresses of replicas that the client knows already.
        claimed: Addresses of replicas in the claimed map.
        config: Credentials and limits.
        chance: Chooses the replicas to compare with.
    """
    compared: list[str] = []
    for targets in (known - {claimant}, {*claimed} - known - {claimant}):
        compared += chance.sample(sorted(targets), min(len(targets), COMPARED_MAX))
    found: list[ServerState] = []

    def compare(state: ServerState, _: str) -> None:
        if state.version:
            found.append(state)

    def is_confirmed() -> bool:
        return any(state.version >= claim.version for state in found)

    with ExitStack() as stack:
        groups = [Channels((target,), config) for target in compared]
        for group in groups:
            stack.enter_context(closing(group))
        poll(groups, compare, is_confirmed)
    if is_confirmed() or not found:
        return claim
    return max(found, key=lambda state: state.version)
