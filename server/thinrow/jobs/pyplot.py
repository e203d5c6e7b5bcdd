"""Matplotlib, for the commands that draw."""

from __future__ import annotations

from typing import Any

from thinrow.errors import UsageError

__all__ = ["load_pyplot"]


def load_pyplot(what: str) -> Any:  # noqa: ANN401 - a module
    """Imports Matplotlib's pyplot, without a window.

    Args:
        what: Subject of the sentence that says what needs it.

    Raises:
        UsageError: Matplotlib is missing.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise UsageError(f"{what} needs Matplotlib: pip install matplotlib.") from error
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt
