"""The router of one client: which group of servers has a user, by the cluster's map."""

from __future__ import annotations

import random
import threading
import time
import weakref
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from thinrow.client.calls import describe_cluster
from thinrow.client.channel import Channels
from thinrow.client.group_calls import call_each
from thinrow.client.grpc_errors import ShardElsewhereError, UnimplementedError
from thinrow.client.map_claims import confirmed
from thinrow.client.polling import poll, start_polling, weak
from thinrow.client.request_size import RequestSize
from thinrow.client.retries import Retries
from thinrow.core.cluster_map import ServerState
from thinrow.core.user_keys import user_keys
from thinrow.errors import AnswerTooLargeError, ShardMissingError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from thinrow.client.transport import Transport
    from thinrow.core.cluster_map import ClusterMap, Group
    from thinrow.core.ids import IdKind
    from thinrow.core.lookup.batch_lookup import RequestSlice

__all__ = ["Router", "Routing"]

T = TypeVar("T")

DROPPED_S = 5.0
"""Time for which a group stays connected after the map has dropped it, at least."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Numbers of what a client's router did so far."""

    map_version: int
    """Version of the map that it follows; 0 without a cluster."""
    groups: int
    """Groups that it has connections to."""
    map_reads: int
    """Maps that it took up."""
    hedges: int
    """Requests that were repeated at another replica because the first one took long."""
    failovers: int
    """Times that a replica was left because it failed or was silent."""
    elsewhere: int
    """Examples that were requested again because their shard had moved."""


class Router:
    """One group of servers, or the groups of a cluster. Thread-safe.

    The first call discovers which it is. In a cluster a thread polls the replicas of the groups in
    use, for the map and for their generations, three times in each lifetime of the map.

    Args:
        given: The servers that the caller named, or a store in this process.
        chance: Chooses the replica of each group to begin with.
    """

    def __init__(self, given: Transport, chance: random.Random | None = None) -> None:
        self.given = given
        self.config = given.config
        self._chance = chance or random.Random()
        self._map: ClusterMap | None = None
        self._is_known = not isinstance(given, Channels)
        self._groups: dict[Group, Channels] = {}
        self._dropped: list[tuple[float, Channels]] = []
        """Groups of former maps that are still connected, and since when they are."""
        self._heard = self._unconfirmed = 0
        """Versions of which a response spoke, and that a poll did not find."""
        self._map_reads = self._elsewhere = self._ended_hedges = self._ended_failovers = 0
        self._lock = threading.RLock()
        self._discovering = threading.Lock()
        self._poll_now = threading.Event()
        self._poller: threading.Thread | None = None
        if isinstance(given, Channels):
            given.find_elsewhere = weak(self._rediscover)
        weakref.finalize(self, self._poll_now.set)

    @property
    def map_version(self) -> int:
        """Version of the map; 0 without a cluster."""
        return 0 if self._map is None else self._map.version

    @property
    def is_closed(self) -> bool:
        """True once the client was closed."""
        return self.given.closed

    @property
    def poll_pause_s(self) -> float:
        """Pause between two polls: there are three in each lifetime of the map."""
        return 0.0 if self._map is None else self._map.lifetime_s / 3

    @property
    def user_ids(self) -> IdKind:
        """The kind of the users' ids, in a cluster."""
        return "int64" if self._map is None else self._map.user_ids

    @property
    def routing(self) -> Routing:
        """Numbers of what was done so far."""
        with self._lock:
            groups = [*self._groups.values(), *(group for _, group in self._dropped)]
            return Routing(
                self.map_version,
                len(self._groups) or 1,
                self._map_reads,
                self._ended_hedges + sum(group.hedges for group in groups),
                self._ended_failovers + sum(group.failovers for group in groups),
                self._elsewhere,
            )

    def discover(self, deadline_s: float) -> None:
        """Finds out whether the servers belong to a cluster, unless it is known.

        Raises:
            ThinRowError: No server answers.
        """
        if self._is_known:
            return
        with self._discovering:
            if not self._is_known:
                self._read_from_given(deadline_s)
                self._is_known = True

    def route(self, piece: RequestSlice, attempt: int = 0) -> list[tuple[Transport, RequestSlice]]:
        """Returns the group of each part of a batch, and the part, in order of users.

        Args:
            piece: The examples.
            attempt: As in `ClusterMap.groups_of`.

        Raises:
            InputError: A user is no id of the store's kind.
        """
        cluster = self._map
        if cluster is None:
            return [(self.given, piece)]
        piece = piece._replace(map_version=cluster.version)
        pointers = piece.lookup.rows.pointers
        if len(piece.examples) < len(pointers):
            keys = user_keys(piece.pointers, cluster.user_ids)
        else:
            keys = user_keys(pointers, cluster.user_ids)[piece.examples]
        numbers = cluster.groups_of(keys, attempt)
        if not len(numbers):  # an empty batch, too, has a response
            numbers = np.array([self._chance.randrange(len(cluster.groups))])
            parts = [(int(numbers[0]), piece)]
        else:
            order = np.argsort(numbers, kind="stable")
            ends = np.flatnonzero(np.diff(numbers[order])) + 1
            parts = [
                (int(numbers[part[0]]), piece._replace(examples=piece.examples[part]))
                for part in np.split(order, ends)
            ]
        piece.lookup.groups.update(cluster.groups[number].name for number, _ in parts)
        return [(self._group(cluster, number), part) for number, part in parts]

    def has(self, group: Transport) -> bool:
        """Returns True if a group is one of the map, or the only one."""
        with self._lock:
            return group in self._groups.values() if self._map else group is self.given

    def group_of(self, key: int) -> Transport:
        """Returns the group that has a user."""
        cluster = self._map
        if cluster is None:
            return self.given
        return self._group(cluster, int(cluster.groups_of(np.array([key], np.int64))[0]))

    def any_group(self) -> Transport:
        """Returns the group that serves the newest generation known, for calls about no user."""
        cluster = self._map
        if cluster is None:
            return self.given
        with self._lock:
            groups = list(self._groups.values())
        if groups:
            return max(groups, key=lambda group: group.generation)
        return self._group(cluster, self._chance.randrange(len(cluster.groups)))

    def of_each_group(self, call: Callable[[Transport], T]) -> list[T]:
        """Calls each group, as `call_each` does; returns what each returned."""
        cluster = self._map
        if cluster is None:
            return [call(self.given)]

        self.given.check_open()
        # A client keeps no connection to a group whose users it does not request.
        return call_each(cluster.groups, self.config, self._chance, call)

    def heard(self, map_version: int) -> None:
        """Reads the map in the background if a server follows a newer one.

        A version that no server describes, or that others do not confirm, is looked for once.
        """
        if map_version > self.map_version and map_version != self._unconfirmed:
            self._heard = map_version
            self._start_poller()
            self._poll_now.set()

    def find_elsewhere(self, piece: RequestSlice, deadline_s: float) -> None:
        """Requests examples whose shards have moved from the groups that have them now.

        Raises:
            ShardMissingError: None has them within the time for retries.
        """
        retries, size = Retries(self.config), RequestSize(self.config, len(piece.examples) or 1)
        attempt, is_first = 0, True
        with self._lock:
            self._elsewhere += len(piece.examples)
        while True:
            is_newer = piece.map_version < self.map_version or self._read_newer()
            # A newer map is followed at once, but only the first: servers may send users away for
            # ever, each time with a newer map.
            if not (is_newer and is_first) and not retries.pause(
                UnavailableError("A shard is at none of its servers.")
            ):
                raise ShardMissingError(
                    f"No server has the shards of {len(piece.examples)} examples, such as of "
                    f"user {piece.pointers.user(0)}, by version {self.map_version} of the "
                    f"cluster's map; see `thinrow cluster status`."
                )
            is_first = False
            # The same map: another replica may have opened the shard.
            attempt += not is_newer
            away = []
            with self._routed(piece, attempt) as parts:
                for group, part in parts:
                    if attempt:
                        group.current = (group.current + 1) % len(group.targets)
                    rests = self._requested(group, part, deadline_s, size)
                    away += [rest.examples for rest in rests]
            if not away:
                return
            piece = piece._replace(examples=np.concatenate(away), map_version=self.map_version)

    def look_up(self, piece: RequestSlice, deadline_s: float) -> None:
        """Requests the examples of a whole batch, one request after the other."""
        size = RequestSize(self.config, self.config.examples_per_request)
        with self._routed(piece) as parts:
            for group, part in parts:
                for away in self._requested(group, part, deadline_s, size):
                    self.find_elsewhere(away, deadline_s)

    def close(self) -> None:
        """Closes the connections to all groups."""
        with self._lock:
            groups = [*self._groups.values(), *(group for _, group in self._dropped)]
        self._poll_now.set()
        for group in groups:
            group.close()

    @contextmanager
    def _routed(
        self, piece: RequestSlice, attempt: int = 0
    ) -> Iterator[list[tuple[Transport, RequestSlice]]]:
        """Routes a batch; its groups stay open until the block ends, also if the map drops them."""
        parts = self.route(piece, attempt)
        with ExitStack() as uses:
            for group, _ in parts:
                uses.enter_context(group.in_use())
            yield parts

    def _requested(
        self, group: Transport, piece: RequestSlice, deadline_s: float, size: RequestSize
    ) -> Iterator[RequestSlice]:
        """Requests examples from a group; yields those that are elsewhere."""
        rest: RequestSlice | None = piece
        while rest is not None:
            part, later = rest.cut(size.examples)
            try:
                response = part.answered(group.materialize(part, deadline_s))
            except AnswerTooLargeError:
                if len(part.examples) <= 1:
                    raise
                size.rejected(len(part.examples))
                continue
            rest = later
            size.answered(response)
            self.heard(response.response.map_version)
            away = part.elsewhere(response)
            if away is not None:
                yield away

    def _group(self, cluster: ClusterMap, number: int) -> Channels:
        """Returns the channels of a group, which are made when they are first needed."""
        group = cluster.groups[number]
        with self._lock:
            channels = self._groups.get(group)
            if channels is None:
                self.given.check_open()
                first = self._chance.randrange(len(group.targets))
                channels = Channels(group.targets, self.config, first)
                channels.find_elsewhere = weak(self._read_newer)
                # It may be well by now, and the map may have changed.
                channels.on_failure = self._poll_now.set
                self._groups[group] = channels
            return channels

    def _read_from_given(self, deadline_s: float) -> bool:
        """Reads the map from the servers that the caller named; returns True if it is a newer one.

        Raises:
            ThinRowError: None answers.
        """
        given = self.given
        assert isinstance(given, Channels)
        try:
            message = given.call(
                lambda channels: describe_cluster(channels.channel), b"", deadline_s
            )
        except UnimplementedError:
            return False
        except ShardElsewhereError:  # it waits for its map, which another server may have described
            if not self.map_version:
                raise
            return True
        return self._take(ServerState.read(message), given.targets[given.current])

    def _rediscover(self) -> bool:
        """Looks for a map once a server without one lacks a shard; returns True if there is one."""
        return self.map_version > 0 or self._read_newer()

    def _read_newer(self) -> bool:
        """Reads the map from the servers; returns True once one follows a newer one."""
        before = self.map_version
        self.poll(until=lambda: self.map_version > before)
        return self.map_version > before

    def _take(self, state: ServerState, target: str) -> bool:
        """Follows the map of a server if it is newer, and as new as that of another one."""
        if state.version <= self.map_version:
            return False
        known = set(self.given.targets)
        if self._map is not None:
            known.update(_targets(self._map))
        state = confirmed(state, target, known, _targets(state.map()), self.config, self._chance)
        if state.version <= self.map_version:
            return False
        cluster = state.map()
        with self._lock:
            if cluster.version <= self.map_version:
                return False
            self._map, self._map_reads = cluster, self._map_reads + 1
            kept = set(cluster.groups)
            for group in [group for group in self._groups if group not in kept]:
                self._dropped.append((time.monotonic(), self._groups.pop(group)))
        self._start_poller()
        return True

    def poll(self, until: Callable[[], bool] | None = None) -> None:
        """Requests the map, and their generations, from the replicas of the groups in use.

        If none answers, the servers that the caller named are next.

        until: As in `polling.poll`.
        """
        with self._lock:
            groups = list(self._groups.values())
            self._close_dropped()
        if not poll(groups, self._take, until) and isinstance(self.given, Channels):
            poll([self.given], self._take, until)
        if self._heard > self.map_version:
            self._unconfirmed = self._heard
        for group in groups:
            group.prefer_healthy()

    def _close_dropped(self) -> None:
        """Closes groups of former maps that no stream uses any more."""
        now_s = time.monotonic()
        for dropped in list(self._dropped):
            since_s, group = dropped
            if not group.streams and now_s - since_s > DROPPED_S:
                self._dropped.remove(dropped)
                self._ended_hedges += group.hedges
                self._ended_failovers += group.failovers
                group.close()

    def _start_poller(self) -> None:
        with self._lock:
            if self._poller is None and isinstance(self.given, Channels):
                self._poller = start_polling(weakref.ref(self), self._poll_now)


def _targets(cluster: ClusterMap) -> Iterator[str]:
    return (target for group in cluster.groups for target in group.targets)
