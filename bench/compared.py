"""One tenant on one world in one order: all sides checked, then timed, the limits beside them."""

from __future__ import annotations

import cProfile
import pstats
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from expected import column_bytes
from limits import BareGets, BareStream, MemoryCopy
from sides import Figures, check_equal, measure
from thinrow.access.projection import ResolvedProjection, resolve
from thinrow.client import Projection, read_thin_rows
from thinrow.core.lookup.batch_lookup import BatchLookup
from thinrow.materialization.request import MaterializeRequest
from thinrow.store.generation import Generation
from thinrow.store.history import HistoryPlan
from thinrow.store.shard import Shard
from thinrow.v1 import materialization_pb2 as wire
from world import InProcess, Tenant, ThinRows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from sides import Side
    from world import World

LOOKUP_EXAMPLES = 4096
PROFILE_LINES = 8
ANSWER_BYTES_MAX = 1 << 30
THIN_COLUMNS = ("user_id", "uih", "mutable")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The measured figures."""

    world: str
    order: str
    tenant: Tenant
    figures: dict[str, Figures]
    limits: dict[str, Figures]
    events: int
    examples: int
    tensor_bytes: int
    own_bytes: int
    """Bytes of the events in the traits' own types."""
    read_bytes: float
    """Bytes read from the store in one round."""
    sent_bytes: float
    """Answers, in one round."""
    answers: float
    stage_s: dict[str, float]
    """Seconds of one round in the server's stages."""
    waited_s: dict[str, float]
    """Seconds of one round that the consumer waited, by the loader's stages."""
    rows_bytes: int
    rows_read_bytes: int
    fat_bytes: int
    fat_read_bytes: int
    users_per_lookup: float
    others: float
    """Cores that were busy with something else."""
    profile: list[tuple[str, float]] = field(default_factory=list)
    """The server's functions that took the most time of their own, and their shares."""

    @property
    def thin(self) -> Figures:
        return self.figures[ThinRows.name]

    def ratio(self, *names: str) -> float:
        """Speed of thin rows, as a multiple of the fastest of some sides."""
        return min(self.figures[name].round_s for name in names) / self.thin.round_s

    def fastest(self, *names: str) -> str:
        """The fastest of some sides."""
        return min(names, key=lambda name: self.figures[name].round_s)


def compare(
    world: World,
    order: str,
    tenant: Tenant,
    peers: Sequence[Side],
    *,
    fat: Path | None,
    bare: tuple[str, int],
    rounds: int,
    report: Callable[[str], None],
    profiled: bool = False,
) -> Compared:
    """Measure all sides; `fat` is the table whose bytes are reported as well."""
    examples = world.examples(order, tenant)
    thin, in_process = ThinRows(world, order, tenant), InProcess(world, order, tenant)
    with ExitStack() as stack:
        stack.callback(thin.loader.close)
        stack.callback(in_process.loader.close)
        # The first pass also shows how large answers are.
        before = world.metrics()
        check_equal(thin, examples.batches())
        counted = {key: value - before.get(key, 0) for key, value in world.metrics().items()}
        answers = counted["assemble count"]
        pieces = list(requests(world, order, tenant, round(len(examples) / answers) or 1))
        generation = Generation.open_current(world.folder / "store")
        stack.callback(generation.close)
        copy = MemoryCopy(examples)
        limits: list[Side] = [
            copy,
            BareStream(*bare, int(answers), int(counted["sent_bytes"] / answers)),
            BareGets(generation, recorded(generation, pieces)),
        ]
        before, waited = world.metrics(), thin.loader.starvation.waited_s
        sides = [thin, in_process, *peers]
        figures, others = measure(sides, examples.batches, rounds, report, limits)
        passes = rounds + 2
        stage_s = {
            key.split()[0]: (value - before.get(key, 0)) / passes
            for key, value in world.metrics().items()
            if key.endswith(" sum")
        }
        waited_s = {
            stage: (seconds - waited[stage]) / passes
            for stage, seconds in thin.loader.starvation.waited_s.items()
        }
        profile = functions(generation, pieces) if profiled else []
    user_ids = examples.user_ids
    chunks = [
        user_ids[at : at + LOOKUP_EXAMPLES] for at in range(0, len(examples), LOOKUP_EXAMPLES)
    ]
    events = int(examples.lengths.sum())
    rows = world.rows(order)
    return Compared(
        world=world.name,
        order=order,
        tenant=tenant,
        figures={side.name: figures[side.name] for side in sides},
        limits={limit.name: figures[limit.name] for limit in limits},
        events=events,
        examples=len(examples),
        tensor_bytes=copy.nbytes,
        own_bytes=events * world.histories.bytes_per_event(tenant.traits),
        read_bytes=counted["read_bytes"],
        sent_bytes=counted["sent_bytes"],
        answers=answers,
        stage_s=stage_s,
        waited_s=waited_s,
        rows_bytes=rows.stat().st_size,
        rows_read_bytes=column_bytes(rows, THIN_COLUMNS),
        fat_bytes=fat.stat().st_size if fat else 0,
        fat_read_bytes=column_bytes(fat, tenant.traits) if fat else 0,
        users_per_lookup=sum(len(set(chunk.tolist())) for chunk in chunks) / len(chunks),
        others=others,
        profile=profile,
    )


def requests(
    world: World, order: str, tenant: Tenant, examples: int
) -> Iterator[wire.MaterializeRequest]:
    """Requests as the loader sends them, of a given number of examples."""
    projection = Projection(tenant.sequence_length, traits=tenant.traits)
    for rows, _ in read_thin_rows(world.rows(order), examples=LOOKUP_EXAMPLES):
        rest = BatchLookup(rows, projection).whole()
        while rest is not None:
            piece, rest = rest.cut(examples)
            yield wire.MaterializeRequest.FromString(piece.request())


def recorded(
    generation: Generation, requests: Sequence[wire.MaterializeRequest]
) -> list[tuple[str, list[bytes]]]:
    """The keys that some requests need, get by get, with the shard of each; none kept in memory."""
    seen: list[tuple[str, list[bytes]]] = []
    get = Shard.get

    def recording(self: Shard, keys: Sequence[bytes]) -> list[bytes | None]:
        seen.append((str(self.path), list(keys)))
        return get(self, keys)

    Shard.get = recording  # type: ignore[method-assign]
    try:
        for request in requests:
            with Generation(generation.folder) as fresh:
                plan_of(fresh, request)[0].read()
    finally:
        Shard.get = get  # type: ignore[method-assign]
    return seen


def plan_of(
    generation: Generation, request: wire.MaterializeRequest
) -> tuple[HistoryPlan, ResolvedProjection]:
    """Plans a request as the server does."""
    decoded = MaterializeRequest(request.SerializeToString(), len(request.user_ids))
    projection = resolve(decoded.tenant, decoded.projection, generation.schema, {})
    plan = HistoryPlan(generation, decoded, projection.truncation, projection.groups)
    return plan, projection


def functions(
    generation: Generation, requests: Sequence[wire.MaterializeRequest]
) -> list[tuple[str, float]]:
    """Profiles the server's work on some requests, in this process."""
    profiler = cProfile.Profile()
    profiler.enable()
    for request in requests:
        plan, projection = plan_of(generation, request)
        plan.read()
        plan.resolve()
        plan.answer(projection.traits, ANSWER_BYTES_MAX)
    profiler.disable()
    stats = pstats.Stats(profiler)
    rows = [
        (f"{path.rpartition('thinrow/')[2]}:{name}" if "thinrow" in path else name, own_s)
        for (path, _, name), (_, _, own_s, _, _) in stats.stats.items()  # type: ignore[attr-defined]
    ]
    total_s = sum(own_s for _, own_s in rows)
    return [
        (name, s / total_s) for name, s in sorted(rows, key=lambda row: -row[1])[:PROFILE_LINES]
    ]
