"""A tier whose events are handed over and erased, and the files that hold a text."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from support.worlds import START_TS, World
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.jobs.export import export_events
from thinrow.online.config import OnlineConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from thinrow.client.online import OnlineClient

SCHEMA = '[a]\nt = "string"\n'
FILES_DEADLINE_S = 120


def config(world: World, now: list[int], **options: object) -> OnlineConfig:
    return OnlineConfig(
        store=world.store,
        data=world.folder / "tier",
        schema=world.schema,
        listen="127.0.0.1:0",
        metrics=None,
        poll_s=0.05,
        wall=lambda: now[0],
        **options,  # type: ignore[arg-type]
    )


def append(client: OnlineClient, user: int, text: str, event_id: int) -> None:
    client.append([user], [START_TS], {"t": [text]}, [event_id])


def marks() -> str:
    """Text that no compression changes."""
    return secrets.token_hex(100)


def found(folder: Path, *texts: str) -> list[str]:
    return found_bytes(folder, [text[20:60].encode() for text in texts])


def found_bytes(folder: Path, parts: list[bytes]) -> list[str]:
    """Names the files below a folder that hold any of these bytes."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and any(part in content for content in [read(path)] for part in parts)
    )


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # RocksDB removes files in the background
        return b""


def wait_until(happened: Callable[[], bool]) -> None:
    end_s = time.monotonic() + FILES_DEADLINE_S
    while not happened():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def publish(
    world: World, client: OnlineClient, watermark_ts: int, erase: str | None = None
) -> None:
    exported = world.folder / f"{watermark_ts}.parquet"
    export_events(client, watermark_ts, exported)
    users = world.folder / "users.txt"
    users.write_text(erase or "", encoding="utf-8")
    compact(
        CompactionConfig(
            store=world.store,
            events=[exported],
            schema=world.schema,
            watermark_ts=watermark_ts,
            shards=2,
            erase_users=users if erase else None,
            keep=1,
        )
    )
