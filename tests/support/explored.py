"""The explorer's page, as a browser requests and draws it."""

# ruff: noqa: ANN401 - answers are JSON

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

CHROMIUM = shutil.which("chromium")


class Page:
    """The page of one store, as a browser requests it."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str, headers: dict[str, str] | None = None, **given: object) -> Any:
        """Returns a JSON answer."""
        query = urllib.parse.urlencode(given)
        url = f"http://{self.address}{path}" + (f"?{query}" if query else "")
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers or {}), timeout=60
        ) as answer:
            return json.load(answer)

    def refusal(self, path: str, headers: dict[str, str] | None = None, **given: object) -> Any:
        """Returns the status and the sentence of a refusal."""
        with pytest.raises(urllib.error.HTTPError) as raised:
            self.get(path, headers, **given)
        return raised.value.code, json.load(raised.value)["error"]


def states(view: Any, moment: int = 0) -> dict[str, str]:
    """Returns how a moment saw each event, by id."""
    found = {event["event_id"]: event["seen"][moment]["state"] for event in view["events"]}
    assert len(found) == len(view["events"])
    return found


def said(view: Any, moment: int = 0) -> str:
    """Returns the sentence about the status of a moment."""
    sentence: str = view["moments"][moment]["status_sentence"]
    return sentence


def numbers(listed: Any) -> list[int]:
    """Returns the numbers of listed rows."""
    return [row["row"] for row in listed["rows"]]


def browsed(url: str, width: int, profile: Path) -> str:
    """Returns the page as a browser has drawn it, without a complaint."""
    assert CHROMIUM is not None
    run = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom"),
            f"--window-size={width},900",
            f"--user-data-dir={profile}",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ":CONSOLE" not in run.stderr
    return run.stdout
