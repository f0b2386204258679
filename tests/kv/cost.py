"""What the decode path costs: `python -m tests.kv.cost`, one JSON line each on stdout (microseconds per call).

`free`: blocks to grow into are free. `shared`: the pool is so full that every new block is shared with a settled tail.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median, quantiles

import numpy as np
from numpy.typing import NDArray

from bench.common.command import as_command
from kv.manager import KVCacheManager
from kv.types import KVConfig, Side

NUM_STEPS = {"free": 300, "shared": 15}  # as long as there is room
MAX_SEQ_LEN = 8_192


@as_command
def main() -> None:
    """Time plan and commit of one decode for all rows, at several sizes."""
    argparse.ArgumentParser(prog="python -m tests.kv.cost", description=__doc__).parse_args()
    for num_blocks in (8_192, 65_536):
        for num_rows in (64, 256, 1_024):
            _report("free", num_blocks, num_rows)
            _report("shared", num_blocks, num_rows)


def _report(pool: str, num_blocks: int, num_rows: int) -> None:
    manager, rows = _running(pool, num_blocks, num_rows)
    calls: dict[str, Callable[[], object]] = {
        "budget": manager.budget,
        "budget_and_try_grow_each_by_one": lambda: manager.budget().try_grow_each_by_one(rows),
        "grow_each_by_one": lambda: manager.grow_each_by_one(rows),
        "begin_step": manager.begin_step,
    }
    times_us: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(NUM_STEPS[pool]):
        for name, call in calls.items():
            start_s = time.perf_counter()
            call()
            times_us[name].append((time.perf_counter() - start_s) * 1e6)
    for name, values in times_us.items():
        cost = {"median_us": round(median(values), 1), "p99_us": round(quantiles(values, n=100)[-1], 1)}
        print(json.dumps({"call": name, "pool": pool, "num_blocks": num_blocks, "num_rows": num_rows, **cost}))


def _running(pool: str, num_blocks: int, num_rows: int) -> tuple[KVCacheManager, NDArray[np.int32]]:
    """Return a manager and its rows about to decode, at all phases of a block. In a `shared` pool all other memory is
    held by tails, of which as many as there are rows were shrunk to one slot."""
    manager = KVCacheManager(KVConfig(num_blocks=num_blocks, max_seq_len=MAX_SEQ_LEN))
    rows = [manager.open(Side.HEAD) for _ in range(num_rows)]
    for index, row in enumerate(rows):
        manager.grow(row, 1 + index % 16)
    if pool == "shared":
        for _ in range(num_rows):
            row = manager.open(Side.TAIL)
            manager.grow(row, 16)
            manager.shrink(row, 1, checkpoint=False)
        while num_free := manager.usage().num_free_blocks:
            manager.grow(manager.open(Side.TAIL), min(num_free * 16, MAX_SEQ_LEN))
    return manager, np.array(rows, np.int32)


if __name__ == "__main__":
    main()
