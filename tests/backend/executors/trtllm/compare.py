"""Compare one workload on the simulator and on the fake TensorRT-LLM, under the same policy and the same step times.

    python -m tests.backend.executors.trtllm.compare --seed 0 --seed 1 --horizon-s 60 \
        --out bench/results/trtllm_compare.json

Prints one JSON object per path and seed: RT attainment (both SLOs met) and BE tokens per second; `--out` keeps them.
The simulator runs in whole blocks, as TensorRT-LLM does. Against KV manager V2 it has a host pool. Against V1 it has
none, because V1 recomputes. Nothing is measured here: all times are virtual.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from backend.core.clock import VirtualClock
from backend.core.numbers import positive, whole
from backend.core.request import PriorityClass, Request, RequestId, SamplingParams, Slo
from backend.engine.engine import Engine, Submit
from backend.engine.scheduler import make_scheduler
from backend.executors.sim import SimExecutor, SimSettings
from backend.executors.trtllm.settings import TrtllmSettings
from backend.policy.settings import SchedulerSettings
from backend.policy.state.latency_model import LatencyModel
from bench.common.command import UsageError, as_command
from bench.common.provenance import provenance
from tests.backend.executors.trtllm.driver import Transcript, make_rig
from tests.backend.executors.trtllm.fake_executor import make_executor

COEFFICIENTS = (8e-3, 60e-6, 20e-9, 2e-9, 1e-6)  # seconds per unit; see backend.policy.state.latency_model
BLOCK_SIZE = 32
NUM_BLOCKS = 400
NUM_HOST_BLOCKS = 2000
MAX_TOKENS_PER_STEP = 2048
MAX_SEQS = 128
TTFT_SLO_S, TPOT_SLO_S = 0.4, 0.1
NUM_BE_PER_S = 20  # best-effort requests in the backlog for each second: about twice as many as one second serves


@dataclass(frozen=True)
class Score:
    """What a path achieved until the horizon."""

    rt_attainment: float
    be_tokens_per_s: float


def workload(seed: int, horizon_s: float, rt_per_s: float = 4.0) -> list[Request]:
    """Return a backlog of best-effort requests that outlasts the horizon, and Poisson real-time ones; new objects at
    each call."""
    draw = random.Random(seed)
    num_be = round(NUM_BE_PER_S * horizon_s)
    requests = [
        _request(f"be-{index}", PriorityClass.BEST_EFFORT, draw.randint(128, 1024), draw.randint(32, 256), 0.0)
        for index in range(num_be)
    ]
    arrival_s = 0.0
    while (arrival_s := arrival_s + draw.expovariate(rt_per_s)) < horizon_s:
        num_prompt = min(2000, int(draw.lognormvariate(5.0, 0.8)) + 1)
        name = f"rt-{len(requests) - num_be}"
        requests.append(_request(name, PriorityClass.REAL_TIME, num_prompt, draw.randint(8, 128), arrival_s))
    return requests


def run_sim(seed: int, horizon_s: float, keeps_kv: bool) -> Score:
    """Serve the workload on the production engine with the simulator, in whole blocks, with a host pool or without."""
    clock = VirtualClock()
    settings = SimSettings(
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        num_host_slots=NUM_HOST_BLOCKS * BLOCK_SIZE if keeps_kv else 0,
        max_seq_len=4096,
        max_tokens_per_step=MAX_TOKENS_PER_STEP,
        max_seqs_per_step=MAX_SEQS,
        fills_from_right=False,
        coefficients=COEFFICIENTS,
    )
    executor = SimExecutor(settings, clock)
    transcript = Transcript(clock)
    engine = Engine(make_scheduler(scheduler_settings(), executor.capacity()), executor, clock, transcript.emit)
    requests = workload(seed, horizon_s)
    events = sorted(requests, key=lambda request: request.arrival_s)
    while clock.now_s() < horizon_s:
        while events and events[0].arrival_s <= clock.now_s():
            engine.post(Submit(events.pop(0)))
        if not engine.step():
            clock.advance_to(events[0].arrival_s if events else horizon_s)
    return score(requests, transcript, horizon_s)


def run_fake(seed: int, horizon_s: float, manager: str, has_overlap: bool) -> Score:
    """Serve the workload through the adapter, on a fake TensorRT-LLM."""
    clock = VirtualClock()
    executor = make_executor(
        manager,
        clock=clock,
        step_time_s=LatencyModel((*COEFFICIENTS, 0.0)).predict_s,
        num_blocks=NUM_BLOCKS,
        num_host_blocks=NUM_HOST_BLOCKS,
        tokens_per_block=BLOCK_SIZE,
        max_active=MAX_SEQS,
        max_num_tokens=MAX_TOKENS_PER_STEP,
        has_overlap=has_overlap,
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        settings = TrtllmSettings("/model", reserved_rt_seqs=32)
        rig = make_rig(monkeypatch, executor, clock, scheduler=scheduler_settings(), settings=settings)
        requests = workload(seed, horizon_s)
        transcript = rig.play(requests, until_s=horizon_s)
    assert executor.error is None
    assert rig.engine.honours_plans
    return score(requests, transcript, horizon_s)


def scheduler_settings() -> SchedulerSettings:
    """Both paths get the same settings."""
    return SchedulerSettings(latency_coefficients=(*COEFFICIENTS, 0.0))


def score(requests: Sequence[Request], transcript: Transcript, horizon_s: float) -> Score:
    """Count RT requests that came early enough to end before the horizon, and BE tokens up to it."""
    rt = [request for request in requests if request.is_rt and request.arrival_s < horizon_s - 15.0]
    if not rt:
        raise UsageError(f"--horizon-s {horizon_s:g} is too short: no real-time request comes 15 s before its end")
    met = sum(_meets_slos(request, transcript.token_times_s.get(request.request_id, [])) for request in rt)
    be_times_s = [transcript.token_times_s.get(request.request_id, []) for request in requests if not request.is_rt]
    assert not all(be_times_s), "the backlog was over too soon: the paths were not compared"
    num_be_tokens = sum(sum(time_s <= horizon_s for time_s in times_s) for times_s in be_times_s)
    return Score(met / len(rt), num_be_tokens / horizon_s)


def _meets_slos(request: Request, times_s: Sequence[float]) -> bool:
    assert request.slo is not None
    if len(times_s) < request.sampling.max_tokens or times_s[0] - request.arrival_s > request.slo.ttft_slo_s:
        return False
    return times_s[-1] - times_s[0] <= request.slo.tpot_slo_s * (len(times_s) - 1)


def _request(name: str, cls: PriorityClass, num_prompt: int, max_tokens: int, arrival_s: float) -> Request:
    return Request(
        request_id=RequestId(name),
        priority_class=cls,
        prompt_token_ids=tuple(range(100, 100 + num_prompt)),
        sampling=SamplingParams(max_tokens=max_tokens),
        arrival_s=arrival_s,
        slo=Slo(TTFT_SLO_S, TPOT_SLO_S) if cls is PriorityClass.REAL_TIME else None,
    )


@as_command
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.backend.executors.trtllm.compare", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--seed", type=whole(0), action="append", required=True, help="seed of the workload; repeatable"
    )
    parser.add_argument("--horizon-s", type=positive, default=60.0, help="virtual seconds to serve (default 60)")
    parser.add_argument("--out", type=Path, help="result file to write")
    arguments = parser.parse_args()
    results = []
    for seed in arguments.seed:
        for manager in ("v1", "v2"):
            rows = {f"sim for {manager}": run_sim(seed, arguments.horizon_s, keeps_kv=manager == "v2")}
            for has_overlap in (False, True):
                name = f"{manager}{' overlap' if has_overlap else ''}"
                rows[name] = run_fake(seed, arguments.horizon_s, manager, has_overlap)
            for path, row in rows.items():
                results.append({"seed": seed, "path": path, **asdict(row)})
                print(json.dumps(results[-1]), flush=True)
    if arguments.out:
        document = {"provenance": provenance(), "horizon_s": arguments.horizon_s, "results": results}
        arguments.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
