"""What our scheduler adds to a step of TensorRT-LLM: view, policy and answer, without TensorRT-LLM's own scheduler.

    python -m tests.backend.executors.trtllm.cost --out bench/results/trtllm_cost.json

Requests decode on a fake TensorRT-LLM, half of them real-time; the time inside its own (fake) scheduler is taken out.
The real one's requests are C++ objects whose attributes cost more to read. Times are of this machine: run it alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.core.clock import VirtualClock
from backend.core.numbers import whole
from backend.core.request import Request
from backend.executors.trtllm.settings import TrtllmSettings
from bench.common.command import as_command
from bench.common.provenance import provenance
from tests.backend.executors.trtllm.driver import make_rig
from tests.backend.executors.trtllm.fake_executor import FakePyExecutor, make_executor
from tests.backend.factories import be, rt

NUM_PROMPT = 200
RESERVED_RT_SEQS = 8


@dataclass(frozen=True)
class Cost:
    """Microseconds that our scheduler took for a step in which `num_active` requests decoded."""

    manager: str
    num_active: int
    num_steps: int
    median_us: float
    p99_us: float


class Stopwatch:
    """Takes the time of each step's scheduling, that of the inner scheduler apart."""

    def __init__(self, executor: FakePyExecutor, num_active: int) -> None:
        self.costs_s: list[float] = []
        self._num_active = num_active
        self._inner_s = 0.0
        self._bros: Any = executor.scheduler
        inner = self._bros._inner
        self._inner_schedule = inner.schedule_request
        inner.schedule_request = self._time_inner
        executor.scheduler = self

    def _time_inner(self, *arguments: Any) -> Any:
        start_s = time.perf_counter()
        output = self._inner_schedule(*arguments)
        self._inner_s += time.perf_counter() - start_s
        return output

    def schedule_request(self, active: Sequence[Any], inflight: set[int]) -> Any:
        self._inner_s = 0.0
        start_s = time.perf_counter()
        output = self._bros.schedule_request(active, inflight)
        cost_s = time.perf_counter() - start_s - self._inner_s
        if len(output.generation_requests) == self._num_active:
            self.costs_s.append(cost_s)
        return output


def measure(manager: str, num_active: int, num_steps: int) -> Cost:
    """Return the cost of `num_steps` steps in which all of `num_active` requests decode."""
    clock = VirtualClock()
    executor = make_executor(
        manager,
        clock=clock,
        step_time_s=lambda _: 0.01,
        num_blocks=num_active * 64,
        max_active=num_active + RESERVED_RT_SEQS,
        max_num_tokens=8192,
    )
    requests: list[Request] = []
    for _ in range(num_active // 2):
        requests.append(be(num_prompt=NUM_PROMPT, max_tokens=num_steps + 200))
        requests.append(rt(num_prompt=NUM_PROMPT, max_tokens=num_steps + 200, ttft_slo_s=60.0, tpot_slo_s=0.1))
    with pytest.MonkeyPatch.context() as monkeypatch:
        rig = make_rig(
            monkeypatch, executor, clock, settings=TrtllmSettings("/model", reserved_rt_seqs=RESERVED_RT_SEQS)
        )
        stopwatch = Stopwatch(executor, num_active)
        gc.collect()
        gc.freeze()  # as the engine process does once it is warm
        try:
            rig.play(requests)
        finally:
            gc.unfreeze()
    assert rig.engine.honours_plans
    costs_us = np.array(stopwatch.costs_s[50 : 50 + num_steps]) * 1e6
    assert len(costs_us) == num_steps, f"only {len(costs_us)} steps had every request in them"
    return Cost(manager, num_active, num_steps, float(np.median(costs_us)), float(np.quantile(costs_us, 0.99)))


@as_command
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.backend.executors.trtllm.cost", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--active", type=whole(), nargs="+", default=[64, 256], help="active requests (default 64 256)")
    parser.add_argument("--steps", type=whole(), default=300, help="steps to measure (default 300)")
    parser.add_argument("--out", type=Path, help="result file to write")
    arguments = parser.parse_args()
    costs = []
    for manager in ("v1", "v2"):
        for num_active in arguments.active:
            costs.append(measure(manager, num_active, arguments.steps))
            print(json.dumps(asdict(costs[-1])), flush=True)
    if arguments.out:
        document = {"provenance": provenance(), "results": [asdict(cost) for cost in costs]}
        arguments.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
