"""What the index of prefixes gains and loses is noted; `test_manager_state_machine` compares it with a twin."""

from __future__ import annotations

from kv.prefix_log import Removed, Stored, hashes_of
from kv.prefixes import Prefix, token_bytes
from kv.types import Side
from tests.kv.factories import make_manager
from tests.kv.prefix_watcher import PrefixWatcher
from tests.kv.test_prefixes import cached, tokens

HEAD, TAIL = Side.HEAD, Side.TAIL
SEGMENT_BYTES = 16  # of make_manager's blocks of four tokens


def test_nothing_is_noted_before_somebody_watches_and_after_nobody_does() -> None:
    manager = make_manager()
    cached(manager, HEAD, tokens(8))
    assert manager.take_prefix_events() == []
    manager.watch_prefixes()
    manager.unwatch_prefixes()
    cached(manager, HEAD, tokens(8, story=1))
    assert manager.take_prefix_events() == []


def test_a_prefix_is_told_once_and_taken_back_when_it_is_evicted() -> None:
    manager = make_manager()
    assert manager.watch_prefixes() == []
    for _ in range(2):
        cached(manager, TAIL, tokens(9))
    hashes = hashes_of(None, "", token_bytes(tokens(8)), SEGMENT_BYTES)
    assert manager.take_prefix_events() == [Stored(None, hashes, token_bytes(tokens(8)), "")]
    manager.evict_all()
    assert manager.take_prefix_events() == [Removed(hashes)]
    assert manager.take_prefix_events() == []


def test_a_row_that_goes_on_tells_what_is_new_only() -> None:
    manager = make_manager()
    manager.watch_prefixes()
    row, prefix = manager.open(HEAD), Prefix(tokens(12))
    for num_tokens in (4, 12):
        assert manager.grow(row, num_tokens - manager.num_held(row))
        manager.begin_step()
        manager.lend(row, prefix, num_tokens)
    first, second = manager.take_prefix_events()
    assert isinstance(second, Stored)
    assert (second.parent, second.tokens) == (first.hashes[-1], token_bytes(tokens(12)[4:]))


def test_a_late_watcher_is_told_what_an_early_one_knows() -> None:
    manager = make_manager(num_blocks=16)
    early = PrefixWatcher(4, manager.watch_prefixes())
    for story, salt in ((0, ""), (1, ""), (1, "a"), (1, "b")):
        cached(manager, HEAD, tokens(12, story), salt)
    cached(manager, HEAD, [*tokens(8), *tokens(4, 5)])
    early.known_after(manager.take_prefix_events())
    assert PrefixWatcher(4, manager.watch_prefixes()).known == early.known
    assert len(early.known) == 4 * 3 + 1


def test_a_hash_tells_salt_tokens_and_all_before_and_fits_64_bits() -> None:
    alike = token_bytes([5] * 8)
    chains = [hashes_of(None, salt, alike, SEGMENT_BYTES) for salt in ("", "a", "b")]
    chains.append(hashes_of(None, "", token_bytes([6] + [5] * 7), SEGMENT_BYTES))
    distinct = {each for chain in chains for each in chain}
    assert len(distinct) == 8
    assert all(-(2**63) <= each < 2**63 for each in distinct)
    assert hashes_of(None, "", alike, SEGMENT_BYTES) == chains[0]  # another process has the same
    assert chains[0][0] == 2331220522952613644
