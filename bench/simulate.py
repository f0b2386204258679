"""Simulate one scenario: the production engine, scheduler, KV manager and policy on a virtual clock.

    python -m bench.simulate --scenario steady --policy bros --seed 0 --out x.json

Only time is made up: `bench.sim.step_models` says how long each step would take on the GPUs. Scheduling itself takes no
virtual time; the processor time it takes is reported beside it (`scheduler_share`: of the simulated step time).
"""

from __future__ import annotations

import argparse
import bisect
import copy
import dataclasses
import itertools
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backend.core.clock import VirtualClock
from backend.core.errors import BrosError
from backend.core.executor import ExecutorCapacity
from backend.core.plan import StepBatch, StepOutput, StepPlan, StepResult
from backend.core.request import PriorityClass, Request, RequestId, SamplingParams, Slo
from backend.engine.engine import Engine, Submit
from backend.engine.scheduler import Scheduler, make_scheduler
from bench.common.command import as_command
from bench.common.provenance import provenance
from bench.common.score import RequestRecord, Slos, score_be, score_rt
from bench.common.stats import percentiles, quantiles
from bench.common.workload import Arrival
from bench.scenario_flags import FLAGS, NAMES, add_flags, given_fields, setting
from bench.sim.as_if_alone import StepNote, lost, step_note
from bench.sim.disturbance import disturbance
from bench.sim.gpu_executor import END_ID, GpuExecutor
from bench.sim.limit import Load, max_be_tokens, min_steps, min_ttft_misses
from bench.sim.scenario import Scenario
from bench.sim.step_models import Pair

MAX_SEQ_LEN = 16_384
_LIMIT_SUPPLY = 1.3  # the bound may choose among this multiple of the requests that the run started


def simulate(scenario: Scenario) -> dict[str, Any]:
    """Run `scenario`; return its scores, its costs and the limits it is held against, JSON-ready."""
    run = Simulation(scenario)
    run.run()
    return run.result()


def as_if_alone(scenario: Scenario) -> dict[str, Any]:
    """Run `scenario` with and without its best-effort requests; return both results and what real time lost by them."""
    beside, alone = Simulation(scenario), Simulation(scenario.without_be())
    beside.notes = []
    for run in (alone, beside):
        run.run()
    return {
        "alone": alone.result(),
        **beside.result(),
        "lost": lost(alone.rt_records(), beside.rt_records(), beside.notes, scenario.slos, scenario.window),
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Replay:
    """Step times and arrivals that replace those of the scenario: how a measured run is simulated."""

    pair: Pair
    rt: Sequence[Arrival]
    be: Sequence[Arrival]


class Simulation:
    """One run: feeds arrivals to an Engine on a VirtualClock and records what every request gets."""

    def __init__(
        self,
        scenario: Scenario,
        replay: Replay | None = None,
        pair: Pair | None = None,
        rt: Sequence[Arrival] | None = None,
    ) -> None:
        """pair, rt: step times, and real-time arrivals, in place of those of the scenario."""
        self.scenario = scenario
        self.clock = VirtualClock()
        self.records: dict[str, RequestRecord] = {}
        self.step_s: list[float] = []
        self.notes: list[StepNote] | None = None  # a list: note every step
        self.scheduling_s: list[float] = []
        self._emitting_s = 0.0
        self.requests: dict[str, Request] = {}
        self._note_token: dict[Request, Callable[[float], None]] = {}  # a call per token: nothing is looked up twice
        self._be_given: list[Arrival] = []
        pair = pair if replay is None else replay.pair
        machine = scenario.machine if pair is None else dataclasses.replace(scenario.machine, pair=pair)
        self._machine = machine
        capacity = ExecutorCapacity(
            block_size=scenario.block_size,
            num_blocks=machine.kv_tokens // scenario.block_size,
            num_host_slots=machine.kv_tokens if scenario.host_kv_tokens is None else scenario.host_kv_tokens,
            max_seq_len=MAX_SEQ_LEN,
            max_tokens_per_step=scenario.max_tokens_per_step,
            max_seqs_per_step=scenario.max_seqs,
            host_copy_s_per_token=machine.pair.host_copy_s_per_token,
        )
        self.scheduler: Scheduler = make_scheduler(scenario.scheduler_settings, capacity, frozenset({END_ID}))
        disturbed = disturbance(scenario.step_noise, scenario.slowdown, scenario.stall_s, scenario.seed)
        executor = GpuExecutor(machine.pair, capacity, self.clock, disturbed)
        self._engine = Engine(self.scheduler, executor, self.clock, self._emit, self._record)
        self._executor = executor
        rt = rt if replay is None else replay.rt
        self.rt = scenario.rt_arrivals() if rt is None else list(rt)
        self._rt_due = deque(self.rt)
        self._rt_slos = iter(scenario.rt_slos(len(self.rt)))
        self._num_rt_open = len(self.rt)
        self._be_supply = self._make_be_supply(replay)
        self._be_due = deque(self._be_supply if scenario.is_be_timed else ())
        self._horizon_s = 0.0  # end of the step that passed `duration_s`; the counts at that time:
        self._num_be_started = 0
        self._num_be_tokens = 0
        self._num_ahead_tokens = 0.0

    def run(self) -> None:
        """Step through the arrivals, then on until the real-time requests are done or the drain is over."""
        duration_s, drained_s = self.scenario.duration_s, self.scenario.duration_s + self.scenario.drain_s
        for _ in range(self.scenario.be_outstanding or self.scenario.be_backlog):
            self._submit_next_be()
        while self.clock.now_s() < duration_s:
            self._advance(duration_s)
        self._horizon_s = self.clock.now_s()
        best_effort = [request for request in self.requests.values() if not request.is_rt]
        processed = [_num_processed(request) for request in best_effort]
        self._num_be_started = sum(num_tokens > 0 for num_tokens in processed)
        self._num_be_tokens = sum(processed)
        self._num_ahead_tokens = sum(map(_num_ahead, best_effort))
        while self._num_rt_open and self.clock.now_s() < drained_s:
            self._advance(drained_s)

    def judged_by(self, slos: Slos) -> Simulation:
        """Return this finished run as one to be scored by other SLOs: it is one if the policy looks at none."""
        judged = copy.copy(self)
        judged.scenario = dataclasses.replace(self.scenario, ttft_slo_s=slos.ttft_slo_s, tpot_slo_s=slos.tpot_slo_s)
        return judged

    def result(self) -> dict[str, Any]:
        """Score the run."""
        scenario = self.scenario
        window = scenario.window
        stats = self.scheduler.stats()
        scored = [r for r in self.rt_records() if r.arrival_s in window]
        ttft_s = [r.ttft_s for r in scored if r.ttft_s is not None]
        tpot_s = [r.tpot_s for r in scored if r.tpot_s is not None]
        return {
            "scenario": scenario.to_json(),
            **score_rt(self.records.values(), scenario.slos, window),
            **score_be(self.records.values(), window),
            **self._limits(),
            "cdf": {"ttft_s": quantiles(ttft_s), "tpot_s": quantiles(tpot_s)},
            "num_steps": stats.total_steps,
            "simulated_s": self.clock.now_s(),
            "step_s": percentiles(self.step_s),
            "scheduling_s": percentiles(self.scheduling_s),
            "scheduler_share": sum(self.scheduling_s) / max(sum(self.step_s), 1e-9),
            "latency_error_ratio": stats.latency_error_ratio,
            "preemptions": {f"{c.value}_{kind.value}": n for (c, kind), n in stats.total_preemptions.items()},
            "recomputed_tokens": stats.total_recomputed_tokens,
            "copied_out_tokens": stats.total_copied_out_tokens,
            "copied_in_tokens": stats.total_copied_in_tokens,
        }

    def _make_be_supply(self, replay: Replay | None) -> Iterator[Arrival]:
        """Keep what the supply gives out: the limits are computed on the same requests."""
        supply = self.scenario.be_supply() if replay is None else iter(replay.be)
        for arrival in supply:
            self._be_given.append(arrival)
            yield arrival

    def timeline(self) -> dict[str, Any]:
        """Per second of the run: best-effort tokens; per real-time request: arrival and time to first token."""
        seconds = np.arange(0.0, self.scenario.duration_s + 1.0)
        be_times_s = [t for record in self.records.values() if not record.is_rt for t in record.token_times_s]
        ttft = [(r.arrival_s, r.ttft_s) for r in self.rt_records()]
        return {
            "be_tokens": np.histogram(be_times_s, seconds)[0].tolist(),
            "rt": [[round(arrival_s, 3), None if t is None else round(t, 4)] for arrival_s, t in ttft],
        }

    def _limits(self) -> dict[str, Any]:
        """Return the bounds of `bench.sim.limit` until the horizon, and the share of them that the run reached."""
        scenario, horizon_s = self.scenario, self._horizon_s
        misses = min_ttft_misses(self._machine, self.rt, scenario.loosest_slos.ttft_slo_s)
        limits: dict[str, Any] = {
            "min_ttft_misses": misses,
            "rt_attainment_limit": 1.0 - misses / len(self.rt) if self.rt else None,
            "be_processed_tokens_per_s": self._num_be_tokens / horizon_s,
            "be_limit_tokens_per_s": None,
            "be_percent_of_limit": None,
        }
        if not self._num_be_tokens:
            return limits
        num_be = int(_LIMIT_SUPPLY * self._num_be_started) + scenario.max_seqs
        more = max(0, num_be - len(self._be_given))
        load = Load(
            horizon_s=horizon_s,
            served=[served for record in self.rt_records() if (served := _served(record, horizon_s))],
            num_forced_steps=min_steps(self._kept_slos(), scenario.loosest_slos, horizon_s),
            be=[*self._be_given[:num_be], *itertools.islice(self._be_supply, more)],
            max_outstanding=scenario.max_be_outstanding,
            max_ahead_tokens=self._num_ahead_tokens,
        )
        limit = max_be_tokens(self._machine, load)
        if limit is not None:
            limits["be_limit_tokens_per_s"] = limit / horizon_s
            limits["be_percent_of_limit"] = 100.0 * self._num_be_tokens / limit
        return limits

    def rt_records(self) -> list[RequestRecord]:
        return [record for record in self.records.values() if record.is_rt]

    def _kept_slos(self) -> list[Arrival]:
        """What those real-time requests that met both SLOs got within the horizon."""
        slos = self.scenario.slos
        kept = [r for r in self.rt_records() if r.meets_both(slos)]
        return [served for record in kept if (served := _served(record, self._horizon_s))]

    def _advance(self, until_s: float) -> None:
        """Run one step, or let time pass to the next arrival, but not beyond `until_s`."""
        self._submit_due()
        if not self._step():
            next_s = self._next_arrival_s()
            self.clock.advance_to(until_s if next_s is None else min(next_s, until_s))

    def _step(self) -> bool:
        """Run one engine step and note what scheduling cost: all of it but execution and this recorder."""
        executed_s, emitting_s = self._executor.cpu_s, self._emitting_s
        start_s = time.thread_time()
        did_step = self._engine.step()
        elsewhere_s = self._executor.cpu_s - executed_s + self._emitting_s - emitting_s
        self.scheduling_s.append(time.thread_time() - start_s - elsewhere_s)
        return did_step

    def _submit_due(self) -> None:
        now_s = self.clock.now_s()
        while self._rt_due and self._rt_due[0].arrival_s <= now_s:
            self._submit(self._rt_due.popleft(), is_rt=True)
        while self._be_due and self._be_due[0].arrival_s <= now_s:
            self._submit(self._be_due.popleft(), is_rt=False)

    def _next_arrival_s(self) -> float | None:
        return min((due[0].arrival_s for due in (self._rt_due, self._be_due) if due), default=None)

    def _submit_next_be(self) -> None:
        arrival = next(self._be_supply, None)
        if arrival is not None:
            self._submit(arrival, is_rt=False)

    def _submit(self, arrival: Arrival, is_rt: bool) -> None:
        scenario = self.scenario
        arrival_s = arrival.arrival_s if is_rt or scenario.is_be_timed else self.clock.now_s()
        slos = next(self._rt_slos) if is_rt else None
        max_tokens = max(arrival.num_output, scenario.rt_max_tokens) if is_rt else arrival.num_output
        request = Request(
            request_id=RequestId(f"{'rt' if is_rt else 'be'}-{len(self.requests)}"),
            priority_class=PriorityClass.REAL_TIME if is_rt else PriorityClass.BEST_EFFORT,
            prompt_token_ids=(2 + len(self.requests), *[1] * (arrival.num_prompt - 1)),  # begins like no other
            sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=max_tokens == arrival.num_output),
            arrival_s=arrival_s,
            slo=Slo(slos.ttft_slo_s, slos.tpot_slo_s) if slos else None,
            deadline_s=arrival_s + scenario.be_finish_by_s if scenario.be_finish_by_s and not is_rt else None,
        )
        if max_tokens > arrival.num_output:
            self._executor.ends[request.request_id] = arrival.num_output
        self.requests[request.request_id] = request
        record = RequestRecord(request.request_id, is_rt, arrival_s, arrival.num_prompt, arrival.num_output)
        record.slos = slos if scenario.other_slo_share else None  # else a run may be scored by several SLOs
        self.records[request.request_id] = record
        self._note_token[request] = record.token_times_s.append
        self._engine.post(Submit(request))

    def _emit(self, output: StepOutput) -> None:
        start_s = time.thread_time()
        now_s = self.clock.now_s()
        note_token = self._note_token
        for request, _, _ in output.tokens:
            note_token[request](now_s)
        for request in output.finished:
            self._end(request, None)
        for failed in output.failed:
            self._end(failed.request, str(failed.error))
        self._emitting_s += time.thread_time() - start_s

    def _end(self, request: Request, error: str | None) -> None:
        record = self.records[request.request_id]
        record.finished_s, record.error = self.clock.now_s(), error
        self._num_rt_open -= request.is_rt
        if not request.is_rt and self.scenario.be_outstanding:
            self._submit_next_be()

    def _record(self, plan: StepPlan, _batch: StepBatch, result: StepResult, _output: StepOutput) -> None:
        self.step_s.append(result.duration_s)
        if self.notes is not None:
            self.notes.append(step_note(self.clock.now_s(), plan, result))


def _served(record: RequestRecord, horizon_s: float) -> Arrival | None:
    """The part of a request that was served by `horizon_s`; None before its first token."""
    num_tokens = bisect.bisect_right(record.token_times_s, horizon_s)
    return Arrival(record.arrival_s, record.num_prompt, num_tokens) if num_tokens else None


def _num_processed(request: Request) -> int:
    """Tokens of `request` whose K and V were ever computed: a preemption takes nothing from this count."""
    if request.num_output:
        return request.num_prompt + request.num_output - 1
    return request.num_computed


def _num_ahead(request: Request) -> float:
    """Prompt tokens computed, times the part of the output that is still to come (see `bench.sim.limit.Load`)."""
    num_decodes = request.sampling.max_tokens - 1
    done = max(0, request.num_output - 1) / num_decodes if num_decodes else float(request.num_output)
    return min(_num_processed(request), request.num_prompt) - done * request.num_prompt


@as_command
def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.simulate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenario", choices=NAMES, help="take options from bench/scenarios/NAME.json first")
    add_flags(parser, FLAGS, Scenario())
    parser.add_argument(
        "--set",
        type=setting,
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="a setting of the scheduler, as in docs/configuration.md; may be given again",
    )
    parser.add_argument(
        "--as-if-alone",
        action="store_true",
        help="also run without best-effort requests; name the requests that missed their objectives only beside them",
    )
    parser.add_argument("--out", type=Path, help="write the result here; default: standard output")
    options = parser.parse_args()
    try:
        scenario = _scenario(options)
    except (BrosError, OSError, ValueError) as error:
        parser.error(str(error))
    run = as_if_alone if options.as_if_alone else simulate
    result = json.dumps({**run(scenario), "provenance": provenance()}, indent=1)
    if options.out is None:
        print(result)
    else:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(result + "\n")
    return 0


def _scenario(options: argparse.Namespace) -> Scenario:
    base = Scenario.named(options.scenario) if options.scenario else Scenario()
    settings = {**base.settings, **dict(options.set)}
    scenario = dataclasses.replace(base, **given_fields(options), settings=settings)
    assert scenario.scheduler_settings.policy == scenario.policy
    scenario.check()
    return scenario


if __name__ == "__main__":
    sys.exit(main())
