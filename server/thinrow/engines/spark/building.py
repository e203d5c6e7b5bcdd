"""Tasks that build shards: each reads one shard's rows and writes its files to the object store."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import pyarrow as pa
from thinrow.compaction.pair_writer import PreviousShard
from thinrow.compaction.shard import LAST_USER, ShardBuild, ShardCounts
from thinrow.compaction.shards import finish_shard
from thinrow.core.ids import is_text_kind
from thinrow.core.shards import shard_of
from thinrow.engines.spark.reading import (
    EVENTS,
    FACTS,
    HEAD,
    TEXTS,
    ReadPlan,
    read_vocabularies,
)
from thinrow.engines.spark.shuffled import Item, items, read_table
from thinrow.engines.spark.tasks import attempt_name, disk_remedy, result_row, task
from thinrow.events.canonical import canonical_schema
from thinrow.events.user_ids import USERS
from thinrow.remote.copies import OBJECTS, Copies
from thinrow.remote.generation_objects import read_shard
from thinrow.remote.object_store import ObjectStore
from thinrow.remote.publication import Placement, upload_files
from thinrow.store.layout import shard_name
from thinrow.store.manifest import ShardSummary
from thinrow.store.shard import Shard, link_or_copy
from thinrow.store.shard_manifest import ShardManifest
from thinrow.store.user_texts import unique_texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import Any
    from uuid import UUID

    from thinrow.compaction.run import ShardPlan
    from thinrow.store.stored_files import StoredFile
    from thinrow.store.user_texts import UserTexts

__all__ = ["BuildPlan", "BuiltShard"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltShard:
    """Result of one task."""

    shard: int
    rows: int
    """Events that it received."""
    counts: ShardCounts
    summary: ShardSummary
    """Without the checksum of the shard's manifest."""
    manifest: ShardManifest
    """The files in it have objects."""
    uploaded: dict[str, int]
    """Bytes of each object that it uploaded, by key."""
    facts: list[dict[str, Any]]
    """Measures of slices, which came with the rows: see `SliceFacts`."""

    def encode(self) -> pa.RecordBatch:
        """Returns the result as a row of RESULT_COLUMNS."""
        body = {
            "rows": self.rows,
            "counts": asdict(self.counts),
            "summary": self.summary.model_dump(mode="json"),
            "manifest": self.manifest.model_dump(mode="json"),
            "uploaded": self.uploaded,
            "facts": self.facts,
        }
        return result_row(self.shard, body)

    @classmethod
    def decode(cls, shard: int, text: str) -> BuiltShard:
        """Reads what `encode` wrote."""
        body = json.loads(text)
        return cls(
            shard=shard,
            rows=body["rows"],
            counts=ShardCounts(**body["counts"]),
            summary=ShardSummary.model_validate(body["summary"]),
            manifest=ShardManifest.model_validate(body["manifest"]),
            uploaded=body["uploaded"],
            facts=body["facts"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """Input of tasks that build shards; Spark carries it to them."""

    read: ReadPlan
    url: str
    run_id: UUID
    shards: ShardPlan
    erased_texts: pa.Table
    """Users to erase whose ids are texts: see USERS."""
    vocabularies: dict[str, StoredFile]
    """Files of the generation's vocabularies, by trait."""
    previous_run_id: UUID | None
    """Run that wrote the last generation; None in a first build."""
    previous: list[str]
    """Each shard in the root manifest of that generation, as JSON."""

    def build(self, found: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Builds the shard whose rows these are, sorted by `sub`."""
        with task(self.read.software) as folder:
            for shard, rows in groupby(items(found), key=lambda item: item.part):
                yield self._shard(shard, rows, folder).encode()

    def _shard(self, shard: int, rows: Iterator[Item], folder: Path) -> BuiltShard:
        schema = self.read.schema
        canonical = canonical_schema(schema.carried)
        store = ObjectStore(self.url)
        vocabularies = read_vocabularies(store, schema.coded_traits, self.vocabularies, folder)
        before = self._previous(store, shard, folder)
        path = folder / shard_name(shard)
        build = ShardBuild(before, self.shards.task(shard, vocabularies), path)
        facts: list[dict[str, Any]] = []
        row_count, last_user = 0, -1
        last_users = [*self.read.bounds.tolist(), LAST_USER]
        for sub, members in groupby(rows, key=lambda item: item.sub):
            bodies: dict[str, list[Any]] = {EVENTS: [], TEXTS: [], FACTS: [], HEAD: []}
            for item in members:
                bodies[item.kind].append(item.body)
            facts += [json.loads(bytes(body)) for body in bodies[FACTS]]
            if sub >= 0:
                events = read_table(bodies[EVENTS], canonical)
                row_count += events.num_rows
                last_user = last_users[sub]
                build.add(events, last_user, self._texts(bodies[TEXTS], shard))
        if last_user != LAST_USER:
            build.add(canonical.empty_table(), LAST_USER, self._texts([], shard))
        counts, writer = build.finish()
        summary, manifest = finish_shard(shard, writer, counts, before)
        if before is not None:
            before.shard.close()
        known = [] if before is None else before.manifest.files
        placement = Placement(self.run_id, {f"{path.name}/{file.name}": file for file in known})
        files = [placement.place(file, path, attempt_name()) for file in manifest.files]
        upload_files(store, placement.uploads)
        return BuiltShard(
            shard=shard,
            rows=row_count,
            counts=counts,
            summary=summary,
            manifest=manifest.model_copy(update={"files": files}),
            uploaded=placement.uploaded,
            facts=facts,
        )

    def _texts(self, bodies: list[Any], shard: int) -> UserTexts | None:
        """Returns texts of users of a range, and of those of the shard to be erased."""
        if not is_text_kind(self.read.schema.user_ids):
            return None
        owners = shard_of(self.erased_texts.column("user_id").to_numpy(), self.shards.shards)
        erased = self.erased_texts.filter(pa.array(owners == shard))
        return unique_texts(pa.concat_tables([read_table(bodies, USERS), erased]))

    def _previous(self, store: ObjectStore, shard: int, folder: Path) -> PreviousShard | None:
        """Copies a shard of the last generation, and opens it."""
        if self.previous_run_id is None:
            return None
        summary = ShardSummary.model_validate_json(self.previous[shard])
        _, manifest = read_shard(store, self.previous_run_id, shard, summary)
        copies = Copies(store, folder / OBJECTS, remedy=disk_remedy())
        copies.fetch(self.shards.generation - 1, manifest.files)
        path = folder / "previous" / manifest.name
        path.mkdir(parents=True)
        for file in manifest.files:
            link_or_copy(copies.path(file), path / file.name)
        return PreviousShard(shard=Shard(path), summary=summary, manifest=manifest)
