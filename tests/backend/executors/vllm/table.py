"""The schedules of the torch engine's exactness tests, which import torch; here they are data."""

from __future__ import annotations

from tests.backend.executors.torch_engine.schedules import Schedule

SCHEDULES = {
    "alone": Schedule(),
    "all at once": Schedule(batch=16),
    "chunks of 1": Schedule(chunk=1, batch=16),
    "chunks of 7": Schedule(chunk=7, batch=5),
    "chunks of 64": Schedule(chunk=64, batch=16),
    "preempted": Schedule(chunk=64, batch=16, preempt_every=12),
    **{f"fuzz {seed}": Schedule(batch=16, is_random=True, seed=seed) for seed in range(3)},
    **{
        f"fuzz {seed}, preempted": Schedule(batch=16, preempt_every=8, is_random=True, seed=seed)
        for seed in range(3, 7)
    },
}
