"""Times as people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def readable_time(time_ts: int) -> str:
    """Milliseconds as RFC 3339 in UTC; the bare number where no calendar reaches."""
    try:
        moment = _EPOCH + timedelta(milliseconds=time_ts)
    except OverflowError:
        return str(time_ts)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
