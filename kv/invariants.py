"""The invariants of the cache, which hold between any two calls of the manager.

The checks derive every count that is kept for speed again, from the rows' chains of ends and the fill of each end.
"""

from __future__ import annotations

import numpy as np

from kv.block import (
    BASE,
    EVICTS_BY_CLASS,
    FILL,
    FIRST_FREE,
    GROWS,
    HEAD,
    HELD,
    IS_CACHED,
    IS_SHARED,
    LAST,
    NONE,
    NUM_CACHED,
    PARENT,
    PIN,
    ROOM,
    SETTLED,
    SIDE,
    TAIL,
    TAILS_FROM_RIGHT,
    WRITTEN,
    Indices,
)
from kv.checkpoint import HostPool
from kv.pool import Pool
from kv.table import SlotTable
from kv.types import KVConfig, Layout

Chains = dict[int, list[tuple[int, int, int]]]  # by open row, from its last end backwards: end, and positions [a, b)


def check_invariants(config: KVConfig, pool: Pool, table: SlotTable, host: HostPool) -> None:
    """Assert every invariant of the cache. It costs O(slots)."""
    _check_rows(pool)
    _check_lenders(pool)
    chains = _chains(pool)
    fill = _derived_fill(config, pool, chains)
    _check_fronts(config, fill)
    _check_columns(config, pool, fill)
    _check_counts(config, pool, fill)
    _check_slots(config, pool, table, chains)
    host.check_invariants()
    assert host.rows().isdisjoint(pool.closed_rows), "a closed row has copies on the host"


def _chains(pool: Pool) -> Chains:
    """Return the ends of the rows of requests and of the cached rows."""
    previous, fills = pool.previous.tolist(), pool.ends[FILL].tolist()
    chains: Chains = {}
    for row, (side, end, stop) in enumerate(pool.rows[[SIDE, LAST, HELD]].T.tolist()):
        if side == NONE:
            continue
        chain = chains[row] = []
        while end != NONE:
            chain.append((end, stop - fills[end], stop))
            stop, end = stop - fills[end], previous[end]
    return chains


def _check_rows(pool: Pool) -> None:
    """Each row is either open or in `closed_rows`. A row has ends exactly where it owns positions."""
    assert sorted(pool.closed_rows) == np.flatnonzero(pool.rows[SIDE] == NONE).tolist(), (
        "closed_rows are not the closed rows"
    )
    assert not pool.losses, "the index was not told of a loss"
    assert np.all(pool.rows[WRITTEN] <= pool.held), "a position not held counts as written"
    for row, (held, last, base, side) in enumerate(pool.rows[[HELD, LAST, BASE, SIDE]].T.tolist()):
        assert held == 0 or side != NONE, f"closed row {row} holds positions"
        assert (last == NONE) == (held == base), f"row {row}: {held} positions, {base} borrowed, and last end {last}"


def _check_lenders(pool: Pool) -> None:
    """A row borrows positions that its parent holds, and some that the parent owns. PIN is the most borrowed."""
    held, sides, bases, parents, is_cached = pool.rows[[HELD, SIDE, BASE, PARENT, IS_CACHED]].tolist()
    pins = [0] * pool.num_rows
    for row, (base, parent) in enumerate(zip(bases, parents, strict=True)):
        assert (parent == NONE) == (base == 0), f"row {row} borrows {base} positions from {parent}"
        if parent != NONE:
            assert sides[parent] != NONE, f"row {row} borrows from closed row {parent}"
            assert bases[parent] < base <= held[parent], f"row {row} borrows from the wrong row {parent}"
            pins[parent] = max(pins[parent], base)
    assert pool.rows[PIN].tolist() == pins, "the borrowed part of a row has drifted"
    cached = [row for row, flag in enumerate(is_cached) if flag]
    assert pool.num_cached == len(cached) == int(pool.numbers[NUM_CACHED]), "the number of cached rows has drifted"
    for row in cached:
        assert sides[row] != NONE, f"closed row {row} is cached"
        assert held[row] > bases[row], f"cached row {row} owns nothing"


def _derived_fill(config: KVConfig, pool: Pool, chains: Chains) -> Indices:
    """Return [ends]: the slots at each end, from the chains. At most one row holds an end, and it has a slot there."""
    fill = [0] * (2 * config.num_blocks)
    sides, bases = pool.rows[[SIDE, BASE]].tolist()
    for row, chain in chains.items():
        for end, start, stop in chain:
            assert 0 <= start < stop, f"row {row}: positions {start} to {stop} at end {end}"
            assert end // config.num_blocks == sides[row], f"row {row} holds end {end} of the other side"
            assert fill[end] == 0, f"two rows hold end {end}"
            fill[end] = stop - start
        first = chain[-1][1] if chain else pool.held.item(row)
        assert first == bases[row], f"row {row}: positions up to {first} are at no end"
    return np.array(fill, np.intp)


def _check_fronts(config: KVConfig, fill: Indices) -> None:
    """head_fill + tail_fill <= block_size. Without sharing, one of the two is 0."""
    heads, tails = fill.reshape(2, -1)
    assert np.all(heads + tails <= config.block_size), "a block is overfull"
    if config.layout is not Layout.TWO_ENDED:
        assert not np.any((heads > 0) & (tails > 0)), "a block is shared"


def _check_columns(config: KVConfig, pool: Pool, fill: Indices) -> None:
    """FILL and ROOM agree with the chains. A row grows in no block but its last."""
    assert np.array_equal(pool.ends[FILL], fill), "fill has drifted from the chains"
    grows = pool.ends[GROWS].astype(bool)
    last = pool.rows[LAST, pool.rows[SIDE] != NONE].tolist()
    assert set(grows.nonzero()[0].tolist()) <= set(last), "a row grows outside its last block"

    beside, beside_grows = (
        np.concatenate((each[config.num_blocks :], each[: config.num_blocks])) for each in (fill, grows)
    )
    has_room = (fill == 0) & (beside > 0) & (beside < config.block_size) & (config.layout is Layout.TWO_ENDED)
    rank = np.where(has_room, config.block_size - beside + np.where(beside_grows, 0, SETTLED), 0)
    assert np.array_equal(pool.ends[ROOM], rank), "the rooms have drifted from the fill"
    assert pool.numbers[IS_SHARED] == (config.layout is Layout.TWO_ENDED)
    assert pool.numbers[TAILS_FROM_RIGHT] == (config.layout is not Layout.WHOLE_BLOCK)
    assert pool.numbers[EVICTS_BY_CLASS] == config.evicts_by_class


def _check_counts(config: KVConfig, pool: Pool, fill: Indices) -> None:
    """free + head + tail slots = all slots. The counts of blocks agree with the chains."""
    heads, tails = fill.reshape(2, -1)
    num_free_slots = int((config.block_size - heads - tails).sum())
    assert num_free_slots + int((pool.held - pool.rows[BASE]).sum()) == config.num_slots, "slots are lost"
    free = np.flatnonzero(heads + tails == 0)
    assert pool.num_free_blocks == len(free), "the number of free blocks has drifted"
    for side, fills in ((HEAD, heads), (TAIL, tails)):
        assert pool.num_held_blocks(side) == np.count_nonzero(fills), "the number of held blocks has drifted"
    first = pool.numbers[FIRST_FREE:]
    assert not np.any(free < first[HEAD]), "a free block lies before the first from the low end"
    assert not np.any(config.num_blocks - 1 - free < first[TAIL]), (
        "a free block lies before the first from the high end"
    )


def _check_slots(config: KVConfig, pool: Pool, table: SlotTable, chains: Chains) -> None:
    """Every slot in the table lies at an end of its row, without a gap. No slot has two owners."""
    size = config.block_size
    seen: set[int] = set()
    bases, parents, sides = pool.rows[[BASE, PARENT, SIDE]].tolist()
    for row, chain in chains.items():
        slots = table.slots[row, : pool.held[row]].tolist()
        is_from_right = sides[row] == TAIL and config.layout is not Layout.WHOLE_BLOCK
        for end, start, stop in chain:
            first, step = end % config.num_blocks * size, 1
            if is_from_right:
                first, step = first + size - 1, -1
            expected = list(range(first, first + step * (stop - start), step))
            assert slots[start:stop] == expected, f"row {row}: wrong slots at end {end}"
            assert seen.isdisjoint(expected), f"row {row}: a slot has two owners"
            seen.update(expected)
        base, parent = bases[row], parents[row]
        assert slots[:base] == table.slots[parent, :base].tolist(), f"row {row}: wrong slots borrowed of {parent}"
