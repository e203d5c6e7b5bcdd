"""The map of a cluster damaged, edited twice at once, and left half written by killed commands."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from pydantic import ValidationError
from support.object_storage import found_by_clients, running_storage
from thinrow.cluster.cluster_map import ClusterMap, Group, decode_map
from thinrow.cluster.map_objects import MAP, map_key, map_versions, read_map, write_map
from thinrow.errors import StoreCorruptError, StoreLockedError, StoreUnavailableError
from thinrow.remote.object_store import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.object_storage import ObjectStorage


@pytest.fixture(scope="module")
def storage() -> Iterator[ObjectStorage]:
    with running_storage() as running, found_by_clients(running):
        yield running


@pytest.fixture
def objects(tmp_path: Path) -> ObjectStore:
    return ObjectStore(f"file://{tmp_path}/store", create=True)


def new_map(changed_ts: int = 1, **fields: Any) -> ClusterMap:  # noqa: ANN401
    groups = {
        "0": Group(targets=("a:1", "[::1]:2"), serving=(0, 2, 3), leaving=(3,)),
        "1": Group(targets=("b:1",), serving=(1,), loading=(3,)),
    }
    default = {"version": 1, "shards": 4, "lifetime_ms": 1000, "changed_ts": changed_ts}
    return ClusterMap(**{**default, "groups": groups, **fields})


INVALID: dict[str, dict[str, Any]] = {
    "ascending": {"groups": {"0": {"targets": ["a:1"], "serving": [1, 0, 2, 3]}}},
    "in serving and in loading": {
        "groups": {"0": {"targets": ["a:1"], "serving": [0, 1, 2, 3], "loading": [3]}}
    },
    "in leaving and not in serving": {
        "groups": {
            "0": {"targets": ["a:1"], "serving": [0, 1, 2], "leaving": [3]},
            "1": {"targets": ["b:1"], "serving": [3]},
        }
    },
    "shard 3 is served nowhere": {
        "groups": {"0": {"targets": ["a:1"], "serving": [0, 1, 2], "loading": [3]}}
    },
    "shard 3 is to stay nowhere": {
        "groups": {"0": {"targets": ["a:1"], "serving": [0, 1, 2, 3], "leaving": [3]}}
    },
    "beyond the 4": {"groups": {"0": {"targets": ["a:1"], "serving": [0, 1, 2, 3, 4]}}},
    "no power of two": {"shards": 3},
    "named twice": {"groups": {"0": {"targets": ["a:1", "a:1"], "serving": [0, 1, 2, 3]}}},
    "name the same target": {
        "groups": {
            "0": {"targets": ["a:1"], "serving": [0, 1, 2, 3]},
            "1": {"targets": ["a:1"]},
        }
    },
    "no port": {"groups": {"0": {"targets": ["a:0"], "serving": [0, 1, 2, 3]}}},
    "should match pattern": {"groups": {"0/4": {"targets": ["a:1"], "serving": [0, 1, 2, 3]}}},
    "lifetime_ms": {"lifetime_ms": 0},
    "at most 16": {
        "groups": {"0": {"targets": [f"a:{n + 1}" for n in range(17)], "serving": [0, 1, 2, 3]}}
    },
    "at most 4096": {
        "groups": {f"g{n}": {"targets": [f"a{n}:1"], "serving": [0, 1, 2, 3]} for n in range(4_097)}
    },
}


@pytest.mark.parametrize("reason", INVALID)
def test_a_map_that_would_lose_shards_cannot_be_made(reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        new_map(**INVALID[reason])


def test_every_altered_bit_of_a_map_is_found() -> None:
    data = new_map().encoded()
    assert decode_map(data) == new_map(write_id=decode_map(data).write_id)
    for at in range(len(data)):
        altered = bytearray(data)
        altered[at] ^= 1 << at % 8
        with pytest.raises(ValueError, match=r"it has no checksum|its checksum does not fit"):
            decode_map(bytes(altered))
        with pytest.raises(ValueError, match=r"it has no checksum|its checksum does not fit"):
            decode_map(data[:at])


def test_a_map_is_read_again_only_when_it_has_changed(objects: ObjectStore) -> None:
    assert read_map(objects) is None
    first = write_map(objects, None, new_map())
    assert (first.map.version, read_map(objects)) == (1, first)
    with mock.patch.object(ObjectStore, "read", autospec=True, side_effect=ObjectStore.read) as got:
        assert read_map(objects, first) is first
        assert [call.args[1] for call in got.call_args_list] == [MAP]
    second = write_map(objects, first, first.map.changed(2, first.map.groups))
    assert second.map.version == 2
    assert read_map(objects, first) == second


def test_leftovers_of_killed_commands_block_no_other(objects: ObjectStore) -> None:
    known = None
    for step in range(3):
        # Killed after the version was created, and before MAP named it.
        with (
            mock.patch.object(ObjectStore, "replace", side_effect=KeyboardInterrupt),
            pytest.raises(KeyboardInterrupt),
        ):
            write_map(objects, known, new_map(step))
        found = read_map(objects, known)
        assert found == known
        known = write_map(objects, known, new_map(step + 100))
        assert (known.map.version, known.map.changed_ts) == (2 * step + 2, step + 100)
    assert map_versions(objects) == [1, 2, 3, 4, 5, 6]


def test_killed_before_there_was_a_version_leaves_no_map(objects: ObjectStore) -> None:
    real = ObjectStore.create

    def kill(store: ObjectStore, key: str, data: bytes) -> bool:
        if key != MAP:
            raise KeyboardInterrupt
        return real(store, key, data)

    with mock.patch.object(ObjectStore, "create", kill), pytest.raises(KeyboardInterrupt):
        write_map(objects, None, new_map())
    assert read_map(objects) is None
    assert write_map(objects, None, new_map()).map.version == 1


def write_between(edit: Callable[[], object], when: str) -> Any:  # noqa: ANN401
    """Lets another command edit the map before this one writes an object."""
    real = getattr(ObjectStore, when)
    pending = [edit]

    def write(store: ObjectStore, *given: Any) -> bool:  # noqa: ANN401
        if given[0] != MAP or when == "replace":
            for each in [pending.pop() for _ in pending[:]]:
                each()
        done: bool = real(store, *given)
        return done

    return mock.patch.object(ObjectStore, when, write)


@pytest.mark.parametrize("when", ["create", "replace"])
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("where", ["file", "s3"])
def test_of_two_editors_one_wins(
    tmp_path: Path, storage: ObjectStorage, where: str, when: str, is_first: bool
) -> None:
    url = f"file://{tmp_path}/store" if where == "file" else storage.new_url()
    objects = ObjectStore(url, create=True)
    known = None if is_first else write_map(objects, None, new_map())
    winners = []
    with (
        write_between(lambda: winners.append(write_map(objects, known, new_map(7))), when),
        pytest.raises(StoreLockedError, match="Another command has changed the map"),
    ):
        write_map(objects, known, new_map(8))
    assert read_map(objects) == winners[0] and winners[0].map.changed_ts == 7
    later = write_map(objects, winners[0], new_map(9))
    assert later.map.version == map_versions(objects)[-1]


@pytest.mark.parametrize("part", ["MAP", "map-"])
@pytest.mark.parametrize("kind", ["refused", "lost"])
def test_an_unknown_outcome_is_read_back(storage: ObjectStorage, part: str, kind: str) -> None:
    """A retry meets its own work: what is there decides."""
    objects = ObjectStore(storage.new_url())
    known = None
    for step in range(2):
        storage.fail(kind, "PUT", 1, part)
        known = write_map(objects, known, new_map(step))
        assert known.map.changed_ts == step
        assert read_map(objects) == known


def test_an_object_store_that_does_not_answer_changes_nothing(objects: ObjectStore) -> None:
    known = write_map(objects, None, new_map())
    silent = StoreUnavailableError("does not answer")
    with (
        mock.patch.object(ObjectStore, "replace", side_effect=silent),
        pytest.raises(StoreUnavailableError),
    ):
        write_map(objects, known, new_map())
    assert read_map(objects) == known


@pytest.mark.parametrize("kind", ["lost", "damaged", "set back", "no version", "other version"])
def test_no_server_believes_a_damaged_map(objects: ObjectStore, kind: str) -> None:
    """A server without a map would close all shards, and a command would deal them again."""
    first = write_map(objects, None, new_map())
    older = first.content.data
    second = write_map(objects, first, new_map(2))
    key = MAP
    if kind == "lost":
        objects.delete([MAP])
    elif kind == "damaged":
        objects.write(MAP, json.dumps({"format": 1, "version": 9}).encode())
    elif kind == "set back":
        objects.write(MAP, older)
    else:
        key = map_key(2)
        objects.delete([key])
        if kind == "other version":
            objects.write(key, new_map(3, version=2).encoded())
    advice = "thinrow cluster restore" if key == MAP else "copy cluster-map.json of a mirror"
    match = rf"{key} is damaged .*{advice}"
    # What was read before stands if MAP is the same; MAP that changes back is noticed as well.
    if key == MAP:
        with pytest.raises(StoreCorruptError, match=match):
            read_map(objects, second)
    else:
        assert read_map(objects, second) is second
    if kind != "set back":
        with pytest.raises(StoreCorruptError, match=match):
            read_map(objects)
        if key == MAP:
            with pytest.raises((StoreCorruptError, StoreLockedError)):
                write_map(objects, None, new_map())
