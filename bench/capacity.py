"""Measures the speed of the served model on this machine, and scales the load of `bench.demo` to it.

`measure` takes some seconds on a server of its own. `suited` is the arithmetic, which gives the same picture on every
machine. Real-time requests take a sixth of the machine's time. The backlog is too long to finish within the run.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from bench.common.score import RequestRecord, Slos
from bench.common.workload import Arrival
from bench.live.load import BrosTarget, Mix, drive
from bench.live.server import ServerError, running_server
from bench.serve import Setup

CHAT_PROMPT, CHAT_OUTPUT = 160, 64  # tokens of the mean real-time request (`workload.CHAT_SMALL`)
DOCUMENT_PROMPT, DOCUMENT_OUTPUT = 768, 80  # and of the mean document (`workload.PAPER_BE`)
NUM_DECODES = 16  # in the batch that is measured: a batch in which decodes are cheap, and objectives still met

_REAL_TIME_SHARE = 1 / 6  # of the machine's time
_BACKLOG_RUNS = 2.0  # the backlog takes this number of runs: chat requests behind it get nothing in the first
_MAX_RATE, _MAX_BACKLOG = 20.0, 4000  # what one load generator sends in time
_FULL_PROMPTS_TOKENS_PER_S = 1000.0  # a slower machine gets shorter prompts, down to the fraction below
_MIN_PROMPT_SCALE = 1 / 8
_TTFT_PROMPTS = 9.0  # prefills of the mean prompt in the TTFT objective: one of a long prompt (3 of the mean), thrice
_TPOT_STEPS = 3.0  # decode steps in the TPOT objective: room for prefills in between
_PREFILL_TOKENS, _DECODE_TOKENS = 256, 32
_SHORT_PROMPT, _TRIES = 8, 3
_PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """Alone on the machine: prompt tokens per second, and a decode step's time with 1 and with NUM_DECODES requests."""

    prefill_tokens_per_s: float
    decode_s: float
    batch_decode_s: float

    def request_s(self, num_prompt: float, num_output: int) -> float:
        """Return what a request takes of the machine's time, where it decodes in a batch."""
        return num_prompt / self.prefill_tokens_per_s + num_output * self.batch_decode_s / NUM_DECODES


def suited(capacity: Capacity, setup: Setup) -> Setup:
    """Return `setup` with rate, backlog, prompt lengths and objectives that suit the machine."""
    scale = min(1.0, max(_MIN_PROMPT_SCALE, capacity.prefill_tokens_per_s / _FULL_PROMPTS_TOKENS_PER_S))
    chat_s = capacity.request_s(CHAT_PROMPT * scale, CHAT_OUTPUT)
    document_s = capacity.request_s(DOCUMENT_PROMPT * scale, DOCUMENT_OUTPUT)
    backlog = _BACKLOG_RUNS * (setup.duration_s + setup.drain_s) / document_s
    ttft_slo_s = _TTFT_PROMPTS * CHAT_PROMPT * scale / capacity.prefill_tokens_per_s
    return replace(
        setup,
        rt_rate=min(_MAX_RATE, round_down(_REAL_TIME_SHARE / chat_s)),
        be_backlog=min(_MAX_BACKLOG, math.ceil(backlog)),
        prompt_scale=scale,
        ttft_slo_s=round_up(ttft_slo_s),
        tpot_slo_s=round_up(_TPOT_STEPS * capacity.batch_decode_s),
    )


def round_up(value: float) -> float:
    """Return the smallest of …, 0.1, 0.2, 0.5, 1, 2, 5, … that is not below `value` (> 0)."""
    power = math.floor(math.log10(value))
    steps = (float(f"{digit}e{power}") for digit in (1, 2, 5, 10))
    return next(step for step in steps if step >= value * (1 - 1e-9))


def round_down(value: float) -> float:
    """Return `value` (> 0) cut to two digits."""
    power = math.floor(math.log10(value)) - 1
    return float(f"{math.floor(value / 10**power + 1e-9)}e{power}")


def measure(flags: Sequence[str]) -> Capacity:
    """Serve with `flags` and measure."""
    with running_server([*flags, "--policy", "fcfs"]) as address:
        return measure_at(f"grpc://{address.grpc_url}")


def measure_at(url: str) -> Capacity:
    """Measure an idle server; the first requests warm it up."""
    asyncio.run(_answers(url, 2, _PREFILL_TOKENS, _SHORT_PROMPT))
    prefills = [asyncio.run(_answers(url, 1, _PREFILL_TOKENS, 1))[0] for _ in range(_TRIES)]
    alone = [asyncio.run(_answers(url, 1, _SHORT_PROMPT, _DECODE_TOKENS))[0] for _ in range(_TRIES)]
    batch = asyncio.run(_answers(url, NUM_DECODES, _SHORT_PROMPT, _DECODE_TOKENS))
    return capacity_of(prefills, alone, batch)


def capacity_of(
    prefills: Sequence[RequestRecord], alone: Sequence[RequestRecord], batch: Sequence[RequestRecord]
) -> Capacity:
    """Return the capacity: the best of the tries alone, the median of the batch."""
    prefill_s = min(record.token_times_s[0] - record.arrival_s for record in prefills)
    return Capacity(prefills[0].num_prompt / prefill_s, min(map(_gap_s, alone)), median(map(_gap_s, batch)))


def _gap_s(record: RequestRecord) -> float:
    """Return the mean time between tokens; those of two steps may arrive together."""
    times_s = record.token_times_s
    return (times_s[-1] - times_s[0]) / (len(times_s) - 1)


async def _answers(url: str, count: int, num_prompt: int, num_output: int) -> list[RequestRecord]:
    """Send `count` real-time requests at once; their tokens come one by one. Raises ServerError where one fails."""
    arrivals = [Arrival(0.0, num_prompt, num_output)] * count
    target = BrosTarget(url)
    try:
        mix = Mix(arrivals, [], Slos(_PATIENCE_S, _PATIENCE_S), 0.0, _PATIENCE_S, seed=0)
        records = await drive(target, mix)
    finally:
        await target.close()
    for record in records:
        if not record.is_finished:
            raise ServerError(f"measuring {url}: no answer within {_PATIENCE_S:g} s: {record.error or 'cancelled'}")
    return records
