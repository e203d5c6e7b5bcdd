"""An S3 server in a process of its own, which can be made to fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest import mock
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_S = 60

SERVER = """
import json, sys, threading, time
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

storage = DomainDispatcherApplication(create_backend_app)
lock, conditional, faults = threading.Lock(), threading.Lock(), []
served = {"requests": 0, "bytes": 0, "hung": 0}

def answered(start_response, status, body=b""):
    start_response(status, [("Content-Length", str(len(body)))])
    return [body]

def app(environ, start_response):
    method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
    if path == "/-/faults":
        served["hung"] = 0
        faults[:] = [json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))]
        return answered(start_response, "200 OK")
    if path == "/-/served":
        return answered(start_response, "200 OK", json.dumps(served).encode())
    with lock:
        hit = next((each for each in faults if each["count"] and each["method"] == method
                    and each["part"] in path), None)
        if hit is not None:
            hit["count"] -= 1
    if hit is not None and hit["kind"] == "refused":
        return answered(start_response, "503 Slow Down")
    if hit is not None and hit["kind"] == "denied":
        return answered(start_response, "403 Forbidden")
    if hit is not None and hit["kind"] in ("held", "hung"):
        with lock:
            served["hung"] += 1
        time.sleep(1 if hit["kind"] == "held" else 3600)
    if hit is not None and hit["kind"] == "lost":
        b"".join(storage(environ, lambda *_: None))
        return answered(start_response, "500 Internal Server Error")
    if "HTTP_IF_MATCH" in environ or "HTTP_IF_NONE_MATCH" in environ:
        # moto compares and replaces in two steps, which S3 does in one.
        with conditional:
            body = list(storage(environ, start_response))
    else:
        body = list(storage(environ, start_response))
    if hit is not None and hit["kind"] in ("cut", "slow", "flipped"):
        return altered(hit["kind"], b"".join(body))
    with lock:
        served["requests"] += method == "GET"
        served["bytes"] += sum(map(len, body)) if method == "GET" else 0
    return body

def altered(kind, body):
    half = len(body) // 2
    if kind == "flipped":
        yield body[:half] + bytes([body[half] ^ 4]) + body[half + 1:]
        return
    yield body[:half]
    if kind == "cut":
        raise ConnectionError
    for start in range(half, len(body), 1 + half // 8):
        time.sleep(0.5)
        yield body[start:start + 1 + half // 8]

class Silent(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"
    def log(self, *_):
        pass

server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Silent)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class ObjectStorage:
    """The running server."""

    endpoint: str
    process: subprocess.Popen[str]

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which clients find it."""
        return {
            "AWS_ENDPOINT": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "a-secret-of-tests",
        }

    def new_url(self) -> str:
        """URL of an empty store in a bucket of its own."""
        bucket = f"thinrow-{uuid4()}"
        self._send("PUT", f"/{bucket}")
        return f"s3://{bucket}/stores/one"

    def fail(self, kind: str, method: str, count: int, part: str = "") -> None:
        """Makes the next requests fail.

        Args:
            kind: `refused` answers 503 and does nothing; `lost` does it and answers 500; `held`
                answers a second later, `hung` never; `denied` answers 403; `cut` closes the
                connection in the middle of the answer, `slow` sends its second half within four
                seconds, and `flipped` alters a bit of it.
            method: Method of the requests.
            count: Their number.
            part: Text that their path contains.
        """
        fault = {"kind": kind, "method": method, "count": count, "part": part}
        self._send("POST", "/-/faults", json.dumps(fault).encode())

    def served(self) -> dict[str, int]:
        """Requests to read, and bytes of their answers, so far."""
        found: dict[str, int] = json.loads(self._send("GET", "/-/served"))
        return found

    def hung(self) -> int:
        """Requests since the last `fail` whose answer was held."""
        return self.served()["hung"]

    def _send(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.endpoint + path, method=method, data=body)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            content: bytes = answer.read()
        return content


@contextmanager
def running_storage() -> Iterator[ObjectStorage]:
    """The server, until the block ends."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        try:
            yield ObjectStorage(f"http://127.0.0.1:{port}", process)
        finally:
            process.kill()


@contextmanager
def found_by_clients(storage: ObjectStorage) -> Iterator[None]:
    """Lets this process, and those that it starts, find the server."""
    with mock.patch.dict(os.environ, storage.environment):
        yield
