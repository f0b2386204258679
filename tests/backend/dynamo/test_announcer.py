"""A router hears what an engine's cache holds, and that it is gone; with a real engine, and message by message."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.dynamo.announcer import Announcer
from backend.policy.settings import SchedulerSettings
from backend.wire.protocol import Prefixes, Removed, Stored
from kv.prefixes import token_bytes
from tests.backend.serving import WAIT_S, ask, linked, make_file, running

TOKENS = token_bytes(range(8))


class Router:
    """What a publisher's router knows: tokens and salt by block, and the order in which blocks went."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[int | None, tuple[int, ...], str | None]] = {}
        self.gone: list[int] = []

    def publish_batch(self, events: Sequence[dict[str, Any]]) -> None:
        for event in events:
            if event["type"] == "stored":
                self._store(event)
            else:
                for block in event["block_hashes"]:
                    del self.known[block]
                    self.gone.append(block)

    def _store(self, event: dict[str, Any]) -> None:
        sizes, parent = event["num_block_tokens"], event["parent_hash"]
        blocks = np.array(event["token_ids"]).reshape(len(sizes), -1).tolist()
        assert {len(block) for block in blocks} == set(sizes)
        for block, token_ids in zip(event["block_hashes"], blocks, strict=True):
            assert block not in self.known
            self.known[block] = parent, tuple(token_ids), event["cache_salt"]
            parent = block


class Told:
    """An announcer of blocks of four tokens; `asked`: how often it asked to be told everything again."""

    def __init__(self) -> None:
        self.router, self.asked = Router(), 0
        self.announcer = Announcer(self.router, 4, self._ask)

    def _ask(self) -> None:
        self.asked += 1

    def take(self, number: int, *events: Stored | Removed) -> None:
        self.announcer.take(Prefixes(number, list(events)))


@pytest.fixture
def told() -> Told:
    return Told()


def test_what_came_and_went_is_passed_on(told: Told) -> None:
    told.take(0, Stored(None, [1, 2], TOKENS))
    told.take(1, Stored(2, [3], TOKENS[:16], "salt"), Removed([2]))
    assert told.router.known == {1: (None, (0, 1, 2, 3), None), 3: (2, (0, 1, 2, 3), "salt")}


def test_everything_again_replaces_what_was_known(told: Told) -> None:
    told.take(0, Stored(None, [1, 2], TOKENS))
    told.take(0, Stored(None, [1], TOKENS[:16]))
    assert list(told.router.known) == [1]
    assert told.router.gone == [2, 1]


def test_an_engine_that_goes_takes_all_with_it_last_first(told: Told) -> None:
    told.take(0, Stored(None, [1, 2], TOKENS))
    told.take(1, Stored(2, [3], TOKENS[:16]))
    told.announcer.take(None)
    told.announcer.take(None)
    assert (told.router.known, told.router.gone) == ({}, [3, 2, 1])


def test_after_a_missing_message_nothing_is_believed_until_everything_is_told(told: Told) -> None:
    told.take(0, Stored(None, [1], TOKENS[:16]))
    told.take(2, Stored(1, [2], TOKENS[:16]))
    told.take(3, Stored(2, [3], TOKENS[:16]))
    assert (told.router.known, told.asked) == ({}, 1)
    told.take(0, Stored(None, [1], TOKENS[:16]))
    assert list(told.router.known) == [1]


def test_a_router_knows_what_an_engine_holds_until_the_engine_goes_and_another_comes(tmp_path: Path) -> None:
    file = make_file(tmp_path, scheduler=SchedulerSettings(prefix_caching=True))
    router, heard = Router(), queue.SimpleQueue[bool]()
    with running(file), linked(file) as link:
        announcer = Announcer(router, 16, link.watch_prefixes_anew)

        def take(message: Prefixes | None) -> None:
            announcer.take(message)
            heard.put(message is not None)

        def wait_until(num_known: int, num_gone: int) -> None:
            while (len(router.known), len(router.gone)) != (num_known, num_gone):
                heard.get(timeout=WAIT_S)

        link.watch_prefixes(take)
        prompt = tuple(range(100, 148))
        assert ask(link, token_ids=prompt, max_tokens=2).end().finish_reason == "length"
        wait_until(3, 0)
        assert ask(link, token_ids=prompt, max_tokens=2, cache_salt="mine").end().finish_reason == "length"
        wait_until(6, 0)
        told = {token_ids for _, token_ids, _ in router.known.values()}
        assert told == {prompt[:16], prompt[16:32], prompt[32:]}
        assert {salt for _, _, salt in router.known.values()} == {None, "mine"}
        link._socket.shutdown(2)  # type: ignore[union-attr]  # as when the engine dies
        wait_until(6, 6)  # here it lives, and tells the new connection
        assert {salt for _, _, salt in router.known.values()} == {None, "mine"}
