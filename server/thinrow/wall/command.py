"""``thinrow wall``: what fat rows and thin rows cost at every length, and where the walls are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.errors import UsageError
from thinrow.jobs.connecting import connected
from thinrow.jobs.console import out
from thinrow.jobs.pyplot import load_pyplot
from thinrow.wall.config import Tenant
from thinrow.wall.figures import SHIPPED, read_figures
from thinrow.wall.picture import plot
from thinrow.wall.report import to_tables
from thinrow.wall.sample import measured_workload
from thinrow.wall.workloads import platform_workloads, with_given

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from thinrow.jobs.connecting import Access
    from thinrow.wall.config import GivenFigures, Power

__all__ = ["parse_tenants", "run_wall"]


def parse_tenants(texts: Sequence[str]) -> list[Tenant]:
    """Tenants written as NAME=LENGTH. Raises UsageError for anything else."""
    tenants = []
    for text in texts:
        name, _, length = text.partition("=")
        if not name or not length.isdecimal() or not int(length):
            raise UsageError(f"{text!r} is no tenant; write NAME=LENGTH, such as long=16384.")
        tenants.append(Tenant(name=name, length=int(length)))
    return tenants


def run_wall(
    tenants: Sequence[Tenant],
    power: Power,
    given: GivenFigures,
    figures_file: Path | None,
    rows: Path | None,
    server: Sequence[str],
    picture: Path,
    access: Access | None = None,
) -> None:
    """Prints and plots costs and walls. What is ``given`` counts before what is measured.

    Raises UsageError for thin rows without a server, or where Matplotlib is missing.
    """
    plt = load_pyplot("The wall")
    if (rows is None) != (not server):
        raise UsageError("Thin rows and their server belong together; give both or neither.")
    figures = read_figures(figures_file or SHIPPED)
    if rows is None:
        workloads = platform_workloads(figures, given)
    else:
        with connected(server, access) as client:
            workloads = [with_given(measured_workload(client, rows, figures), given)]
    tables = to_tables(workloads, tenants, power, figures, given, is_sample=rows is not None)
    out.print(*tables, sep="\n")
    plot(plt, workloads, tenants, power, picture)
    out.print(f"The picture is {picture}")
