"""The loads of `bench.vllm_peers`: arrivals of both classes, the same for every system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.common.workload import CHAT_SMALL, PAPER_BE, Arrival, closed_loop, open_loop, poisson_arrivals

_FIRST_TOKEN_ID, _LAST_TOKEN_ID = 1_000, 30_000


@dataclass(frozen=True, slots=True)
class Load:
    """Arrivals per second of both classes, on the machine of reference, and best-effort requests at time 0."""

    rt_per_s: float
    be_per_s: float = 0.0
    backlog: int = 0


LOADS = {
    "rt alone": Load(0.8),
    "backlog": Load(0.8, backlog=150),
    "0.8+0.4": Load(0.8, 0.4),
    "1.2+0.55": Load(1.2, 0.55),
}


@dataclass(frozen=True, slots=True)
class Query:
    """A request to come."""

    arrival_s: float
    is_rt: bool
    prompt: tuple[int, ...]
    num_output: int


def draw(load: Load, scale: float, duration_s: float, seed: int) -> list[Query]:
    """Return the arrivals of a load on this machine, in order; the same for every system."""
    rng = np.random.default_rng(seed)
    rt = open_loop(poisson_arrivals(load.rt_per_s * scale, duration_s, rng), CHAT_SMALL, rng)
    be = closed_loop(load.backlog, PAPER_BE, rng)
    be += open_loop(poisson_arrivals(load.be_per_s * scale, duration_s, rng), PAPER_BE, rng)
    return as_queries(rt, be, rng)


def as_queries(rt: Sequence[Arrival], be: Sequence[Arrival], rng: np.random.Generator) -> list[Query]:
    """Give each arrival a prompt of its own."""
    both = [(arrival, True) for arrival in rt] + [(arrival, False) for arrival in be]
    both.sort(key=lambda pair: pair[0].arrival_s)
    return [
        Query(
            arrival.arrival_s,
            is_rt,
            tuple(rng.integers(_FIRST_TOKEN_ID, _LAST_TOKEN_ID, arrival.num_prompt).tolist()),
            arrival.num_output,
        )
        for arrival, is_rt in both
    ]
