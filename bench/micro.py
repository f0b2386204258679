"""What a scheduling decision costs: plan + commit + complete, over running × waiting requests.

    python -m bench.micro [--json] [--policy bros] [--running 64 256 1024] [--waiting 0 1000 10000 100000]
    python -m bench.micro --out bench/results/micro.json       the table of docs/algorithm.md, with its provenance
    python -m bench.micro --prefix-caching      with the prefix cache, which finds nothing here

The load is stationary: half of the running requests are real-time, the rest and the queue are best-effort (with
`--waiting-class rt` all are real-time). A request decodes about 100 tokens after a prompt of 200; one that ends is
followed by another of its class. No executor: the result of a step is made up, its time passes on a virtual clock.
Nothing is drawn at random. Times are of this machine: run it alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from backend.core.executor import ExecutorCapacity
from backend.core.numbers import whole
from backend.core.plan import StepBatch, StepResult
from backend.core.request import PriorityClass, Request, RequestId, SamplingParams, Slo
from backend.engine.scheduler import Scheduler, make_scheduler
from backend.executors.sim import features_of, linear_time_s
from backend.policy.settings import POLICY_NAMES, SchedulerSettings
from bench.common.command import as_command
from bench.common.provenance import provenance

_PROMPT = tuple(range(200))
_OUTPUT = 100  # tokens, on average
_TPOT_SLO_S = 0.05
_STEP_TIME = (10e-3, 10e-6, 10e-9, 1e-9, 5e-6)  # c0..c4 (backend.policy.state.latency_model): no deadline binds


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of plan + commit + complete at a load."""

    running: int
    waiting: int
    median_us: float
    p99_us: float


@as_command
def main(argv: list[str] | None = None) -> int:
    """Print the table, or one JSON line per load."""
    args, source = _parse(argv), provenance()  # of the code that runs, whatever is committed meanwhile
    costs = []
    if not args.json:
        print(f"{'running':>8} {'waiting':>8} {'median µs':>10} {'p99 µs':>10}")
    for running in args.running:
        for waiting in args.waiting:
            load = Load(running, waiting, args.policy, PriorityClass(args.waiting_class), args.prefix_caching)
            cost = measure(load, args.steps)
            costs.append(cost)
            if args.json:
                print(json.dumps(asdict(cost)), flush=True)
            else:
                print(f"{running:8d} {waiting:8d} {cost.median_us:10.0f} {cost.p99_us:10.0f}", flush=True)
    if args.out is not None:
        about = {"policy": args.policy, "waiting_class": args.waiting_class, "num_steps": args.steps, "seed": None}
        result = {
            "provenance": source,
            "load": about | {"prefix_caching": args.prefix_caching},
            "costs": [asdict(cost) for cost in costs],
        }
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def table(costs: Sequence[Cost]) -> str:
    """Return a Markdown table of median / p99, running requests by waiting ones."""
    waiting = sorted({cost.waiting for cost in costs})
    lines = [
        "| running | " + " | ".join(f"{num:,} waiting" for num in waiting) + " |",
        "|---" * (len(waiting) + 1) + "|",
    ]
    for running in sorted({cost.running for cost in costs}):
        cells = {cost.waiting: f"{cost.median_us:.0f} / {cost.p99_us:.0f}" for cost in costs if cost.running == running}
        lines.append(f"| {running:,} | " + " | ".join(cells[num] for num in waiting) + " |")
    return "\n".join(lines)


def measure(load: Load, num_steps: int = 400) -> Cost:
    """Return the cost of a step under `load`."""
    for _ in range(3 * _OUTPUT):
        load.step()
    gc.collect()
    gc.freeze()  # as the engine process does once it is warm: the queues are no garbage
    try:
        costs_us = np.array([load.step() for _ in range(num_steps)]) * 1e6
    finally:
        gc.unfreeze()
    return Cost(load.running, load.waiting, float(np.median(costs_us)), float(np.quantile(costs_us, 0.99)))


class Load:
    """A scheduler kept at a number of running and of waiting requests."""

    def __init__(
        self, running: int, waiting: int, policy: str, waiting_class: PriorityClass, has_cache: bool = False
    ) -> None:
        """has_cache: with prefix caching, which finds nothing here."""
        self.running, self.waiting = running, waiting
        capacity = ExecutorCapacity(
            block_size=16,
            num_blocks=running * (len(_PROMPT) + _OUTPUT) // 8,
            num_host_slots=running * 16,
            max_seq_len=1024,
            max_tokens_per_step=running + 2048,
            max_seqs_per_step=running,
        )
        settings = SchedulerSettings(
            policy=policy,
            max_waiting_rt=1_000_000,
            max_waiting_be=1_000_000,
            max_waiting_bytes=100_000_000_000,
            prefix_caching=has_cache,
        )
        self._scheduler: Scheduler = make_scheduler(settings, capacity)
        self._num_added = 0
        self._now_s = 0.0
        for _ in range(running // 2):
            self._add(PriorityClass.REAL_TIME)
        for _ in range(running - running // 2 + waiting):
            self._add(waiting_class)

    def step(self) -> float:
        """Run one step; return the seconds that the scheduler took."""
        scheduler = self._scheduler
        start_s = time.perf_counter()
        plan = scheduler.plan(self._now_s)
        batch = scheduler.commit(plan)
        planned_s = time.perf_counter()
        result = _result(batch)
        self._now_s += result.duration_s
        resumed_s = time.perf_counter()
        output = scheduler.complete(batch, result, self._now_s)
        cost_s = time.perf_counter() - resumed_s + planned_s - start_s
        for request in output.finished:
            self._add(request.priority_class)
        return cost_s

    def _add(self, priority_class: PriorityClass) -> None:
        """Queue a request; outputs are spread so that requests do not end together."""
        is_rt = priority_class is PriorityClass.REAL_TIME
        request = Request(
            request_id=RequestId(str(self._num_added)),
            priority_class=priority_class,
            prompt_token_ids=(1_000 + self._num_added, *_PROMPT[1:]),  # no hits
            sampling=SamplingParams(max_tokens=_OUTPUT // 2 + self._num_added * 37 % _OUTPUT),
            arrival_s=self._now_s,
            slo=Slo(ttft_slo_s=0.4, tpot_slo_s=_TPOT_SLO_S) if is_rt else None,
        )
        self._num_added += 1
        self._scheduler.add(request, self._now_s)


def _result(batch: StepBatch) -> StepResult:
    """Return a token for every sequence that reaches its last known token."""
    pairs = zip(batch.sequences, batch.num_new_tokens, strict=True)
    tokens = [7 if seq.num_computed + num == len(seq.token_ids) else None for seq, num in pairs]
    return StepResult(tokens, linear_time_s(_STEP_TIME, features_of(batch)))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.micro", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--running",
        type=whole(),
        nargs="+",
        default=[64, 256, 1024],
        help="requests in the step (default: 64 256 1024)",
    )
    parser.add_argument(
        "--waiting",
        type=whole(0),
        nargs="+",
        default=[0, 1_000, 10_000, 100_000],
        help="requests queued (default: 0 1000 10000 100000)",
    )
    parser.add_argument("--steps", type=whole(), default=400, help="steps to measure (default: 400)")
    parser.add_argument("--policy", choices=POLICY_NAMES, default="bros", help="default: bros")
    parser.add_argument("--waiting-class", choices=["rt", "be"], default="be", help="of the queued (default: be)")
    parser.add_argument("--prefix-caching", action="store_true", help="with the prefix cache, which finds nothing")
    parser.add_argument("--out", type=Path, help="also write a JSON file with provenance")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
