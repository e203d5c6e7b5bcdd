"""The explorer's HTTP application: one page, and its data as JSON."""

from __future__ import annotations

import json
import logging
from importlib.resources import files
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from thinrow.access.http_server import respond
from thinrow.access.page_html import STYLE
from thinrow.errors import ThinRowError, UsageError
from thinrow.explore.histories import Histories
from thinrow.explore.moments import NO_ROWS, parse_moments, parse_user
from thinrow.explore.rows import ROWS_LISTED_MAX
from thinrow.explore.values import parse_integer
from thinrow.explore.view import view
from thinrow.store.times import readable_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from thinrow.client import Client
    from thinrow.explore.rows import RowFiles

__all__ = ["LENGTH_MAX", "WATERMARKS_MAX", "Explorer"]

log = logging.getLogger("thinrow.explore")

LENGTH_MAX = 1_000_000
"""Longest sequence length that the page requests."""
WATERMARKS_MAX = 1000
"""Watermarks sent to the page, the newest."""
OWN_FILES_ONLY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "form-action 'none'"
)
"""Content security policy: no script, style or data from elsewhere, nor any inside the page."""
JSON = "application/json"
Parameters = dict[str, str]


class Explorer:
    """A WSGI application that shows the histories of one store.

    Args:
        client: Client of the store.
        name: Name of the store on the page.
        rows: Files of thin rows to pick from, if there are some.
        is_local: True if it serves this machine only; a request for another host's name is then
            refused, since a page of a foreign site may have led the browser here.
    """

    def __init__(self, client: Client, name: str, rows: RowFiles | None, *, is_local: bool) -> None:
        self._client = client
        self._name = name
        self._rows = rows
        self._is_local = is_local
        folder = files("thinrow.explore")
        self._files = {
            "/": ("text/html", folder.joinpath("explore.html").read_bytes()),
            "/page.css": ("text/css", STYLE.encode()),
            "/explore.css": ("text/css", folder.joinpath("explore.css").read_bytes()),
        }
        for script in ("axis", "dom", "explore", "table"):
            text = folder.joinpath(f"{script}.js").read_bytes()
            self._files[f"/{script}.js"] = ("text/javascript", text)
        self._data: dict[str, Callable[[Parameters], Any]] = {
            "/api/store": self._store,
            "/api/rows": self._listed,
            "/api/view": self._view,
        }

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:  # noqa: ANN401
        """Answers one request."""
        if self._is_local and not names_this_machine(environ.get("HTTP_HOST", "")):
            return failure(environ, start_response, "421 Misdirected Request", WRONG_HOST)
        path = environ["PATH_INFO"]
        if path in self._files:
            kind, body = self._files[path]
            return respond(environ, start_response, kind, body, OWN_FILES_ONLY)
        if path not in self._data:
            return failure(environ, start_response, "404 Not Found", "There is no such page.")
        try:
            answer = self._data[path](dict(parse_qsl(environ.get("QUERY_STRING", ""))))
        except UsageError as error:
            return failure(environ, start_response, "400 Bad Request", str(error))
        except ThinRowError as error:
            return failure(environ, start_response, "502 Bad Gateway", str(error))
        except Exception:
            log.exception("a page could not be answered", extra={"path": path})
            sentence = "The explorer failed; its log says why."
            return failure(environ, start_response, "500 Internal Server Error", sentence)
        body = json.dumps(answer, allow_nan=False).encode()
        return respond(environ, start_response, JSON, body, OWN_FILES_ONLY)

    def _store(self, _: Parameters) -> dict[str, Any]:
        """Describes the store and the limits of the page."""
        store = self._client.describe_store()
        return {
            "name": self._name,
            "generation": store.generation,
            "watermark_time": readable_time(store.watermark_ts),
            "watermarks": list(store.watermarks)[-WATERMARKS_MAX:],
            "event_count": store.event_count,
            "user_count": store.user_count,
            "tenants": list(store.tenants),
            "rows": None if self._rows is None else self._rows.count,
            "rows_listed_max": ROWS_LISTED_MAX,
            "length_max": LENGTH_MAX,
        }

    def _listed(self, given: Parameters) -> dict[str, Any]:
        """Lists thin rows `from` a number on, of all users or of one `user`."""
        if self._rows is None:
            raise UsageError(NO_ROWS)
        start = parse_integer("from", given.get("from", "0"), range(self._rows.count + 1))
        if "user" not in given:
            return self._rows.listed(start)
        return self._rows.listed(start, parse_user(given["user"], self._client.describe_store()))

    def _view(self, given: Parameters) -> dict[str, Any]:
        """Shows the moment `a`, beside moment `b` if given, of a `user`.

        `length` or `tenant` chooses the model.
        """
        store = self._client.describe_store()
        moments = parse_moments(
            [given[name] for name in ("a", "b") if name in given],
            given.get("user", ""),
            store,
            self._rows,
        )
        traits = {
            trait.name: trait.filled_before_ts if trait.HasField("filled_before_ts") else None
            for group in store.feature_groups
            for trait in group.traits
        }
        model: int | str = given.get("tenant", "") or parse_integer(
            "length", given.get("length", "0"), range(LENGTH_MAX + 1)
        )
        histories = Histories(self._client, list(traits))
        return view(histories, moments, model, store.watermark_ts, traits)


WRONG_HOST = "This page serves its own machine only; open it at the address that was printed."


def names_this_machine(host: str) -> bool:
    """Returns True if a Host header names an address, or localhost: no foreign site can."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    if name == "localhost":
        return True
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def failure(
    environ: dict[str, Any],
    start_response: Any,  # noqa: ANN401
    status: str,
    sentence: str,
) -> Iterable[bytes]:
    """Answers with a sentence about what is wrong."""
    body = json.dumps({"error": sentence}).encode()
    return respond(environ, start_response, JSON, body, OWN_FILES_ONLY, status)
