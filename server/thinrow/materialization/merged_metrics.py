"""Series of several processes, merged into those of one server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.metrics_core import Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["merged"]

_MERGED: dict[str, Callable[[Iterable[float]], float]] = {
    "process_max_fds": min,
    "thinrow_certificate_expiry_timestamp_seconds": min,
    "thinrow_certificates_usable": min,
    "thinrow_tenants_usable": min,
    "process_start_time_seconds": min,
    "thinrow_build_info": min,
    "thinrow_cluster_group": min,
    "thinrow_cluster_map_version": min,
    "thinrow_cluster_shards_moving": max,
    "thinrow_cluster_shards_open": min,
    "thinrow_cluster_shards_wanted": max,
    "thinrow_generation": min,
    "thinrow_generation_opened_timestamp_seconds": min,
    "thinrow_ready": min,
    "thinrow_ready_seconds": max,
    "thinrow_vocabulary_values": min,
    "thinrow_vocabulary_values_max": min,
    "thinrow_watermark_age_seconds": max,
}
"""Series that are not summed over processes: the value of the worst process is shown."""


def merged(parts: Iterable[Sequence[Metric]]) -> list[Metric]:
    """Returns the series of several processes as those of one server."""
    families: dict[str, Metric] = {}
    values: dict[tuple[str, str, tuple[tuple[str, str], ...]], list[float]] = {}
    for family in (family for part in parts for family in part):
        families.setdefault(
            family.name, Metric(family.name, family.documentation, family.type, family.unit)
        )
        for sample in family.samples:
            key = (family.name, sample.name, tuple(sample.labels.items()))
            values.setdefault(key, []).append(sample.value)
    for (family_name, name, labels), each in values.items():
        merge = _MERGED.get(name, min if name.endswith("_created") else sum)
        families[family_name].add_sample(name, dict(labels), merge(each))
    return list(families.values())
