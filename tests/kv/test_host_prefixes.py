"""Evicted segments go to the host, within its part, and what a step reads there stays."""

from __future__ import annotations

import numpy as np
import pytest

from kv.host_prefixes import HostPrefixes, names_of
from kv.manager import KVCacheManager
from kv.prefixes import Prefix, token_bytes
from kv.types import KVConfig, Side

SIZE = 4
TOKENS = list(range(12))  # three segments


def make_cache(num_host_prefix_slots: int = 40) -> KVCacheManager:
    return KVCacheManager(
        KVConfig(8, SIZE, max_seq_len=32, num_host_slots=5, num_host_prefix_slots=num_host_prefix_slots)
    )


def leave(kv: KVCacheManager, tokens: list[int], side: Side = Side.HEAD, salt: str = "") -> None:
    """Compute `tokens` in a row that is over then, and evict it."""
    row = kv.open(side)
    assert kv.grow(row, len(tokens))
    kv.begin_step()
    kv.leave_cached(row, Prefix(tokens, salt), len(tokens))
    kv.evict_all()


def test_an_evicted_segment_is_copied_to_its_own_part_of_the_host() -> None:
    kv = make_cache()
    leave(kv, TOKENS)
    copies = kv.take_prefix_copies()
    assert sorted(copies.device_slots.tolist()) == list(range(12))
    assert sorted(copies.host_slots.tolist()) == list(range(5, 17))
    assert not len(kv.take_prefix_copies())


def test_the_host_has_all_but_the_last_token() -> None:
    kv = make_cache()
    leave(kv, TOKENS)
    assert kv.num_on_host(Prefix(TOKENS), 0) == 11
    assert kv.num_on_host(Prefix([*TOKENS, 7]), 4) == 8
    assert kv.num_on_host(Prefix([*TOKENS[:6], 99, 99, 99]), 0) == 4


@pytest.mark.parametrize(("side", "salt"), [(Side.TAIL, ""), (Side.HEAD, "other")])
def test_best_effort_and_other_salts_leave_nothing_to_find(side: Side, salt: str) -> None:
    kv = make_cache()
    leave(kv, TOKENS, side, salt)
    assert kv.num_on_host(Prefix(TOKENS), 0) == 0


def test_a_beginning_outlives_what_follows_it() -> None:
    kv = make_cache(num_host_prefix_slots=2 * SIZE)
    leave(kv, TOKENS)
    assert kv.num_on_host(Prefix(TOKENS), 0) == 8
    assert len(kv.take_prefix_copies()) == 8


def test_a_segment_that_a_step_reads_is_not_dropped_in_it() -> None:
    host = HostPrefixes(0, SIZE, SIZE)
    prefix, other = Prefix(TOKENS[:5]), Prefix(TOKENS[5:10])
    names = [names_of("", each.data, SIZE) for each in (prefix, other)]
    device_slots = [np.arange(SIZE, dtype=np.int32)]
    host.save(names[0], device_slots)
    host.take_copies()
    host.begin_step()
    host.take(prefix, 0, 4)
    host.save(names[1], device_slots)
    assert (host.num_found(prefix, 0), host.num_found(other, 0)) == (4, 0)
    host.begin_step()
    host.save(names[1], device_slots)
    assert (host.num_found(prefix, 0), host.num_found(other, 0)) == (0, 4)
    host.check_invariants()


def test_a_restored_prefix_follows_what_the_row_borrows() -> None:
    kv = make_cache()
    leave(kv, TOKENS)
    kv.take_prefix_copies()
    lender = kv.open(Side.TAIL)
    assert kv.grow(lender, 4)
    kv.begin_step()
    kv.lend(lender, Prefix(TOKENS[:4]), 4)
    row, prefix = kv.open(Side.HEAD), Prefix([*TOKENS, 7])
    assert kv.borrow(row, prefix) == 4
    copies = kv.restore_prefix(row, prefix, kv.num_on_host(prefix, 4))
    assert copies.device_slots.tolist() == kv.slot_table[row, 4:12].tolist()
    kv.check_invariants()


def test_the_names_of_segments_depend_on_salt_and_on_all_tokens_before() -> None:
    names = [names_of(salt, token_bytes(tokens), 2) for salt, tokens in (("", [1, 2, 3, 4]), ("", [9, 2, 3, 4]))]
    assert names[0] == names_of("", token_bytes([1, 2, 3, 4, 5]), 2)
    assert not set(names[0]) & {*names[1], *names_of("a", token_bytes([1, 2, 3, 4]), 2)}
