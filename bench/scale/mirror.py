"""Mirrors of stores in an object store: what a pull moves, and how long it takes.

`make bench-scale` writes docs/reports/scale.md. The object store is moto's S3 server, in a process
of its own on this machine, so that its speed bounds both sides alike.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import obstore
import pyarrow as pa
import thinrow
import xxhash
from obstore.store import S3Store
from page import table
from thinrow.remote.current import require_current
from thinrow.remote.generation_objects import RemoteGeneration, key_of, read_generation
from thinrow.remote.limits import COPIES_AT_ONCE
from thinrow.remote.mirror import Mirror
from thinrow.remote.object_store import ObjectStore
from thinrow.store.generation import Generation
from thinrow.store.layout import MANIFEST, shard_name
from thinrow.store.manifest import read_manifest, write_manifest
from workload import DAY_MS, FIRST_DAY

from server import machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thinrow.remote.copies import Pull
    from thinrow.store.stored_files import StoredFile

BUCKET = "bench"
URL = f"s3://{BUCKET}/histories"
ENVIRONMENT = {
    "AWS_ALLOW_HTTP": "true",
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
}
VECTOR_SIZE = 64
"""Random vectors are bytes that nothing compresses."""
SCHEMA = f"""
[item]
item_id = {{ type = "int64", key = true }}
embedding = {{ type = "float32", size = {VECTOR_SIZE} }}
"""
USERS = 20_000
DAYS = 10
SHARDS = 16
INCREMENT_SHARE = 0.02
MANY_SHARDS = (16_384, 65_536)
TEMPLATE = Path(__file__).with_name("scale.md.in")


def events(count: int, first_day: int, days: int, seed: int) -> pa.Table:
    """Makes events with vectors that do not compress."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(first_day * DAY_MS, (first_day + days) * DAY_MS, count))
    vectors = rng.random(count * VECTOR_SIZE, np.float32)
    return pa.table(
        {
            "user_id": rng.integers(0, USERS, count),
            "event_ts": times,
            "item_id": rng.integers(0, 1 << 62, count),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors), VECTOR_SIZE),
        }
    )


@contextmanager
def object_server() -> Iterator[None]:
    """Runs the object store, with an empty bucket, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
        try:
            while True:
                try:
                    bucket = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
                    urllib.request.urlopen(bucket, timeout=60).close()
                    break
                except OSError:
                    if process.poll() is not None:
                        raise
                    time.sleep(0.1)
            os.environ.update(ENVIRONMENT, AWS_ENDPOINT=endpoint)
            yield
        finally:
            process.kill()


def current() -> RemoteGeneration:
    """Returns the serving generation."""
    store = ObjectStore(URL)
    record = require_current(store).record
    found = read_generation(store, record.number, record.manifest_xxh3)
    assert found is not None
    return found


def pull_s(folder: Path) -> tuple[float, int]:
    """Returns the seconds until a mirror can serve what is newest, and the bytes of files."""
    received = 0

    def count(pull: Pull) -> None:
        nonlocal received
        received = pull.bytes_received

    started_s = time.perf_counter()
    with Mirror(ObjectStore(URL), folder, report=count) as mirror:
        mirror.pull()
        Generation.open_current(folder).close()
    return time.perf_counter() - started_s, received


def bare_s(files: dict[str, StoredFile], folder: Path) -> float:
    """Returns the seconds of downloading objects to files, several at once, and syncing them.

    Args:
        files: The files by key; sizes and checksums are verified.
        folder: An empty folder.
    """
    store = S3Store(BUCKET, prefix=URL.removeprefix(f"s3://{BUCKET}/"))

    def fetch(numbered: tuple[int, str]) -> None:
        number, key = numbered
        hasher, received = xxhash.xxh3_64(), 0
        with (folder / str(number)).open("wb") as file:
            for piece in obstore.get(store, key).stream():
                hasher.update(memoryview(piece))
                received += file.write(piece)
            os.fsync(file.fileno())
        assert (received, hasher.hexdigest()) == (files[key].bytes, files[key].xxh3)

    started_s = time.perf_counter()
    with ThreadPoolExecutor(COPIES_AT_ONCE) as threads:
        list(threads.map(fetch, enumerate(files)))
    return time.perf_counter() - started_s


def measured(name: str, scratch: Path, base: Path | None, rounds: int) -> list[str]:
    """Measures pulls of the newest generation into copies of a mirror; a row of the table."""
    generation = current()
    has = set() if base is None else {path.name for path in base.rglob("*") if path.is_file()}
    files = {key_of(file): file for _, file in generation.files}
    missing = {key: file for key, file in files.items() if key.rpartition("/")[2] not in has}
    pulls, bares, received = [], [], 0
    for number in range(rounds):
        bare, mirror = scratch / f"bare-{number}", scratch / f"mirror-{number}"
        bare.mkdir()
        os.sync()
        bares.append(bare_s(missing, bare))
        if base is not None:
            # Links, as copies would still be on their way to the disk while the pull is measured.
            shutil.copytree(base, mirror, copy_function=os.link)
        os.sync()
        second, received = pull_s(mirror)
        pulls.append(second)
        shutil.rmtree(bare)
        shutil.rmtree(mirror)
    changed = sum(file.bytes for file in missing.values())
    moved = received + len(generation.body) + sum(map(len, generation.texts.values()))
    pull, plain = statistics.median(pulls), statistics.median(bares)
    return [
        name,
        f"{changed:,}",
        f"{moved:,}",
        f"{moved / changed:.3f}x",
        f"{plain:.2f} s",
        f"{pull:.2f} s",
        f"{pull / plain:.2f}x",
    ]


def root_of(shards: int, scratch: Path) -> list[str]:
    """Measures the root manifest of many shards; a row of the table."""
    manifest = current().manifest
    known = manifest.shards
    repeated = [
        known[number % len(known)].model_copy(update={"name": shard_name(number)})
        for number in range(shards)
    ]
    folder = scratch / f"root-{shards}"
    folder.mkdir()
    write_manifest(folder, manifest.model_copy(update={"shards": repeated, "shard_count": shards}))
    command = [sys.executable, __file__, "--parse", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size = (folder / MANIFEST).stat().st_size
    return [f"{shards:,}", f"{size / 1e6:.1f} MB", *done.stdout.split(",")]


def parse(folder: Path) -> None:
    """Prints the seconds and the memory that a root manifest takes."""
    before = resident_bytes()
    started_s = time.perf_counter()
    manifest = read_manifest(folder)
    seconds = time.perf_counter() - started_s
    grown = resident_bytes() - before
    print(f"{seconds:.2f} s,{grown >> 20} MiB", end="")
    del manifest


def resident_bytes() -> int:
    """Returns the memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/reports/scale.md"))
    parser.add_argument("--parse", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.parse is not None:
        parse(given.parse)
        return
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder, object_server():
        scratch = Path(folder)
        schema = scratch / "schema.toml"
        schema.write_text(SCHEMA, encoding="utf-8")
        last = FIRST_DAY + DAYS

        def compact(made: pa.Table, watermark_ts: int, **options: Any) -> None:  # noqa: ANN401
            thinrow.compact(made, store=URL, schema=schema, watermark=watermark_ts, **options)

        compact(events(given.events, FIRST_DAY, DAYS, 0), last * DAY_MS, shards=SHARDS)
        rows.append(measured("first pull", scratch, None, given.rounds))
        base = scratch / "base"
        pull_s(base)
        for day in range(2):
            made = events(int(given.events * INCREMENT_SHARE), last + day, 1, 1 + day)
            compact(made, (last + day + 1) * DAY_MS)
            rows.append(measured(f"increment {day + 1}", scratch, base, given.rounds))
            pull_s(base)
        roots = [root_of(shards, scratch) for shards in MANY_SHARDS]
    page = TEMPLATE.read_text(encoding="utf-8").format(
        machine=machine(),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        copies=COPIES_AT_ONCE,
        load=os.getloadavg()[1],
        rounds=given.rounds,
        pulls=table(
            "pull | changed, bytes: | moved, bytes: | ratio: | bare download: | until ready: | "
            "ratio:",
            rows,
        ),
        roots=table("shards: | root manifest: | parsed in: | memory: ", roots),
    )
    given.out.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
