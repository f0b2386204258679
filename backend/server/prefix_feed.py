"""Tells workers which prefixes the cache holds, so that a router in front of many engines finds them.

    WatchPrefixes ──► Prefixes 0: all of it ──► Prefixes 1, 2, …: what came and went ──► it does not read: nothing
                          ▲                                                                       │
                          └────────────────────── it has read what was sent ◄─────────────────────┘

Nothing is noted while nobody watches. For one who does not read, everything once and `_MAX_BEHIND_BYTES` wait at most.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from backend.server.connection import Connection
from backend.wire.protocol import Prefixes, Removed, Stored
from kv.manager import KVCacheManager
from kv.prefix_log import PrefixEvent
from kv.prefix_log import Stored as StoredEvent

logger = logging.getLogger(__name__)

_MAX_BEHIND_BYTES = 1_000_000  # 14,000 blocks of 16 tokens


@dataclass(slots=True, eq=False)
class _Watcher:
    """Number of the next message (None: it is to be told everything first), and how many bytes may wait by then."""

    next_number: int | None = None
    max_behind: int = 0

    def begin(self, connection: Connection, everything: Sequence[PrefixEvent]) -> None:
        """Tell everything, however much that is."""
        self.next_number = 0
        self.send(connection, everything)
        self.max_behind = connection.num_unsent_bytes + _MAX_BEHIND_BYTES

    def send(self, connection: Connection, events: Sequence[PrefixEvent]) -> None:
        assert self.next_number is not None, "a worker gets all contents before changes"
        connection.send(Prefixes(self.next_number, list(map(_on_wire, events))))
        self.next_number += 1


class PrefixFeed:
    """`watch` and `drop` may be called from any thread, `start` and `flush` from the engine's only."""

    def __init__(self) -> None:
        self._watchers: dict[Connection, _Watcher] = {}
        self._lock = threading.Lock()  # guards the above
        self._kv: KVCacheManager | None = None
        self._is_watching = False

    def start(self, kv: KVCacheManager) -> None:
        """Tell of `kv`, which is this thread's."""
        self._kv = kv
        self.flush()

    def watch(self, connection: Connection) -> None:
        """Let the next `flush` tell `connection` everything, and each later one the news."""
        with self._lock:
            self._watchers[connection] = _Watcher()

    def drop(self, connection: Connection) -> None:
        """Forget a connection that is gone."""
        with self._lock:
            self._watchers.pop(connection, None)

    def flush(self) -> None:
        """Send what came and went since the last call; never waits. An error in it ends the telling, and no request."""
        if self._kv is None or not (self._watchers or self._is_watching):
            return
        try:
            self._flush(self._kv)
        except Exception as error:
            logger.error("prefixes are told no more: %s", error, exc_info=error)
            with self._lock:
                self._watchers.clear()

    def _flush(self, kv: KVCacheManager) -> None:
        with self._lock:
            watchers = dict(self._watchers)
        events = kv.take_prefix_events()
        self._is_watching = bool(watchers)
        for connection, watcher in watchers.items():
            if watcher.next_number is not None and connection.num_unsent_bytes > watcher.max_behind:
                watcher.next_number = None
            elif watcher.next_number is not None and events:
                watcher.send(connection, events)
        new = [c for c, watcher in watchers.items() if watcher.next_number is None and not c.num_unsent_bytes]
        if new:
            everything = kv.watch_prefixes()
            for connection in new:
                watchers[connection].begin(connection, everything)
        if not watchers:
            kv.unwatch_prefixes()


def _on_wire(event: PrefixEvent) -> Stored | Removed:
    if isinstance(event, StoredEvent):
        return Stored(*event)
    return Removed(*event)
