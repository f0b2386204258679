"""What our scheduler costs inside vLLM: `schedule()` with many requests decoding, under vLLM's own and under ours.

It is timed twice. *Beside the model* a step of the model runs between two calls, on the same cores, and empties the
processor's caches. *Alone* the model is replaced by one that computes nothing, as where a GPU computes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.common.score import Slos
from bench.common.workload import Arrival
from bench.vllm_loads import as_queries

if TYPE_CHECKING:
    from bench.vllm_peers import World

NUM_REQUESTS, NUM_STEPS, NUM_TURNS = 64, 60, 3
SLOS = Slos(60.0, 60.0)
_TOKEN_ID = 1_000


def measure_overhead(world: World) -> dict[str, Any]:
    """Return medians over all steps of `NUM_TURNS` interleaved turns, in microseconds."""
    with _no_model(world):
        alone = _compare(world)
    return {"num_running": NUM_REQUESTS, "num_turns": NUM_TURNS, "alone": alone, "beside_model": _compare(world)}


def _compare(world: World) -> dict[str, float]:
    times_s: dict[str, list[float]] = {"fcfs": [], "bros": []}
    for _ in range(NUM_TURNS):
        for system, times in times_s.items():
            times += _full_steps(world, system)
    own_us, bros_us = (1e6 * statistics.median(times) for times in times_s.values())
    return {"vllm_us": own_us, "bros_us": bros_us, "added_us": bros_us - own_us}


def _full_steps(world: World, system: str) -> list[float]:
    """Return the duration of `schedule()` in each of the steps that run all requests, in seconds."""
    world.use(system)
    times: list[float] = []
    schedule = world.scheduler.schedule

    def timed(*arguments: Any) -> Any:
        start_s = time.perf_counter()
        output = schedule(*arguments)
        if len(output.num_scheduled_tokens) == NUM_REQUESTS:
            times.append(time.perf_counter() - start_s)
        return output

    arrivals = [Arrival(0.0, 16, 4 * NUM_STEPS)] * NUM_REQUESTS
    queries = as_queries(arrivals[::2], arrivals[1::2], np.random.default_rng(0))
    world.scheduler.schedule = timed
    try:
        world.play(queries, SLOS, lambda *_: len(times) >= NUM_STEPS, 120.0)
    finally:
        del world.scheduler.schedule
    assert times, f"{system}: no step ran all {NUM_REQUESTS} requests"
    return times


@contextmanager
def _no_model(world: World) -> Iterator[None]:
    """Let vLLM's executor answer each step at once with the same token for every request."""
    from vllm.v1.outputs import ModelRunnerOutput

    requests = world.scheduler.requests

    def sample(request: Any) -> list[int]:
        return [_TOKEN_ID] if request.num_computed_tokens >= request.num_tokens else []  # the prompt may go on

    def execute_model(scheduled: Any, non_block: bool = False) -> Any:
        ids = list(scheduled.num_scheduled_tokens)
        done: Future[Any] = Future()
        done.set_result(
            ModelRunnerOutput(
                req_ids=ids,
                req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
                sampled_token_ids=[sample(requests[request_id]) for request_id in ids],
            )
        )
        return done if non_block else done.result()

    executor = world.llm.engine_core.engine_core.model_executor
    executor.execute_model = execute_model
    try:
        yield
    finally:
        del executor.execute_model
