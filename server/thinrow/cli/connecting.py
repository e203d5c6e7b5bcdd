"""A client for one command: quick to say that nobody is there, patient once somebody was."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from thinrow.client import ClientConfig, connect

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from thinrow.client import Client

FIRST_ANSWER_S = 5.0
"""How long a mistyped address may keep a person waiting."""


@contextmanager
def connected(targets: Sequence[str]) -> Iterator[Client]:
    """A client of the servers named. Raises UnavailableError soon where none answers."""
    with connect(targets, ClientConfig(retry_deadline_s=FIRST_ANSWER_S)) as probe:
        probe.describe_store()
    with connect(targets) as client:
        yield client
