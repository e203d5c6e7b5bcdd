"""The addresses of servers that serve as one: lists, and names that stand for several."""

from __future__ import annotations

import logging
import re
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from thinrow.client.target import ADDRESS
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ServerAddress", "is_name", "parse_addresses", "resolve"]

log = logging.getLogger("thinrow.client")

NAME = re.compile(r"(?:dns:/*)?([^/:]+):(\d{1,5})")


class ServerAddress(NamedTuple):
    """One server."""

    target: str
    """The target of its channel."""
    name: str = ""
    """HOST:PORT by which certificates know it; empty if the target says so."""


def parse_addresses(target: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the addresses in a list, or in a text that separates them by commas.

    Raises:
        UsageError: There is none, or one is no address.
    """
    given = target.split(",") if isinstance(target, str) else target
    addresses = tuple(dict.fromkeys(each.strip() for each in given))
    wrong = next((each for each in addresses if not ADDRESS.fullmatch(each)), None)
    if wrong is not None or not addresses:
        raise UsageError(
            f"{wrong or ''!r} is no address of an online server; write HOST:PORT, such as "
            f"localhost:7888, or several separated by commas."
        )
    return addresses


def is_name(address: str) -> bool:
    """Returns True if an address has a name, which may stand for several servers."""
    match = NAME.fullmatch(address)
    if match is None:
        return False
    try:
        ip_address(match[1])
    except ValueError:
        return True
    return False


def resolve(
    addresses: Sequence[str], known: Sequence[ServerAddress] = ()
) -> tuple[ServerAddress, ...]:
    """Returns the servers at some addresses: a name with several addresses stands for all of them.

    The addresses of one family count, since a server often has one of each. A name with fewer is
    left to gRPC, as is one that cannot be resolved.

    Args:
        addresses: As `parse_addresses` returns them.
        known: Result of the call before. A name that stood for several servers goes on to stand
            for each of its addresses, and if it cannot be resolved now, for the same.
    """
    found: dict[str, ServerAddress] = {}
    for address in addresses:
        for each in _resolved(address, known):
            found.setdefault(each.target, each)
    return tuple(found.values())


def _resolved(address: str, known: Sequence[ServerAddress]) -> Sequence[ServerAddress]:
    match = NAME.fullmatch(address) if is_name(address) else None
    if match is None:
        return (ServerAddress(address),)
    name = f"{match[1]}:{match[2]}"
    before = [each for each in known if each.name == name]
    try:
        entries = socket.getaddrinfo(match[1], int(match[2]), type=socket.SOCK_STREAM)
    except OSError as error:
        log.warning("%s cannot be resolved (%s).", address, error)
        entries = []
    for family, scheme in ((socket.AF_INET, "ipv4:{}:{}"), (socket.AF_INET6, "ipv6:[{}]:{}")):
        hosts = sorted({str(place[0]) for kind, _, _, _, place in entries if kind == family})
        if len(hosts) > 1 or (hosts and before):
            return [ServerAddress(scheme.format(host, match[2]), name) for host in hosts]
    return before or (ServerAddress(address),)
