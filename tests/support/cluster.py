"""A cluster of server processes on loopback addresses: copies of groups, by a map in the store."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from support.worlds import OWN_HOST, THINROW, Running, freeze, thinrow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Cluster", "Replica", "running_cluster"]

APPLY_S = 240


def free_port() -> int:
    """A port of this process's own address that nothing listens at."""
    with socket.create_server((OWN_HOST, 0)) as found:
        port: int = found.getsockname()[1]
        return port


@dataclass
class Replica:
    """A server of one copy of one group, which may be down; its address and mirror stay."""

    store: str
    folder: Path
    group: str
    options: tuple[object, ...] = ()
    address: str = field(default_factory=lambda: f"{OWN_HOST}:{free_port()}")
    starts: int = 0
    running: Running | None = None

    def launch(self) -> None:
        """Starts the process, and does not wait for it."""
        assert self.running is None
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"log-{self.starts}"
        self.starts += 1
        command = [
            *THINROW,
            *("serve", "--store", self.store, "--mirror", self.folder / "mirror"),
            *("--group", self.group, "--listen", self.address, "--metrics", "127.0.0.1:0"),
            *self.options,
        ]
        with log.open("wb") as sink:
            process = subprocess.Popen([*map(str, command)], stderr=sink)
        self.running = Running(process, self.address, "", log)

    def ready(self, timeout_s: float = 120) -> Running:
        """Waits until it serves."""
        assert self.running is not None
        self.running.metrics = self.running.wait_for("serving", timeout_s)["metrics"]
        return self.running

    def start(self) -> Running:
        """Starts the process, and waits until it serves."""
        self.launch()
        return self.ready()

    def stop(self) -> int:
        """Ends the process by SIGTERM; returns its exit status."""
        running, self.running = self.running, None
        assert running is not None
        return running.stop()

    def kill(self, *, lose_disk: bool = False) -> None:
        """Ends the process by SIGKILL, and its mirror with it where a whole node is lost."""
        running, self.running = self.running, None
        if running is not None:
            running.process.kill()
            running.process.wait()
        if lose_disk:
            shutil.rmtree(self.folder / "mirror", ignore_errors=True)

    def pause(self) -> None:
        """Stops all threads of the process; its connections stay open."""
        assert self.running is not None
        freeze(self.running.process.pid)

    def resume(self) -> None:
        """Ends a pause."""
        assert self.running is not None
        os.kill(self.running.process.pid, signal.SIGCONT)


@dataclass
class Cluster:
    """Replicas by group; each group has one for each copy."""

    store: str
    folder: Path
    copies: int
    lifetime_s: float
    options: tuple[object, ...]
    groups: dict[str, list[Replica]] = field(default_factory=dict)

    @property
    def replicas(self) -> list[Replica]:
        """All replicas, group by group."""
        return [replica for group in self.groups.values() for replica in group]

    @property
    def addresses(self) -> list[str]:
        """Addresses of all replicas."""
        return [replica.address for replica in self.replicas]

    @property
    def file(self) -> Path:
        """The desired state, as `thinrow cluster` reads it."""
        return self.folder / "cluster.toml"

    def grow(self, groups: int) -> list[Replica]:
        """Adds groups up to this number to the desired state; their replicas are not started."""
        added = []
        for number in range(len(self.groups), groups):
            name = str(number)
            self.groups[name] = [
                Replica(self.store, self.folder / f"{copy}-{name}", name, self.options)
                for copy in range(self.copies)
            ]
            added += self.groups[name]
        self.write()
        return added

    def write(self) -> None:
        """Writes the desired state."""
        lines = [f"lifetime_s = {self.lifetime_s}"]
        for name, replicas in self.groups.items():
            targets = ", ".join(f'"{replica.address}"' for replica in replicas)
            lines += [f'[group."{name}"]', f"targets = [{targets}]"]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def command(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Runs `thinrow cluster …` on the store, whatever its exit status."""
        return thinrow("cluster", *words, "--store", self.store, timeout_s=APPLY_S)

    def apply(self) -> str:
        """Runs `thinrow cluster apply` to its end; returns what it printed."""
        done = self.command("apply", self.file)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def applying(self) -> subprocess.Popen[str]:
        """Starts `thinrow cluster apply`, which the caller waits for or kills."""
        command = [*THINROW, "cluster", "apply", str(self.file), "--store", self.store]
        return subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def start(self, replicas: list[Replica]) -> None:
        """Starts replicas side by side, and waits until they serve."""
        for replica in replicas:
            replica.launch()
        for replica in replicas:
            replica.ready()


@contextmanager
def running_cluster(
    store: str,
    folder: Path,
    *options: object,
    groups: int = 4,
    copies: int = 2,
    lifetime_s: float = 2,
) -> Iterator[Cluster]:
    """A cluster whose servers all serve; its processes are killed at the end.

    Args:
        store: URL of a store that has a generation.
        folder: Folder of mirrors, logs and `cluster.toml`, which need not be there.
        options: Options of every server.
        groups: Number of groups, named "0", "1", ….
        copies: Replicas of each group.
        lifetime_s: Lifetime of the map, which a move of a shard waits for.
    """
    cluster = Cluster(store, folder, copies, lifetime_s, options)
    try:
        replicas = cluster.grow(groups)
        cluster.apply()
        cluster.start(replicas)
        yield cluster
    finally:
        for replica in cluster.replicas:
            replica.kill()
