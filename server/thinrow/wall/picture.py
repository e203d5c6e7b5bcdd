"""The picture of `thinrow wall`: costs against sequence length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.wall.model import SHARE_MAX, costs_of, find_walls, share_at

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from thinrow.wall.config import Power, Tenant
    from thinrow.wall.model import Cost, Workload

__all__ = ["plot"]

SHORTEST_PLOTTED = 64
KINDS = (("fat rows", "C3"), ("thin rows", "C0"))
PANELS: dict[str, Callable[[Cost], float]] = {
    "written a day, bytes": lambda cost: cost.written_per_day,
    "read per example, bytes": lambda cost: cost.each_time.disk_bytes,
    "sent per example, bytes": lambda cost: cost.each_time.network_bytes,
    "CPU per example, s": lambda cost: cost.each_time.cpu_s,
}


def plot(
    plt: Any,  # noqa: ANN401 - Matplotlib's pyplot
    workloads: Sequence[Workload],
    tenants: Sequence[Tenant],
    power: Power,
    path: Path,
) -> None:
    """Draws a row of panels for each order."""
    rows, columns = len(workloads), len(PANELS) + 1
    figure, axes = plt.subplots(
        rows, columns, figsize=(4 * columns, 3.6 * rows), layout="constrained", squeeze=False
    )
    for workload, row in zip(workloads, axes, strict=True):
        longest = max(workload.longest, SHORTEST_PLOTTED * 2)
        lengths = np.unique(np.geomspace(SHORTEST_PLOTTED, longest, 60).astype(int)).tolist()
        costs = [costs_of(workload, length, length) for length in lengths]
        shares = [share_at(workload, power, length) for length in lengths]
        for kind, (name, color) in enumerate(KINDS):
            for axis, (title, value_of) in zip(row, PANELS.items(), strict=False):
                axis.plot(lengths, [value_of(pair[kind]) for pair in costs], color, label=name)
                axis.set(title=title)
            row[-1].plot(lengths, [share[kind] for share in shares], color)
        row[-1].axhline(SHARE_MAX, color="gray", linestyle="--")
        row[-1].set(title="data services, share of GPU power")
        walls = find_walls(workload, power)
        for axis in row:
            axis.set(xlabel="sequence length, events", xscale="log", yscale="log")
            axis.spines[["top", "right"]].set_visible(False)
            for tenant in tenants:
                if SHORTEST_PLOTTED <= tenant.length <= longest:
                    axis.axvline(tenant.length, color="lightgray", linewidth=0.8, zorder=0)
                    axis.text(
                        tenant.length, 0.01, tenant.name, transform=axis.get_xaxis_transform()
                    )
        for place, wall in enumerate((walls.fat, walls.thin)):
            name, color = KINDS[place]
            found = f"{wall:,}" if wall else f"beyond {longest:,}"
            height = 0.93 - 0.08 * place
            row[-1].text(0.03, height, f"{name}: {found}", color=color, transform=row[-1].transAxes)
            if wall is not None and wall >= SHORTEST_PLOTTED:
                row[-1].axvline(wall, color=color, linestyle=":")
        row[0].set(ylabel=workload.order)
    axes[0][0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
