"""The demo's picture: bytes, speed and quality at a glance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thinrow.jobs.pyplot import load_pyplot

if TYPE_CHECKING:
    from pathlib import Path

    from thinrow.demo.comparison import Compared
    from thinrow.demo.findings import Findings

__all__ = ["draw"]

THIN, FAT = "#1f77b4", "#cfcfcf"


def draw(found: Findings, path: Path) -> None:
    """Draws the findings: who wins stands in the titles."""
    plt = load_pyplot("The demo's picture")
    figure, panels = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for fill, panel in zip((draw_bytes, draw_times, draw_quality), panels, strict=True):
        fill(found, panel)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.set_yticks([])
        panel.margins(y=0.12)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_bytes(found: Findings, panel: Any) -> None:  # noqa: ANN401 - Matplotlib's axes
    """Draws the bytes of the longest tenant's fat rows, and of thin rows with their store."""
    longest = found.tenants[-1]
    sizes = [longest.fat_bytes / 1e6, found.thin_bytes / 1e6]
    bars = panel.bar(["fat rows\n", "thin rows\nand store"], sizes, color=[FAT, THIN])
    panel.bar_label(bars, [f"{size:,.1f} MB" for size in sizes])
    entitle(panel, f"{found.smaller:.1f}x smaller" if found.smaller > 1 else "No smaller")
    panel.set_xlabel(
        f"{longest.examples:,} examples, each with\n{per_example(longest):,.0f} events on average"
    )


def draw_times(found: Findings, panel: Any) -> None:  # noqa: ANN401 - Matplotlib's axes
    """Draws the time that either side takes for each tenant."""
    width = 0.4
    for shift, color, side in ((-width / 2, FAT, "fat"), (width / 2, THIN, "thin")):
        times = [1e6 * getattr(each, f"{side}_s") / each.examples for each in found.tenants]
        places = [place + shift for place in range(len(times))]
        bars = panel.bar(places, times, width, color=color, label=f"{side} rows")
        panel.bar_label(
            bars, [f"{time:,.0f} ms" if time >= 10 else f"{time:.1f} ms" for time in times]
        )
    names = [f"{per_example(each):,.0f}\nevents" for each in found.tenants]
    panel.set_xticks(range(len(names)), names)
    panel.set_xlabel("time to read 1,000 examples into tensors,\nby the length of their histories")
    panel.legend(frameon=False, loc="upper center", ncols=2, bbox_to_anchor=(0.5, 1.08))
    entitle(panel, f"{found.faster:.1f}x faster if long" if found.faster > 1 else "No faster")


def draw_quality(found: Findings, panel: Any) -> None:  # noqa: ANN401 - Matplotlib's axes
    """Draws the hit rates at both lengths, beside that of popularity."""
    rates = [found.rungs[0].quality.popularity_hit_rate]
    rates += [rung.quality.hit_rate for rung in found.rungs]
    names = ["ten most\npopular", *(f"model,\n{rung.name}" for rung in found.rungs)]
    bars = panel.bar(names, rates, color=[FAT, THIN, THIN])
    panel.bar_label(bars, [f"{rate:.1%}" for rate in rates])
    panel.set_xlabel("next items among ten guesses, by the\nnumber of events that the model sees")
    better = rates[-1] > rates[-2]
    entitle(panel, "Longer histories predict better" if better else "Quality at two lengths")


def per_example(each: Compared) -> float:
    """Events of an example."""
    return each.events / each.examples


def entitle(panel: Any, title: str) -> None:  # noqa: ANN401 - Matplotlib's axes
    """Sets a title that is read first."""
    panel.set_title(title, fontweight="bold", fontsize=14, pad=12)
