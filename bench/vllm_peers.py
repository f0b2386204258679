"""vLLM under three schedulers, interleaved on one engine: its own `fcfs`, its own `priority`, and ours.

    .venv-vllm/bin/python -m bench.vllm_peers --out bench/results/vllm-peers.json     # a quiet machine, 25 minutes
    .venv-vllm/bin/python -m bench.vllm_peers --rounds 1 --duration-s 5 --loads backlog   # does it run?

All runs share one process, engine and model, with 96 KV blocks of 128 tokens, 512 tokens a step and prefix caching. The
cache is emptied between runs. The rates are for a machine that ends one best-effort request a second. The first run
measures this machine, and the rates are multiplied by the result. The objectives are twice the 90th percentiles of
real-time alone under `fcfs`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from backend.core.clock import MonotonicClock
from backend.core.numbers import positive, whole
from backend.core.request import PriorityClass, Request, RequestId, SamplingParams, Slo
from backend.executors.foreign.source import Ticket
from backend.executors.vllm.loading import load_engine
from backend.executors.vllm.settings import VllmSettings
from backend.policy.settings import SchedulerSettings
from bench.common.command import as_command
from bench.common.provenance import provenance
from bench.common.score import RequestRecord, Slos, Window, score_be, score_rt
from bench.common.workload import PAPER_BE, closed_loop
from bench.vllm_loads import LOADS, Query, as_queries, draw
from bench.vllm_overhead import measure_overhead

SYSTEMS = ("fcfs", "priority", "bros")
BLOCK_SIZE, NUM_BLOCKS, MAX_TOKENS, MAX_SEQS = 128, 96, 512, 128
SLO_RATIO, SLO_PERCENTILE = 2.0, "p90"
CALIBRATION_BE, CALIBRATION_S = 40, 75.0
DRAIN_S = 15.0  # real-time requests that have not ended by then have missed their objectives


@as_command
def main() -> int:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.vllm_peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="Hugging Face directory or GGUF file (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--dtype", default="auto", help="arithmetic (default: %(default)s)")
    parser.add_argument("--rounds", type=whole(), default=2, help="turns of each system (default: %(default)s)")
    parser.add_argument("--duration-s", type=positive, default=40.0, help="of one run (default: %(default)s)")
    parser.add_argument("--loads", nargs="+", choices=list(LOADS), default=list(LOADS), help="(default: all)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the arrivals (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="also write JSON here")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    document = measure(options)
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps({"slos": document["slos"], "scale": document["scale"], "overhead": document["overhead"]}))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Load, calibrate, let the systems take turns under each load; return the result."""
    about = provenance()
    world = World(options.model, {} if options.dtype == "auto" else {"dtype": options.dtype})
    scale = world.calibrate(options.seed, min(CALIBRATION_S, 4 * options.duration_s))
    slos = world.objectives(scale, options.seed, options.duration_s)
    _tell(f"{scale:.2f} BE requests/s; SLO {slos.ttft_slo_s:.2f} s, {1e3 * slos.tpot_slo_s:.0f} ms")
    runs = []
    for turn in range(options.rounds):
        for index, name in enumerate(options.loads):
            first = (turn + index) % len(SYSTEMS)
            for system in SYSTEMS[first:] + SYSTEMS[:first]:
                arrivals = draw(LOADS[name], scale, options.duration_s, options.seed + turn)
                run = world.run(system, arrivals, slos, options.duration_s)
                runs.append({"load": name, "system": system, "round": turn, **run})
                _tell(f"{name} under {system}: {_words(run)}")
    # At the end, since our latency model learns from these steps too, and some have no model.
    overhead = measure_overhead(world)
    _tell("; ".join(f"schedule() {where}: {_added(overhead[where])}" for where in ("alone", "beside_model")))
    world.close()
    return {
        "provenance": about,
        "engine": world.facts,
        "config": {
            "rounds": options.rounds,
            "duration_s": options.duration_s,
            "seed": options.seed,
            "loads": {
                name: [LOADS[name].rt_per_s, LOADS[name].be_per_s, LOADS[name].backlog] for name in options.loads
            },
            "max_tokens_per_step": MAX_TOKENS,
        },
        "scale": scale,
        "slos": {"ttft_s": slos.ttft_slo_s, "tpot_s": slos.tpot_slo_s},
        "overhead": overhead,
        "runs": runs,
    }


class World:
    """One vLLM under any of the schedulers."""

    def __init__(self, model: str | None, engine_args: dict[str, Any]) -> None:
        arguments = {
            "block_size": BLOCK_SIZE,
            "num_gpu_blocks_override": NUM_BLOCKS + 1,  # block 0 is vLLM's own
            "max_num_batched_tokens": MAX_TOKENS,
            "max_num_seqs": MAX_SEQS,
            "max_model_len": 4096,
            **engine_args,
        }
        self.clock = MonotonicClock()
        settings = VllmSettings(model, arguments)
        loaded = load_engine(settings, SchedulerSettings(), set(), lambda _: None, self.clock, lambda *_: None)
        self.facts = loaded.facts
        self.runtime = cast(Any, loaded.engine._runtime)
        self.llm = self.runtime.llm
        self.scheduler = self.llm.engine_core.engine_core.scheduler
        self.steering = self.scheduler.steering  # one for all runs: a server learns over its life
        self._num_sent = 0

    def close(self) -> None:
        self.runtime.close()

    def use(self, system: str) -> None:
        """Put a scheduler in; nobody may be inside."""
        from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue

        from backend.executors.vllm.waiting import WaitingRequests

        scheduler, is_ours = self.scheduler, system == "bros"
        assert not scheduler.requests, "requests are left from the run before"
        scheduler.policy = SchedulingPolicy.PRIORITY if system == "priority" else SchedulingPolicy.FCFS
        scheduler.steering = self.steering if is_ours else None
        scheduler.waiting = WaitingRequests() if is_ours else create_request_queue(scheduler.policy)
        scheduler.kv_holding_waiting = create_request_queue(scheduler.policy)
        scheduler.scheduler_reserve_full_isl = not is_ours  # vLLM's own default
        self.llm.reset_prefix_cache()

    def run(self, system: str, queries: Sequence[Query], slos: Slos, duration_s: float) -> dict[str, Any]:
        """Play `queries`; return the scores of those that arrived within the duration."""
        self.use(system)
        before = self._counters()
        records = self.play(queries, slos, lambda now_s, num_rt: now_s > duration_s and num_rt == 0, duration_s)
        window = Window(0.0, duration_s)
        after = self._counters()
        return {
            **score_rt(records, slos, window),
            **score_be(records, window),
            "num_preemptions": after[0] - before[0] if system == "bros" else None,
            "recomputed_tokens": after[1] - before[1] if system == "bros" else None,
            "given_back_tokens": after[2] - before[2] if system == "bros" else None,
            "honours_plans": self.steering.honours_plans,
        }

    def calibrate(self, seed: int, limit_s: float) -> float:
        """Return how many best-effort requests this machine ends a second, alone and first come, first served."""
        self.use("fcfs")
        rng = np.random.default_rng(seed)
        queries = as_queries([], closed_loop(CALIBRATION_BE, PAPER_BE, rng), rng)
        records = self.play(queries, Slos(1.0, 1.0), lambda now_s, _: now_s > limit_s, limit_s)
        num_wanted = sum(query.num_output for query in queries)
        times_s = sorted(time_s for record in records for time_s in record.token_times_s)
        times_s = times_s[: 3 * num_wanted // 4]  # the last ones come from ever smaller batches
        assert times_s, f"no token within {limit_s} s"
        return len(times_s) / (num_wanted / len(queries)) / times_s[-1]

    def objectives(self, scale: float, seed: int, duration_s: float) -> Slos:
        """Return the objectives: a multiple of what real-time gets alone."""
        queries = draw(LOADS["rt alone"], scale, duration_s, seed)
        score = self.run("fcfs", queries, Slos(1e9, 1e9), duration_s)
        assert score["num_rt"] > score["num_rt_unfinished"], f"no real-time request ended within {duration_s} s"
        return Slos(SLO_RATIO * score["ttft_s"][SLO_PERCENTILE], SLO_RATIO * score["tpot_s"][SLO_PERCENTILE])

    def _counters(self) -> tuple[int, int, int]:
        stats = self.steering.stats()
        return sum(stats.total_preemptions.values()), stats.total_recomputed_tokens, stats.total_copied_in_tokens

    def play(
        self, queries: Sequence[Query], slos: Slos, is_over: Callable[[float, int], bool], duration_s: float
    ) -> list[RequestRecord]:
        """Send each query when it is due, and step until `is_over(now, open real-time requests)`, the end of the work,
        or the end of the time for draining. Abort the rest; return a record of each."""
        start_s, coming = self.clock.now_s(), deque(queries)
        records: list[RequestRecord] = []
        open_: dict[str, RequestRecord] = {}
        while True:
            now_s = self.clock.now_s() - start_s
            while coming and coming[0].arrival_s <= now_s:
                record = self._send(coming.popleft(), slos, start_s)
                records.append(record)
                open_[record.request_id] = record
            num_rt = sum(record.is_rt for record in open_.values())
            if is_over(now_s, num_rt) or now_s > duration_s + DRAIN_S or not (open_ or coming):
                break
            if open_:
                self._step(open_, start_s)
            else:
                time.sleep(min(0.01, max(0.0, coming[0].arrival_s - now_s)))
        for request_id in list(open_):
            self.runtime.abort(RequestId(request_id))
        if self.scheduler.steering is not None:
            self.steering.come_to_rest()
        return records

    def _send(self, query: Query, slos: Slos, start_s: float) -> RequestRecord:
        self._num_sent += 1
        request = Request(
            RequestId(f"q{self._num_sent}"),
            PriorityClass.REAL_TIME if query.is_rt else PriorityClass.BEST_EFFORT,
            query.prompt,
            SamplingParams(max_tokens=query.num_output, ignore_eos=True),
            start_s + query.arrival_s,
            Slo(slos.ttft_slo_s, slos.tpot_slo_s) if query.is_rt else None,
            arrival_index=self._num_sent,
        )
        self.runtime.submit(Ticket(request))
        return RequestRecord(request.request_id, query.is_rt, query.arrival_s, len(query.prompt), query.num_output)

    def _step(self, open_: dict[str, RequestRecord], start_s: float) -> None:
        outputs = self.runtime.step()
        now_s = self.clock.now_s() - start_s
        for output in outputs:
            record = open_[output.request_id]
            record.token_times_s += [now_s] * len(output.outputs[0].token_ids)
            if output.finished:
                record.finished_s = now_s
                del open_[output.request_id]
                self.runtime.forget(RequestId(output.request_id))


def _added(times: dict[str, float]) -> str:
    return f"{times['vllm_us']:.0f} us of vLLM's, {times['bros_us']:.0f} us of ours"


def _words(run: dict[str, Any]) -> str:
    attained = run["rt_attainment"]["both"]
    share = "no RT" if attained is None else f"{100 * attained:.0f} % of {run['num_rt']} RT in their SLO"
    return f"{share}, {run['be_requests_per_s']:.2f} BE requests/s, {run['be_tokens_per_s']:.0f} BE tokens/s"


def _tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
