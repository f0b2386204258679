"""Workers learn the prefix cache's contents: all of it, then each change, and all again after a worker did not read."""

from __future__ import annotations

from typing import cast

import pytest

from backend.server.connection import Connection
from backend.server.prefix_feed import PrefixFeed
from backend.wire.protocol import Prefixes, ToStub
from kv.manager import KVCacheManager
from kv.prefix_log import PrefixEvent, Removed, Stored
from kv.types import Side
from tests.kv.factories import make_manager
from tests.kv.prefix_watcher import PrefixWatcher
from tests.kv.test_prefixes import cached, tokens


class Worker:
    """A connection whose worker keeps the contents it receives."""

    def __init__(self) -> None:
        self.num_unsent_bytes = 0
        self.numbers: list[int] = []
        self.watcher = PrefixWatcher(4, [])

    def send(self, message: ToStub) -> None:
        assert isinstance(message, Prefixes)
        self.numbers.append(message.number)
        events: list[PrefixEvent] = [
            Removed(event.hashes) if not hasattr(event, "tokens") else Stored(*as_tuple(event))
            for event in message.events
        ]
        if message.number == 0:
            self.watcher = PrefixWatcher(4, events)
        else:
            self.watcher.known_after(events)

    @property
    def connection(self) -> Connection:
        return cast(Connection, self)


def as_tuple(event: object) -> tuple[int | None, list[int], bytes, str]:
    return tuple(getattr(event, name) for name in ("parent", "hashes", "tokens", "salt"))  # type: ignore[return-value]


def all_known(kv: KVCacheManager) -> dict[int, int | None]:
    """Return the cache's contents; ends the watching of others."""
    return PrefixWatcher(4, kv.watch_prefixes()).known


@pytest.fixture
def kv() -> KVCacheManager:
    return make_manager(num_blocks=16)


@pytest.fixture
def feed(kv: KVCacheManager) -> PrefixFeed:
    feed = PrefixFeed()
    feed.start(kv)
    return feed


@pytest.fixture
def worker(feed: PrefixFeed) -> Worker:
    worker = Worker()
    feed.watch(worker.connection)
    return worker


def test_who_asks_before_the_cache_is_there_is_told_when_it_is(kv: KVCacheManager) -> None:
    cached(kv, Side.HEAD, tokens(8))
    feed, worker = PrefixFeed(), Worker()
    feed.watch(worker.connection)
    feed.flush()
    assert worker.numbers == []
    feed.start(kv)
    assert (worker.numbers, len(worker.watcher.known)) == ([0], 2)


def test_each_step_with_news_is_one_message(kv: KVCacheManager, feed: PrefixFeed, worker: Worker) -> None:
    feed.flush()
    cached(kv, Side.HEAD, tokens(8))
    cached(kv, Side.TAIL, tokens(8, 1), "salt")
    feed.flush()
    feed.flush()
    kv.evict_all()
    cached(kv, Side.TAIL, tokens(4))
    feed.flush()
    assert worker.numbers == [0, 1, 2]
    assert worker.watcher.known == all_known(kv)


def test_two_workers_know_the_same_whenever_they_came(kv: KVCacheManager, feed: PrefixFeed, worker: Worker) -> None:
    cached(kv, Side.HEAD, tokens(8))
    feed.flush()
    late = Worker()
    cached(kv, Side.HEAD, tokens(8, 1))
    feed.watch(late.connection)
    feed.flush()
    cached(kv, Side.HEAD, tokens(8, 2))
    feed.flush()
    assert (worker.numbers, late.numbers) == ([0, 1, 2], [0, 1])
    assert worker.watcher.known == late.watcher.known == all_known(kv)


def test_who_does_not_read_is_told_nothing_more_and_then_everything(
    kv: KVCacheManager, feed: PrefixFeed, worker: Worker
) -> None:
    feed.flush()
    worker.num_unsent_bytes = 1_000_001
    for story in range(3):
        cached(kv, Side.HEAD, tokens(4, story))
        feed.flush()
    worker.num_unsent_bytes = 1
    feed.flush()
    assert worker.numbers == [0]
    worker.num_unsent_bytes = 0
    kv.evict_all()
    cached(kv, Side.HEAD, tokens(4, 4))
    feed.flush()
    assert worker.numbers == [0, 0]
    assert worker.watcher.known == all_known(kv)


def test_who_asks_again_is_told_everything_again(kv: KVCacheManager, feed: PrefixFeed, worker: Worker) -> None:
    feed.flush()
    cached(kv, Side.HEAD, tokens(4))
    feed.watch(worker.connection)
    feed.flush()
    assert (worker.numbers, len(worker.watcher.known)) == ([0, 0], 1)


def test_nothing_is_noted_once_the_last_has_gone(kv: KVCacheManager, feed: PrefixFeed, worker: Worker) -> None:
    feed.flush()
    feed.drop(worker.connection)
    feed.flush()
    cached(kv, Side.HEAD, tokens(4))
    assert kv.take_prefix_events() == []
    assert worker.numbers == [0]


def test_an_error_ends_the_telling_only(kv: KVCacheManager, feed: PrefixFeed, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Worker):
        def send(self, message: ToStub) -> None:
            raise ValueError(f"too much: {message}")

    feed.watch(Broken().connection)
    feed.flush()
    cached(kv, Side.HEAD, tokens(4))
    feed.flush()
    assert "too much" in caplog.text
    assert kv.take_prefix_events() == []
