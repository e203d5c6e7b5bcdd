"""Targets of a client: addresses of servers, or the folder of a store."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from thinrow.errors import UsageError

__all__ = ["Target", "parse_targets"]

Target: TypeAlias = str | Path | Sequence[str | Path]
"""HOST:PORT of a server or of each replica; or the path of a store: a Path, a text with a
separator or the name of a folder, or a URL file:///PATH."""

# Addresses that gRPC accepts, except URLs meant for a browser.
ADDRESS = re.compile(r"(?!https?:)(unix(-abstract)?:.+|(dns|ipv4|ipv6):.+|[^/]+:\d{1,5})")
FILE_URL = "file://"


def parse_targets(target: Target) -> tuple[str, ...] | Path:
    """Returns the addresses that a target stands for, or the path of a store.

    The path is absolute, so that it stays that of the store if the current folder changes.

    Raises:
        UsageError: It is unclear which it is, or it is neither.
    """
    targets = (target,) if isinstance(target, str | Path) else tuple(target)
    if not targets:
        raise UsageError("Name a server as HOST:PORT, or the path of a store.")
    stores, addresses = [], []
    for each in targets:
        path = store_path(each)
        if path is None:
            addresses.append(str(each))
        else:
            stores.append(path)
    if not stores:
        return tuple(addresses)
    if len(targets) > 1:
        raise UsageError(f"Only servers have replicas; name the store {stores[0]} alone.")
    return stores[0].absolute()


def store_path(target: str | Path) -> Path | None:
    """Returns the path of a store; None for the address of a server.

    Raises:
        UsageError: The target may be either, or is neither.
    """
    if isinstance(target, Path):
        return target
    if target.startswith(FILE_URL + os.sep):
        return Path(target.removeprefix(FILE_URL))
    is_folder = bool(target) and Path(target).is_dir()
    if ADDRESS.fullmatch(target):
        if is_folder:
            raise UsageError(
                f"{target!r} is an address and a folder; write {os.curdir}{os.sep}{target} for the "
                f"store in it, or dns:{target} for the server."
            )
        return None
    if is_folder or (os.sep in target and "://" not in target):
        return Path(target)
    raise UsageError(
        f"{target!r} is neither an address nor a folder; write HOST:PORT for a server, such as "
        f"localhost:7878, or the path of a store, such as {os.curdir}{os.sep}store."
    )
