"""Compacts what arrived before the last midnight UTC: the program that Spark's operator submits.

The environment names the input (EVENTS) and the store (STORE).
"""

import os
from datetime import UTC, datetime

import thinrow

midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
report = thinrow.compact(
    os.environ["EVENTS"], store=os.environ["STORE"], watermark=midnight, engine="spark"
)
print(f"Generation {report.generation}: {report.events_added:,} events added")  # noqa: T201
