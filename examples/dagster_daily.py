"""The daily cycle as assets of Dagster: export, compact, verify, collect garbage.

    pip install 'thinrow[server]' dagster dagster-webserver
    THINROW_STORE=store dagster dev -f dagster_daily.py

Each day is a partition. A task that failed can run again: the export writes the same file, and a
generation that is published is not built twice. With Spark (docs/guides/fleet.md) the store is at
a URL, and exports lie where executors read them; properties come from spark-defaults.conf:

    pip install 'thinrow[spark]' dagster dagster-webserver
    THINROW_STORE=s3://bucket/histories THINROW_ENGINE=spark THINROW_EXPORTS=/shared/exports \\
        SPARK_CONF_DIR=conf dagster dev -f dagster_daily.py
"""

import os
import subprocess
from pathlib import Path

import dagster as dg
import thinrow

DAYS = dg.DailyPartitionsDefinition(start_date=os.environ.get("THINROW_FIRST_DAY", "2026-01-01"))
THE_DAY_BEFORE = dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)


class Places(dg.ConfigurableResource):
    """Places of the parts of the cycle."""

    online: str = os.environ.get("THINROW_ONLINE", "localhost:7888")
    store: str = os.environ.get("THINROW_STORE", "store")
    engine: str = os.environ.get("THINROW_ENGINE", "embedded")
    """`embedded`, or `spark`."""
    schema_file: str = os.environ.get("THINROW_SCHEMA", "schema.toml")
    """The schema of the online server."""
    exports: str = os.environ.get("THINROW_EXPORTS", "exports")
    samples: str = os.environ.get("THINROW_SAMPLES", "samples")
    """Folder of a sample of the day's requests, as thin rows and with their whole histories."""

    @property
    def server(self) -> str | Path:
        """The store, for jobs that read it."""
        return self.store if "://" in self.store else Path(self.store)

    def exported(self, day: str) -> Path:
        return Path(self.exports, f"{day}.parquet")


@dg.asset(partitions_def=DAYS)
def exported_events(context: dg.AssetExecutionContext, places: Places) -> dg.MaterializeResult:
    """Seals the end of the day, and writes what arrived before it."""
    path = places.exported(context.partition_key)
    path.parent.mkdir(parents=True, exist_ok=True)
    end = context.partition_time_window.end
    report = thinrow.export(online=places.online, watermark=end, out=path)
    return dg.MaterializeResult(metadata={"events": report.events, "path": str(path)})


@dg.asset(
    partitions_def=DAYS,
    # Generations follow one another, so a day waits for the day before.
    deps=[exported_events, dg.AssetDep("generation", partition_mapping=THE_DAY_BEFORE)],
)
def generation(context: dg.AssetExecutionContext, places: Places) -> dg.MaterializeResult:
    """Builds and publishes the generation of the day."""
    report = thinrow.compact(
        places.exported(context.partition_key),
        store=places.store,
        schema=places.schema_file,
        watermark=context.partition_time_window.end,
        cadence="1d",
        engine=places.engine,
    )
    return dg.MaterializeResult(
        metadata={"generation": report.generation, "events_added": report.events_added}
    )


@dg.asset(partitions_def=DAYS, deps=[generation])
def verified_sample(context: dg.AssetExecutionContext, places: Places) -> dg.MaterializeResult:
    """Compares the histories of the sampled requests with those that serving saw."""
    sample = Path(places.samples, context.partition_key)
    report = thinrow.verify(
        sample / "rows.parquet", against=sample / "fat.parquet", server=places.server
    )
    if report.rows_that_differ:
        raise dg.Failure(f"{report.rows_that_differ} rows differ, such as {report.differences[0]}.")
    return dg.MaterializeResult(metadata={"rows": report.rows, "events": report.events})


@dg.asset(partitions_def=DAYS, deps=[verified_sample])
def collected_garbage(places: Places) -> dg.MaterializeResult:
    """Removes old generations and what failed runs left, once all objects are there."""
    store = f"--store={places.store}"
    subprocess.run(["thinrow", "store", "verify", store, "--sizes-only"], check=True)
    command = ["thinrow", "store", "gc", store, "--keep=7"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dg.MaterializeResult(metadata={"report": done.stdout})


daily = dg.define_asset_job("daily", selection="*")
defs = dg.Definitions(
    assets=[exported_events, generation, verified_sample, collected_garbage],
    jobs=[daily],
    schedules=[dg.build_schedule_from_partitioned_job(daily, hour_of_day=1)],
    resources={"places": Places()},
)
