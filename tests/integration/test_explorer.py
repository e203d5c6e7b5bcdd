"""`thinrow explore`: what it says that serving saw is what had arrived, and browsers show it."""

from __future__ import annotations

import random
import re
import subprocess
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.explored import CHROMIUM, Page, browsed, numbers, said, states
from support.worlds import (
    DAY_MS,
    THINROW,
    World,
    days,
    new_world,
    running_server,
    some_events,
    thinrow,
)
from thinrow.compaction.compact import compact
from thinrow.explore import rows as row_files
from thinrow.explore.serving import explorer
from thinrow.jobs.backfill import backfill
from thinrow.jobs.config import BackfillConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NASTY = "<b id=nasty>\"&'"
TENANTS = '[ranker]\nsequence_length = 4\ntraits = ["item_id"]\n'
REQUESTS = 24


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Four generations of events that came up to two days late, and thin rows of requests."""
    world = new_world(tmp_path_factory.mktemp("explored"))
    rng = random.Random(1)
    events = some_events(count=120, users=3, days=4)
    arrivals = [
        at + (rng.randrange(2 * DAY_MS) if rng.random() < 0.3 else 0)
        for at in events["event_ts"].to_pylist()
    ]
    events = events.append_column("arrival_ts", pa.array(arrivals, pa.int64()))
    brands = pa.array([NASTY, *events["brand"].to_pylist()[1:]])
    events = events.set_column(events.column_names.index("brand"), "brand", brands)
    path = world.write("events.parquet", events)
    compact(world.compaction([path], 5, cadence_ms=DAY_MS))
    requests = pa.table(
        {
            "user_id": pa.array([rng.randint(1, 3) for _ in range(REQUESTS)], pa.int64()),
            "request_ts": pa.array(
                sorted(rng.randrange(*days(0, 5)) for _ in range(REQUESTS)), pa.int64()
            ),
            "label": [NASTY] * REQUESTS,
        }
    )
    backfill(
        BackfillConfig(
            requests=world.write("requests.parquet", requests),
            store=world.store,
            events=path,
            rows=world.folder / "rows.parquet",
        )
    )
    (world.folder / "tenants.toml").write_text(TENANTS)
    return world


@pytest.fixture(scope="module")
def page(world: World) -> Iterator[Page]:
    """The page of the store, read in this process."""
    rows, tenants = str(world.folder / "rows.parquet"), world.folder / "tenants.toml"
    with explorer([str(world.store)], [rows], tenants=tenants) as address:
        yield Page(address)


def arrived(world: World, user: int) -> list[tuple[int, str]]:
    """Arrival and id of all events of a user, as the raw log has them."""
    events = pq.read_table(world.folder / "events.parquet").to_pylist()
    return [(e["arrival_ts"], str(e["event_id"])) for e in events if e["user_id"] == user]


def watermark_before(request_ts: int) -> int:
    """Watermark of the newest of the daily generations at a time."""
    return request_ts // DAY_MS * DAY_MS


def test_each_row_saw_exactly_what_had_arrived(world: World, page: Page) -> None:
    requests = pq.read_table(world.folder / "requests.parquet").to_pylist()
    met = set()
    for number, request in enumerate(requests):
        view = page.get("/api/view", a=f"row:{number}")
        request_ts, user = request["request_ts"], request["user_id"]
        watermark_ts = watermark_before(request_ts)
        right = {
            name: "store" if at < watermark_ts else "snapshot" if at < request_ts else "later"
            for at, name in arrived(world, user)
        }
        assert states(view) == right
        assert view["user"] == str(user) and view["moments"][0]["status"] == "OK"
        assert view["moments"][0]["labels"] == {"label": NASTY}
        met |= set(right.values())
    assert met == {"store", "snapshot", "later"}


def test_two_moments_of_a_user_side_by_side(world: World, page: Page) -> None:
    early, late = days(2)[0], days(4)[0]
    view = page.get("/api/view", user=2, a=f"at:{early}", b="now")
    for moment, limit in enumerate((early, days(5)[0])):
        assert states(view, moment) == {
            name: "store" if at < limit else "later" for at, name in arrived(world, 2)
        }
    assert states(page.get("/api/view", user=2, a=f"at:{late}")) == {
        name: "store" if at < late else "later" for at, name in arrived(world, 2)
    }
    before_all = page.get("/api/view", user=2, a="at:5")
    assert set(states(before_all).values()) == {"later"}
    assert [said(view), said(view, 1), said(before_all)] == [
        "These are the events that a request at this time would see from the store.",
        "These are the events that a request now would see from the store.",
        "No generation served yet, so nothing would come from the store.",
    ]


def test_length_and_tenant_cut_the_oldest(page: Page) -> None:
    choices: tuple[tuple[dict[str, Any], int], ...] = (
        ({"length": 3}, 3),
        ({"tenant": "ranker"}, 4),
    )
    for choice, most in choices:
        view = page.get("/api/view", user=1, a="now", **choice)
        kept = [event["seen"][0]["kept"] for event in view["events"]]
        assert kept == [False] * (len(kept) - most) + [True] * most
        assert view["moments"][0]["kept"] == most
    read = {trait["name"]: trait["read"] for trait in view["traits"]}
    assert read == {"item_id": True, "brand": False, "rating": False, "price": False}


def test_a_row_that_does_not_fit_the_store_says_so(world: World, tmp_path: Path) -> None:
    rows = pq.read_table(world.folder / "rows.parquet")
    uih = [
        {**pointer, "digest": 1 if pointer["digest"] else 0} for pointer in rows["uih"].to_pylist()
    ]
    place = rows.column_names.index("uih")
    changed = rows.set_column(place, rows.schema.field(place), pa.array(uih, rows["uih"].type))
    pq.write_table(changed, tmp_path / "rows.parquet")
    with explorer([str(world.store)], [str(tmp_path / "rows.parquet")]) as address:
        view = Page(address).get("/api/view", a=f"row:{REQUESTS - 1}")
    moment = view["moments"][0]
    assert moment["status"] == "DIGEST_MISMATCH" and not moment["is_served"]
    assert "other events than serving saw" in moment["digest_sentence"]
    assert "store" not in states(view).values() and "unproven" in states(view).values()


def test_rows_are_listed_and_found(page: Page, world: World) -> None:
    users = pq.read_table(world.folder / "requests.parquet")["user_id"].to_pylist()
    listed = page.get("/api/rows")
    assert [row["user"] for row in listed["rows"]] == [str(user) for user in users]
    assert listed["next"] is None
    assert numbers(page.get("/api/rows?from=20")) == [20, 21, 22, 23]
    assert numbers(page.get(f"/api/rows?from={REQUESTS}")) == []
    found = numbers(page.get("/api/rows", user=3))
    assert found == [number for number, user in enumerate(users) if user == 3]


def test_rows_of_several_row_groups(world: World, tmp_path: Path) -> None:
    table = pq.read_table(world.folder / "rows.parquet")
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=5)
    users = table["user_id"].to_pylist()
    rows = row_files.RowFiles([str(tmp_path / "rows.parquet")])
    for number, user in enumerate(users):
        assert rows.read(number)[0].pointers.user_ids.tolist() == [user]
        assert numbers(rows.listed(number)) == list(range(number, REQUESTS))

    def walked(user_id: int | None) -> tuple[list[int], int]:
        found, start, steps = [], 0, 0
        while start is not None:
            listed = rows.listed(start, user_id)
            found += numbers(listed)
            start, steps = listed["next"], steps + 1
        return found, steps

    with mock.patch.object(row_files, "ROWS_LISTED_MAX", 4):
        assert walked(None) == (list(range(REQUESTS)), REQUESTS / 4)
        assert walked(3)[0] == [number for number, user in enumerate(users) if user == 3]
    with mock.patch.object(row_files, "ROWS_SEARCHED_MAX", 10):
        assert walked(99) == ([], 3)
        assert walked(3)[0] == [number for number, user in enumerate(users) if user == 3]


def test_a_mistake_gets_a_sentence(page: Page) -> None:
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"user": "x", "a": "now"}, "user is 'x', but must be an integer from -9,223,372,"),
        ({"user": 1 << 63, "a": "now"}, "user is '9223372036854775808'"),
        ({"user": 1}, "Give a moment"),
        ({"user": 1, "a": "soon"}, "'soon' is no moment"),
        ({"a": f"row:{REQUESTS}"}, f"an integer from 0 to {REQUESTS - 1}."),
        ({"a": "row:"}, "row is ''"),
        ({"a": f"row:{'9' * 5000}"}, f"row is '{'9' * 40}', but"),
        ({"user": 1, "a": "at:²"}, "at is '²'"),
        ({"user": 1, "a": "now", "length": "-1"}, "length is '-1'"),
        ({"user": 1, "a": "now", "length": 1_000_001}, "from 0 to 1,000,000."),
        ({"user": 1, "a": "now", "tenant": "nobody"}, "nobody"),
    ]
    for given, sentence in mistakes:
        code, found = page.refusal("/api/view", **given)
        assert code == 400 and sentence in found
    code, found = page.refusal(f"/api/rows?from={REQUESTS + 1}")
    assert code == 400 and f"from 0 to {REQUESTS}." in found
    assert page.refusal("/nothing") == (404, "There is no such page.")


def test_a_page_of_a_foreign_site_gets_nothing(page: Page) -> None:
    code, _ = page.refusal("/api/rows", {"Host": "attacker.example:80"})
    assert code == 421
    for own in ("localhost:80", "127.0.0.1", "[::1]:80"):
        assert page.get("/api/rows", {"Host": own})["rows"]


def test_other_methods_are_refused(page: Page) -> None:
    for path in ("/", "/api/view?user=1&a=now", "/nothing"):
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(f"http://{page.address}{path}", data=b"x", timeout=60)


def test_an_address_for_others_warns_and_knows_no_foreign_host(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        mock.patch("thinrow.explore.serving.is_local", return_value=False),
        explorer([str(world.store)]) as address,
    ):
        page = Page(address)
        assert page.get("/api/store", {"Host": "explorer.example:80"})["rows"] is None
        code, found = page.refusal("/api/view", user=1, a="row:3")
        assert code == 400 and "start thinrow explore with --rows" in found
    assert "everyone who reaches this address reads histories" in caplog.text


def test_of_a_server_it_is_the_same(page: Page, world: World) -> None:
    rows = str(world.folder / "rows.parquet")
    tenants = world.folder / "tenants.toml"
    with (
        running_server(world.store, "--tenants", tenants) as server,
        explorer([server.address], [rows]) as address,
    ):
        for given in ({"a": "row:20", "b": "now", "tenant": "ranker"}, {"user": 1, "a": "now"}):
            assert Page(address).get("/api/view", **given) == page.get("/api/view", **given)


def test_the_command_wants_one_store(world: World) -> None:
    run = thinrow("explore")
    assert run.returncode and "one of the two" in " ".join(run.stderr.split())
    for option in ("--store", "--server"):
        run = thinrow("explore", option, world.folder)
        assert run.returncode == 2
        assert f"{world.folder} is a folder without a store" in " ".join(run.stderr.split())


def test_the_command_serves_until_it_is_stopped(world: World) -> None:
    command = [*THINROW, "explore", "--store", str(world.store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = re.findall(r"http://(127\.0\.0\.1:\d+)/", process.stdout.readline())
        assert Page(address[0]).get("/api/store")["rows"] is None
        process.terminate()
    assert process.returncode == 0


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it(page: Page, tmp_path: Path, width: int) -> None:
    drawn = browsed(f"http://{page.address}/#a=row:{REQUESTS - 1}&b=now", width, tmp_path)
    assert "<b id" not in drawn and "&lt;b id=nasty&gt;" in drawn
    view = page.get("/api/view", a=f"row:{REQUESTS - 1}", b="now")
    assert drawn.count('<tr class="border"') == 2
    assert drawn.count("<tr ") - 2 == len(view["events"])
    assert "The exact history: these are the events that serving saw." in drawn
