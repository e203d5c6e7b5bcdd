"""Stores in object stores: objects damaged, requests failed, processes killed, each in turn.

What each does is in hazards/test_mirror.py, test_remote_current.py, test_remote_care.py and
test_remote_publication.py; here they are tried as often as `make faults` says.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from support.paths import SUPPORT
from support.remote_stores import RemoteWorld, remote_world
from support.request_steps import before_request
from support.small_disks import ROOMY, small_disk
from support.small_store import sample
from support.tried import FULL, SEED, Tried, times
from support.worlds import compact_command, days, pointers_to, read_store, thinrow
from thinrow.errors import (
    StoreCorruptError,
    StoreFullError,
    StoreUnavailableError,
    ThinRowError,
)
from thinrow.remote import copies, object_store
from thinrow.remote.current import read_current, require_current
from thinrow.remote.gc import collect_garbage
from thinrow.remote.mirror import Mirror
from thinrow.remote.object_store import ObjectStore
from thinrow.remote.verification import verify_remote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.object_storage import ObjectStorage
    from support.worlds import Answers

HOUR_S = 3600
STEPS = SUPPORT / "steps.py"
SECRETS = {
    "AWS_ACCESS_KEY_ID": "the-key-id-of-tests",
    "AWS_SECRET_ACCESS_KEY": "the-secret-of-tests",
    "AWS_SESSION_TOKEN": "the-token-of-tests",
}


def new_file_world(folder: Path) -> RemoteWorld:
    (folder / "bucket").mkdir(parents=True)
    return remote_world(folder / "world", f"file://{folder}/bucket/store")


@dataclass(frozen=True)
class Published:
    """A store of two generations, and a mirror of the first."""

    world: RemoteWorld
    base: Path
    old: Answers
    new: Answers

    def mirrored(self, folder: Path) -> Path:
        """Returns a copy of the mirror, whose generation still links to its objects."""
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["cp", "-a", self.base, folder], check=True)
        return folder

    def named(self, folder: Path) -> int:
        """Number of the generation that a mirror's CURRENT names."""
        return int((folder / "CURRENT").read_text(encoding="utf-8").strip()[-6:])

    def serves(self, folder: Path) -> str:
        """Returns which generation a mirror has, once its answers are those of the generation."""
        answers = read_store(folder, pointers_to(days(3, 4)))
        assert answers in (self.old, self.new)
        return "old" if answers == self.old else "new"


def published(world: RemoteWorld, folder: Path) -> Published:
    world.compact_both(3)
    old = world.local_answers(3, 4)
    with Mirror(world.objects, folder) as mirror:
        mirror.pull()
    world.compact_both(4)
    new = world.local_answers(3, 4)
    assert old != new
    return Published(world, folder, old, new)


@pytest.fixture(scope="module")
def on_files(tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("files")
    return published(new_file_world(folder), folder / "base")


def changed_keys(store: Published) -> list[str]:
    """Keys that a pull of the second generation reads."""
    now = store.world.current()
    before = {path.relative_to(store.base / "objects").as_posix() for path in objects(store.base)}
    return [*sorted(now.keys - before), "generations/generation-000002.json"]


def objects(folder: Path) -> list[Path]:
    return [path for path in (folder / "objects").rglob("*") if path.is_file()]


def spoiled(kind: str, content: bytes, others: list[bytes], rng: random.Random) -> bytes | None:
    """Another content of an object; None for none."""
    if kind == "lost":
        return None
    if kind == "cut short":
        return content[: rng.randrange(len(content))]
    if kind == "exchanged for another object":
        return rng.choice([other for other in others if other != content])
    altered = bytearray(content)
    altered[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(altered)


KINDS = ("lost", "cut short", "with a flipped bit", "exchanged for another object")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_objects_damaged(on_files: Published, tmp_path: Path, kind: str) -> None:
    """Also of equal size: tables of two builds from the same events differ in their ids only."""
    rng, world = random.Random(f"{SEED} {kind}"), on_files.world
    again = new_file_world(tmp_path / "again")
    again.compact_both(3, 4)
    others = [content_of(store, key) for store in (world, again) for key in sorted(store.keys())]
    # An empty object has nothing to cut or to flip, and a pull makes it without reading it.
    keys = [key for key in changed_keys(on_files) if content_of(world, key)]
    equal = tries = 0
    for number in range(times(2, len(keys) if kind == "lost" else 120)):
        key = keys[number % len(keys)]
        content = content_of(world, key)
        alike = [other for other in others if len(other) == len(content)]
        damaged = spoiled(kind, content, alike if number % 2 and len(alike) > 1 else others, rng)
        world.objects.delete([key]) if damaged is None else world.objects.write(key, damaged)
        equal += damaged is not None and len(damaged) == len(content)
        folder = on_files.mirrored(tmp_path / "mirror")
        with Mirror(world.objects, folder) as mirror:
            with pytest.raises(StoreCorruptError, match=key):
                mirror.pull(is_open=True)
            assert on_files.serves(folder) == "old"
            problems = verify_remote(world.objects).problems
            assert problems and all(key in problem for problem in problems)
            world.objects.write(key, content)
            assert mirror.pull(is_open=True) and on_files.serves(folder) == "new"
        tries += 1
    Tried(
        fault=f"An object of a store in an object store {kind}: each in turn, under a pull",
        times=tries,
        promised="An error that names the object, the old generation serves on; then the new one",
        seen=f"{tries} found by the pull and by verify, 0 served"
        + (f"; {equal} of equal size" if kind.startswith("ex") else ""),
    ).keep()


def content_of(world: RemoteWorld, key: str) -> bytes:
    found = world.objects.read(key, 1 << 30)
    assert found is not None
    return found.data


@pytest.mark.timeout(3600)
def test_current_damaged(on_files: Published) -> None:
    """Every bit, every length, gone, and each content it had before."""
    store = on_files.world.objects
    content = content_of(on_files.world, "CURRENT")
    older = require_current(store).record.changed(history=[1], highest=1)
    every: list[bytes | None] = [None, older.encoded()]
    every += [content[:size] for size in range(len(content))]
    for bit in range(8 * len(content)):
        altered = bytearray(content)
        altered[bit // 8] ^= 1 << bit % 8
        every.append(bytes(altered))
    tries = every[:2] + sample(every[2:], times(60, len(every)), SEED)
    for damaged in tries:
        store.delete(["CURRENT"]) if damaged is None else store.write("CURRENT", damaged)
        with pytest.raises(StoreCorruptError, match="thinrow store rollback"):
            read_current(store)
        store.write("CURRENT", content)
    assert require_current(store).record.history == [1, 2]
    Tried(
        fault="CURRENT of a store in an object store: each bit flipped, cut to each length, lost, "
        "set back",
        times=len(tries),
        promised="One sentence that says what to do; nothing is built on it, removed or served",
        seen=f"{len(tries):,} found, 0 believed",
    ).keep()


def age(world: RemoteWorld) -> None:
    """Makes all objects two hours older than they are."""
    folder = Path(world.url.removeprefix("file://"))
    for path in folder.rglob("*"):
        moment = path.stat().st_mtime - 2 * HOUR_S
        os.utime(path, (moment, moment))


def collect(world: RemoteWorld) -> None:
    store = ObjectStore(world.url)
    collect_garbage(store, keep=1, withdrawn=True, grace_ms=HOUR_S * 1000)


@pytest.mark.timeout(3600)
def test_gc_beside_a_compaction(tmp_path: Path) -> None:
    """gc removes all that is an hour old and not needed, before each request of a run in turn."""
    world = new_file_world(tmp_path)
    world.compact_both(3)
    tries = 0
    for number in sample(list(range(1, 45)), times(1, 44), SEED):
        shutil.rmtree(tmp_path / "tried", ignore_errors=True)
        shutil.copytree(tmp_path / "bucket", tmp_path / "tried")
        tried = RemoteWorld(world.local, f"file://{tmp_path}/tried/store")
        tried.compact(4)
        age(tried)
        with before_request(number, partial(collect, tried)):
            tried.compact(5)
        assert not verify_remote(tried.objects).problems
        assert require_current(tried.objects).record.history[-1] == 3
        if not tries:
            world.compact_locally(4)
            world.compact_locally(5)
        assert tried.answers(3, 4, 5) == world.local_answers(3, 4, 5)
        tries += 1
    Tried(
        fault="`thinrow store gc` before each request of a compaction at a URL, in turn",
        times=tries,
        promised="The run publishes a whole generation; nothing that it needs is removed",
        seen=f"{tries} published, 0 objects missing, answers as from a local store",
    ).keep()


@pytest.mark.timeout(3600)
def test_gc_beside_a_pull(on_files: Published, tmp_path: Path) -> None:
    """Another generation is published, and that which is copied removed, before each request."""
    world, tries = on_files.world, 0
    bucket = Path(world.url.removeprefix("file://"))
    done: list[int] = []
    for number in sample(list(range(1, 20)), times(1, 19), SEED):
        shutil.rmtree(tmp_path / "bucket", ignore_errors=True)
        shutil.copytree(bucket, tmp_path / "bucket")
        tried = RemoteWorld(world.local, f"file://{tmp_path}/bucket")

        def overtake(number: int = number, tried: RemoteWorld = tried) -> None:
            tried.compact(5)
            age(tried)
            collect(tried)
            done.append(number)

        with (
            mock.patch.object(copies, "COPIES_AT_ONCE", 1),
            Mirror(tried.objects, tmp_path / f"mirror-{number}") as mirror,
        ):
            with before_request(number, overtake):
                mirror.pull()
            mirror.pull()
            assert mirror.generation == (3 if number in done else 2)
            answers = read_store(mirror.folder, pointers_to(days(3, 4)))
            assert answers == on_files.new
        tries += 1
    assert done
    Tried(
        fault="A generation replaced and removed by gc before each request of its pull, in turn",
        times=tries,
        promised="The mirror has that generation or the next, whole",
        seen=f"{tries} whole, {len(done)} of them after a removal; 0 wrong",
    ).keep()


@pytest.mark.timeout(3600)
def test_requests_fail(object_storage: ObjectStorage, tmp_path: Path) -> None:
    """503, connections cut, answers lost or slow, of some requests of a pull or a compaction."""
    rng = random.Random(SEED)
    seen = {"right": 0, "refused": 0}
    for number in range(times(1, 12)):
        world = remote_world(tmp_path / f"world-{number}", object_storage.new_url())
        world.compact_both(3)
        mirror = tmp_path / f"mirror-{number}"
        for kind in ("cut", "refused", "lost", "held")[: times(1, 4)]:
            method = rng.choice(["GET", "PUT"] if kind != "cut" else ["GET"])
            with (
                mock.patch.object(object_store, "RETRIES_MAX", rng.choice([0, 2])),
                suppress(StoreUnavailableError),
                Mirror(world.objects, mirror) as pulling,
            ):
                day = require_current(world.objects).record.highest + 3
                object_storage.fail(
                    kind, method, rng.randint(1, 6), rng.choice(["", "runs", "one"])
                )
                seen["refused"] += 1
                pulling.pull()
                world.compact(day)
                seen["refused"] -= 1
                seen["right"] += 1
            object_storage.fail("refused", "GET", 0)
            assert not verify_remote(world.objects).problems
            with Mirror(world.objects, mirror) as pulling:
                pulling.pull()
                assert pulling.generation == require_current(world.objects).record.number
        number_now = require_current(world.objects).record.number
        assert len(world.answers(*range(3, 3 + number_now))) == 6 * number_now
    assert (seen["right"] and seen["refused"]) or not FULL
    Tried(
        fault="Requests to an object store refused (503), cut, slow, or done and their answer lost",
        times=seen["right"] + seen["refused"],
        promised="What was requested, or one sentence; no outcome is guessed; run again it ends",
        seen=f"{seen['right']} done, {seen['refused']} refused; 0 objects missing after any",
    ).keep()


@pytest.mark.timeout(3600)
def test_serve_killed_in_a_pull(on_files: Published, tmp_path: Path) -> None:
    """SIGKILL at steps of the server on its mirror's folder."""
    served = {"old": 0, "new": 0}
    for step in sample(list(range(5, 305)), times(1, 30), SEED):
        folder = on_files.mirrored(tmp_path / "mirror")
        command = [sys.executable, STEPS, str(step), folder, "serve"]
        command += ["--store", on_files.world.url, "--mirror", folder]
        command += ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
        with subprocess.Popen([*map(str, command)], stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and on_files.named(folder) == 1:
                time.sleep(0.01)
            time.sleep(0.5)  # for the steps after the last one that a reader sees
            process.kill()
        assert process.returncode == -signal.SIGKILL
        served[on_files.serves(folder)] += 1
        with Mirror(on_files.world.objects, folder) as mirror:
            mirror.pull()
            assert on_files.serves(folder) == "new"
            kept = {path.relative_to(folder / "objects").as_posix() for path in objects(folder)}
        assert kept <= on_files.world.keys()
    Tried(
        fault="`thinrow serve` of a store at a URL: SIGKILL at steps of a pull on the file system",
        times=sum(served.values()),
        promised="The mirror has the old generation or the new one, whole; the next pull ends it",
        seen=f"{served['old']} had the old, {served['new']} the new; 0 wrong, 0 left lying",
    ).keep()


@pytest.mark.timeout(3600)
def test_compaction_killed(object_storage: ObjectStorage, tmp_path: Path) -> None:
    """SIGKILL before each request of `thinrow compact` at a URL, in turn."""
    served = {"old": 0, "new": 0}
    for number in sample(list(range(3, 45)), times(1, 42), SEED):
        world = remote_world(tmp_path / f"world-{number}", object_storage.new_url())
        world.compact_both(3)
        before = world.answers(3, 4)
        command = compact_command(world.local, [world.events(4)], 4)[3:]
        command[command.index(str(world.local.store))] = world.url
        killed = subprocess.run(
            [sys.executable, SUPPORT / "request_steps.py", str(number), *command],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=False,
            timeout=300,
        )
        assert killed.returncode in (-signal.SIGKILL, 0)
        world.compact_locally(4)
        after = world.answers(3, 4)
        assert after in (before, world.local_answers(3, 4))
        if killed.returncode:
            served["old" if after == before else "new"] += 1
        assert world.compact(4).already_published == (after != before)
        assert world.answers(3, 4) == world.local_answers(3, 4)
        assert not verify_remote(world.objects).problems
    assert sum(served.values())
    Tried(
        fault="`thinrow compact` at a URL: SIGKILL before each of its requests to the object store",
        times=sum(served.values()),
        promised="The old generation or the new one, whole; run again, it ends as if never killed",
        seen=f"{served['old']} served the old, {served['new']} the new; 0 wrong",
    ).keep()


@pytest.mark.timeout(3600)
def test_compactions_race(object_storage: ObjectStorage, tmp_path: Path) -> None:
    """Two processes that compact into one store at once."""
    rounds, refused = times(1, 12), 0
    world = remote_world(tmp_path / "world", object_storage.new_url())
    world.compact_both(3)
    for number in range(rounds):
        day = 4 + number
        command = compact_command(world.local, [world.events(day)], day)
        command[command.index(str(world.local.store))] = world.url
        racing = [
            subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
            for _ in range(2)
        ]
        for process in racing:
            _, said = process.communicate(timeout=300)
            if process.returncode:
                assert "run this one again" in said, said
                refused += 1
        world.compact_locally(day)
        assert require_current(world.objects).record.history[-2:][-1] >= number + 2
        assert len(require_current(world.objects).record.history) == number + 2
        assert world.answers(3, day) == world.local_answers(3, day)
    Tried(
        fault="Two `thinrow compact` of the same events at one URL, at once",
        times=2 * rounds,
        promised="One publishes; the other ends with one sentence, or finds it done",
        seen=f"{rounds} generations of {rounds} rounds, {refused} refused; 0 wrong",
    ).keep()


@pytest.mark.timeout(3600)
def test_uploads_interrupted(object_storage: ObjectStorage, tmp_path: Path) -> None:
    """SIGKILL of a process whose upload of several parts is under way."""
    url, tries = object_storage.new_url(), times(1, 20)
    (tmp_path / "file").write_bytes(bytes(12 << 20))
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from thinrow.remote.object_store import ObjectStore\n"
        "ObjectStore(sys.argv[1]).upload('runs/a/file', Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, url, str(tmp_path / "file")]
    for number in range(tries):
        # Of two parts and a rest one or more never arrive.
        object_storage.fail("hung", "PUT", 1 + number % 3, "runs/a")
        with subprocess.Popen(command) as process:
            while not object_storage.hung():
                assert process.poll() is None
            process.kill()
        assert not list(ObjectStore(url).listed())
        object_storage.fail("hung", "PUT", 0)
    ObjectStore(url).upload("runs/a/file", tmp_path / "file")
    assert [one.bytes for one in ObjectStore(url).listed()] == [12 << 20]
    Tried(
        fault="An upload of several parts: SIGKILL while parts are under way",
        times=tries,
        promised="No object, or a whole one",
        seen=f"{tries} left no object that is listed",
    ).keep()


@pytest.mark.timeout(3600)
def test_full_disk(on_files: Published, tmp_path: Path) -> None:
    """A disk that others fill while a generation is copied."""
    rng, refused, tries = random.Random(SEED), 0, times(1, 60)
    room_unchecked = mock.patch.object(copies, "ROOM_SPARE_BYTES", -(1 << 40))
    with small_disk(tmp_path / "disk") as small, room_unchecked:
        for number in range(tries):
            small.resize(ROOMY)
            folder = on_files.mirrored(small.path / "mirror")
            small.leave(rng.randrange(40_000) if number else 0)
            with Mirror(on_files.world.objects, folder) as mirror:
                try:
                    mirror.pull()
                except StoreFullError as error:
                    refused += 1
                    assert "free some space" in str(error)
                    assert on_files.serves(folder) == "old"
                small.resize(ROOMY)
                mirror.pull()
                assert on_files.serves(folder) == "new"
    assert refused
    Tried(
        fault="A mirror's disk that fills up in the middle of a pull",
        times=refused,
        promised="One sentence; the old generation serves on; room is all it takes",
        seen="Each refused so; with room, the new generation, whole",
    ).keep()


def failures(storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Makes requests fail in one way after the other."""
    for kind in ("refused", "denied", "cut", "lost", "flipped")[: times(2, 5)]:
        for method in ("GET", "PUT", "HEAD", "DELETE", "POST")[: times(1, 5)]:
            storage.fail(kind, method, 1000)
            yield f"{kind} {method}"
    storage.fail("refused", "GET", 0)
    for endpoint in ("http://127.0.0.1:1", "https://127.0.0.1:1", "http://no.such.invalid"):
        monkeypatch.setenv("AWS_ENDPOINT", endpoint)
        yield endpoint


@pytest.mark.timeout(3600)
def test_secrets_stay_secret(
    object_storage: ObjectStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every operation, failed in every way: its error, the errors behind that, and the log."""
    world = remote_world(tmp_path / "world", object_storage.new_url())
    world.compact(3)
    for name, text in SECRETS.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setattr(object_store, "RETRIES_MAX", 0)
    caplog.set_level(0)

    def pull() -> None:
        with Mirror(world.objects, tmp_path / "mirror") as mirror:
            shutil.rmtree(tmp_path / "mirror" / "objects", ignore_errors=True)
            mirror.pull(verify=True)

    operations: list[Callable[[], object]] = [
        pull,
        lambda: world.compact(4),
        lambda: verify_remote(world.objects),
        lambda: collect_garbage(world.objects, keep=1, withdrawn=True, grace_ms=0),
    ]
    failed = tries = 0
    for _ in failures(object_storage, monkeypatch):
        for operation in operations[: times(1, len(operations))]:
            tries += 1
            try:
                operation()
            except ThinRowError as error:
                failed += 1
                shown = "".join(traceback.format_exception(error))
                assert not [text for text in SECRETS.values() if text in shown]
                assert "Signature" not in shown and "Credential" not in shown
    assert failed > tries // 4
    logged = "".join(str(vars(record)) for record in caplog.records)
    assert not [text for text in SECRETS.values() if text in logged]
    listed = thinrow("store", "list", "--store", "s3://key:the-secret-of-tests@bucket/store")
    assert listed.returncode == 2 and "the-secret-of-tests" not in listed.stderr
    Tried(
        fault="Requests with credentials that fail: refused, denied, cut, altered, out of reach",
        times=tries,
        promised="No error, no error behind it, and no log shows a secret, a token or a signature",
        seen=f"{failed} failed, 0 secrets shown",
    ).keep()
