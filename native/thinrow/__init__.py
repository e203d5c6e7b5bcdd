"""ThinRow: user histories stored once, and put back at training time exactly as serving saw them.

`thinrow.client` looks histories up, `thinrow.client.torch` trains from them. The jobs of the
command line are functions of this package (extra `server`): `thinrow.compact`, `thinrow.backfill`
and others, which docs/guides/python.md shows.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thinrow.api import (
        backfill,
        cluster_apply,
        cluster_drain,
        cluster_plan,
        cluster_status,
        compact,
        export,
        fill,
        materialize,
        research,
        slim,
        verify,
    )

__all__ = [
    "backfill",
    "cluster_apply",
    "cluster_drain",
    "cluster_plan",
    "cluster_status",
    "compact",
    "export",
    "fill",
    "materialize",
    "research",
    "slim",
    "verify",
]

# A checkout has parts of the package in three folders, and its native code in a fourth.
__path__ = extend_path(__path__, __name__)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a job
    """Returns a job, and loads what it needs; client programs load none of it.

    Raises:
        UsageError: The server's libraries are not installed.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module("thinrow.api"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("thinrow"):
            raise
        from thinrow.errors import UsageError

        raise UsageError(
            f"thinrow.{name} needs {error.name}; pip install 'thinrow[server]'."
        ) from error
