"""The demo's findings: tables, and under each a sentence that says what it means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table
from thinrow.jobs.console import readable_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thinrow.demo.comparison import Compared
    from thinrow.demo.training import Quality

__all__ = ["Findings", "Rung"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """The model trained at one length."""

    sequence_length: int
    """Newest events; 0: all."""
    quality: Quality

    @property
    def name(self) -> str:
        """The length as people write it."""
        return f"newest {self.sequence_length:,}" if self.sequence_length else "all"


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """All that the demo measures."""

    rows_bytes: int
    store_bytes: int
    tenants: Sequence[Compared]
    """The shortest first."""
    rungs: Sequence[Rung]
    """The shortest first."""

    @property
    def thin_bytes(self) -> int:
        """Thin rows and the histories that they point at, for all tenants together."""
        return self.rows_bytes + self.store_bytes

    @property
    def fat_bytes(self) -> int:
        """Fat rows of all tenants together."""
        return sum(each.fat_bytes for each in self.tenants)

    @property
    def smaller(self) -> float:
        """Bytes of the longest tenant's fat rows, as a multiple of thin rows and store."""
        return self.tenants[-1].fat_bytes / self.thin_bytes

    @property
    def faster(self) -> float:
        """Speed of thin rows for the longest tenant, as a multiple of that of fat rows."""
        return speedup(self.tenants[-1])

    def bytes_table(self) -> Table:
        """Bytes by tenant."""
        table = new_table("Bytes", "model", "history", "events each", "fat rows", "thin rows")
        for each in self.tenants:
            events = f"{each.events / each.examples:,.0f}"
            table.add_row(*described(each), events, readable_bytes(each.fat_bytes), "")
        table.add_section()
        sums = readable_bytes(self.fat_bytes), readable_bytes(self.thin_bytes)
        table.add_row("all", "", "", *sums)
        return table

    def bytes_meaning(self) -> str:
        """The sentence under the table of bytes."""
        longest = self.tenants[-1]
        text = (
            f"All models share thin rows ({readable_bytes(self.rows_bytes)}) and a store that has "
            f"each history once ({readable_bytes(self.store_bytes)}). "
        )
        if self.smaller > 1:
            text += (
                f"Fat rows of “{longest.tenant.name}” alone take {self.smaller:.1f} times as many "
                f"bytes, because each row holds a copy of its history."
            )
        else:
            text += (
                "Fat rows take no more, since these histories are short or requests few: thin rows "
                "save nothing here."
            )
        fewer = [each for each in self.tenants[:-1] if each.fat_bytes < self.thin_bytes]
        if fewer:
            text += f" If {names(fewer)} were the only model, its fat rows would take fewer."
        return text

    def speed_table(self) -> Table:
        """Speed by tenant."""
        heads = ("model", "history", "fat rows", "thin rows", "thin rows are")
        table = new_table("Examples/s into tensors", *heads)
        for each in self.tenants:
            fat, thin = each.examples / each.fat_s, each.examples / each.thin_s
            table.add_row(*described(each), f"{fat:,.0f}", f"{thin:,.0f}", as_times(each))
        return table

    def speed_meaning(self) -> str:
        """The sentences under the table of speed."""
        faster = [each for each in self.tenants if speedup(each) > 1]
        slower = [each for each in self.tenants if speedup(each) <= 1]
        texts = []
        if faster:
            texts.append(
                f"Thin rows win for {names(faster)}: users' histories are read and sent once for "
                f"many of their rows."
            )
        if slower:
            texts.append(
                f"Fat rows win for {names(slower)}: so few events cost less to copy than to look "
                f"up, as long as a table is kept for that model alone."
            )
        return " ".join(texts)

    def quality_table(self) -> Table:
        """Quality by length."""
        table = new_table(
            "One model at two lengths, from the same thin rows", "events it sees", "hit rate@10"
        )
        for rung in self.rungs:
            table.add_row(rung.name, f"{rung.quality.hit_rate:.1%}")
        table.add_row("(ten most popular)", f"{self.rungs[0].quality.popularity_hit_rate:.1%}")
        return table

    def quality_meaning(self) -> str:
        """The sentence under the table of quality."""
        short, long = self.rungs
        free = "Length is a number that the trainer requests; nothing was written again for it."
        if long.quality.hit_rate > short.quality.hit_rate:
            return f"The longer history predicts better. {free}"
        return f"The longer history predicts no better here. {free}"


def new_table(title: str, first: str, *heads: str) -> Table:
    """A table whose figures stand at the right."""
    table = Table(first, title=f"\n{title}", title_justify="left")
    for head in heads:
        table.add_column(head, justify="right")
    return table


def described(each: Compared) -> tuple[str, str]:
    """The first columns of a tenant's line."""
    length = each.tenant.sequence_length
    width = len(each.tenant.traits)
    traits = "1 trait" if width == 1 else f"{width} traits"
    return each.tenant.name, f"{f'newest {length}' if length else 'all'}, {traits}"


def speedup(each: Compared) -> float:
    """Speed of thin rows as a multiple of that of fat rows."""
    return each.fat_s / each.thin_s


def as_times(each: Compared) -> str:
    """The speed of thin rows beside that of fat rows, in words."""
    ratio = speedup(each)
    return f"{ratio:.1f}x faster" if ratio > 1 else f"{1 / ratio:.1f}x slower"


def names(tenants: Sequence[Compared]) -> str:
    """Names of tenants, as in a sentence."""
    return " and ".join(f"“{each.tenant.name}”" for each in tenants)
