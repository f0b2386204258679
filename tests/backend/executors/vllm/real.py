"""Runs a real vLLM in its own environment, and prints one JSON object; see `test_real.py`.

Greedy tokens of the same prompts by vLLM's own scheduler, and by ours under every schedule of the torch engine's tests.
The tokens that victims computed again, and the refusals. One process, because loading takes a minute.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from backend.core.clock import MonotonicClock
from backend.core.plan import Reclaim, StepOutput, StepPlan
from backend.core.request import PriorityClass, Request, RequestId, SamplingParams, Slo
from backend.engine.engine import Cancel, Submit
from backend.executors.vllm.loading import load_engine
from backend.executors.vllm.settings import VllmSettings
from backend.executors.vllm.steering import Steering
from backend.policy.packing import side_of
from backend.policy.settings import SchedulerSettings
from backend.policy.view import SchedulerView, StepRecord
from kv.types import Row
from tests.backend.executors.torch_engine.schedules import Schedule, random_prompts
from tests.backend.executors.vllm.table import SCHEDULES

VOCAB_SIZE, NUM_TOKENS, NUM_PROMPTS, MAX_PROMPT = 512, 12, 50, 400
BLOCK_SIZE, NUM_BLOCKS = 32, 120  # 3,808 tokens, of about 4,100 that all prompts would hold at once
NEVER = 2  # an end of text that the tests' requests ignore


class Scheduled:
    """A policy that does what a `Schedule` of the torch engine's tests says."""

    window_tokens = 0

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._random = np.random.default_rng(schedule.seed)
        self._num_steps = 0

    def order(self, request: Request) -> float:
        return request.arrival_s

    def is_late(self, *_: object) -> bool:
        return False

    def observe(self, step: StepRecord) -> None:
        _ = step

    def plan(self, view: SchedulerView, now_s: float) -> StepPlan:
        _ = now_s
        self._num_steps += 1
        schedule, started = self._schedule, view.table.requests_in(view.table.rows())
        waiting = [request for queue in (view.rt_waiting, view.be_waiting) for request in queue.in_time()]
        chunk, batch = schedule.chunk, schedule.batch
        requests = sorted(started, key=lambda request: request.arrival_index) + waiting
        if schedule.is_random:
            chunk, batch = int(self._random.integers(1, 65)), int(self._random.integers(1, batch + 1))
            requests = [requests[index] for index in self._random.permutation(len(requests))]
        takes_some = schedule.preempt_every and self._num_steps % schedule.preempt_every == 0
        chosen = self._chosen(view, requests, chunk, batch // 2 if takes_some else batch)
        victims = [request for request in started if request not in chosen] if takes_some or not chosen else []
        kept = victims if chosen else victims[1:]  # somebody must get further
        reclaims = [Reclaim(request, 0, checkpoint=False) for request in kept]
        return StepPlan(list(chosen), list(chosen.values()), reclaims)

    def _chosen(
        self, view: SchedulerView, requests: Sequence[Request], chunk: int, batch: int
    ) -> Mapping[Request, int]:
        budget, chosen, num_left = view.kv.budget(), {}, view.limits.max_tokens
        for request in requests:
            num_tokens = min(chunk, request.num_uncomputed, num_left)
            row = None if request.row is None else Row(request.row)
            if num_tokens and len(chosen) < max(1, batch) and budget.try_grow(row, side_of(request), num_tokens):
                chosen[request] = num_tokens
                num_left -= num_tokens
        return chosen


class Client:
    """Takes what an engine emits."""

    def __init__(self) -> None:
        self.token_ids: dict[str, list[int]] = {}
        self.log_probs: dict[str, list[object]] = {}
        self.ends: dict[str, str] = {}

    def emit(self, output: StepOutput) -> None:
        for request, token_id, log_prob in output.tokens:
            self.token_ids.setdefault(request.request_id, []).append(token_id)
            self.log_probs.setdefault(request.request_id, []).append(log_prob)
        for request in output.finished:
            assert request.finish_reason is not None
            self.ends[request.request_id] = request.finish_reason.value
        for failed in output.failed:
            self.ends[failed.request.request_id] = str(failed.error)


class World:
    """A loaded vLLM, under its own scheduler or under ours."""

    def __init__(self, model: str, engine_args: dict[str, Any]) -> None:
        self.client = Client()
        self.clock = MonotonicClock()
        settings = SchedulerSettings()
        self.loaded = load_engine(
            VllmSettings(model, engine_args), settings, {NEVER}, lambda output: self.client.emit(output), self.clock
        )
        self.engine = self.loaded.engine
        runtime: Any = self.engine._runtime
        self.llm = runtime.llm
        self.scheduler = self.llm.engine_core.engine_core.scheduler
        self.tickets = runtime.tickets

    def plain(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the tokens by vLLM's own scheduler."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.v1.core.sched.request_queue import create_request_queue

        self.scheduler.steering = None
        self.scheduler.waiting = create_request_queue(self.scheduler.policy)
        params = {"temperature": 0.0, "max_tokens": NUM_TOKENS, "ignore_eos": True, "detokenize": False}
        for index, prompt in enumerate(prompts):
            sampling = SamplingParams(**params, output_kind=RequestOutputKind.FINAL_ONLY)
            self.llm.add_request(str(index), {"prompt_token_ids": list(prompt)}, sampling)
        found: dict[int, list[int]] = {}
        while self.llm.has_unfinished_requests():
            found |= {int(output.request_id): list(output.outputs[0].token_ids) for output in self.llm.step()}
        return [found[index] for index in range(len(prompts))]

    def steer(self, settings: SchedulerSettings, schedule: Schedule | None = None) -> Steering:
        """Put a new steering in, whose books are empty, and forget what the prefix cache has."""
        self.llm.reset_prefix_cache(reset_connector=self.scheduler.connector is not None)
        steering = Steering(self.scheduler, self.tickets, settings, self.clock)
        if schedule is not None:
            steering.pilot.policy = Scheduled(schedule)
        self.scheduler.steering = self.engine._steering = steering
        self.client = Client()
        return steering

    def run(self, requests: Sequence[Request], cancel_after: Mapping[str, int] | None = None) -> dict[str, list[int]]:
        """Serve `requests` to their ends. `cancel_after` has the number of steps after which a request is cancelled."""
        for request in requests:
            self.engine.post(Submit(request))
        num_steps, due = 0, dict(cancel_after or {})
        while self.engine.step() or self.engine._tickets:
            num_steps += 1
            for request_id in [request_id for request_id, step in due.items() if step <= num_steps]:
                del due[request_id]
                self.engine.post(Cancel(RequestId(request_id)))
            if self.engine.honours_plans:
                self.engine._steering.pilot.mirror.check_invariants()
        return self.client.token_ids


def make_requests(prompts: Sequence[Sequence[int]], now_s: float, tag: str = "r") -> list[Request]:
    """Return greedy requests of both classes."""
    sampling = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)
    rt, be = PriorityClass.REAL_TIME, PriorityClass.BEST_EFFORT
    return [
        Request(
            RequestId(f"{tag}{index}"),
            rt if index % 3 == 0 else be,
            tuple(prompt),
            sampling,
            now_s,
            Slo(30.0, 1.0) if index % 3 == 0 else None,
        )
        for index, prompt in enumerate(prompts)
    ]


def under_schedules(world: World, prompts: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, Any]:
    """Return by schedule: which prompts got other tokens than vLLM's own scheduler gives, and what happened."""
    expected, found = world.plain(prompts), {}
    extra = list(random_prompts(5, 100, VOCAB_SIZE, seed=9))
    for name in names:
        steering = world.steer(SchedulerSettings(), SCHEDULES.get(name))
        now_s = world.clock.now_s()
        cancelled = make_requests(extra, now_s, "cancelled")
        tokens = world.run(
            [*make_requests(prompts, now_s), *cancelled], {request.request_id: 3 for request in cancelled}
        )
        stats = steering.stats()
        found[name] = {
            "wrong": [index for index in range(len(prompts)) if tokens.get(f"r{index}") != expected[index]],
            "num_cancelled": sum(end == "cancelled" for end in world.client.ends.values()),
            "honours_plans": steering.honours_plans,
            "num_preempted": sum(stats.total_preemptions.values()),
            "recomputed": stats.total_recomputed_tokens,
            "given_back": stats.total_copied_in_tokens,
            "free_blocks": world.scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
        }
    return {"schedules": found, "num_distinct": len({tuple(tokens) for tokens in expected})}


def seeds(world: World) -> dict[str, Any]:
    """Return what a seed decides: the same twice, another by another, whatever else runs."""
    world.steer(SchedulerSettings())
    now_s = world.clock.now_s()
    drawn = [
        replace(request, sampling=SamplingParams(max_tokens=8, temperature=1.0, seed=seed, ignore_eos=True))
        for request, seed in zip(make_requests([[5, 6, 7]] * 3, now_s, "seed"), (1, 1, 2), strict=True)
    ]
    tokens = world.run([*drawn, *make_requests(list(random_prompts(6, 50, VOCAB_SIZE)), now_s)])
    return {"seeds": [tokens[f"seed{index}"] for index in range(3)], "long_seeds": _long_seeds(world)}


def _long_seeds(world: World) -> list[list[int]]:
    """Return what one seed draws after a prompt of one step, and after one in steps of 64 tokens."""
    drawn = []
    for name in ("alone", "chunks of 64"):
        world.steer(SchedulerSettings(), SCHEDULES[name])
        (request,) = make_requests([range(3, 203)], world.clock.now_s(), "long")
        sampling = SamplingParams(max_tokens=8, temperature=1.0, seed=1, ignore_eos=True)
        drawn += world.run([replace(request, sampling=sampling)]).values()
    return drawn


def log_probs(world: World) -> dict[str, Any]:
    """Return how many log-probabilities came of each of three requests that sample."""
    world.steer(SchedulerSettings())
    sampling = SamplingParams(max_tokens=4, temperature=1.0, ignore_eos=True, wants_log_probs=True)
    requests = make_requests([range(3, 20)] * 3, world.clock.now_s(), "likely")
    world.run([replace(request, sampling=sampling) for request in requests])
    found = world.client.log_probs.values()
    return {"num_log_probs": [sum(log_prob is not None for log_prob in each) for each in found]}


def salts(world: World) -> dict[str, Any]:
    """Return how many tokens of one prompt vLLM had cached, under the salts a, b, none and a again."""
    world.steer(SchedulerSettings())
    num_cached = []
    for index, salt in enumerate(("a", "b", "", "a")):
        (request,) = make_requests([range(3, 103)], world.clock.now_s(), f"salt{index}-")
        request.cache_salt = salt
        world.run([request])
        num_cached.append(request.num_cached)
    return {"cached_by_salt": num_cached}


def fall_back(world: World, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return how requests end when our policy fails in the middle. vLLM schedules by itself from there on."""
    steering = world.steer(SchedulerSettings())
    for request in make_requests(prompts[:12], world.clock.now_s()):
        world.engine.post(Submit(request))
    world.engine.step()
    steering.pilot.policy.plan = lambda *_: 1 / 0  # type: ignore[method-assign, assignment, return-value]  # a bug
    world.run([])
    return {"fall_back": {"ends": sorted(set(world.client.ends.values())), "honours_plans": steering.honours_plans}}


def _transfer_config(*, is_async: bool) -> dict[str, Any]:
    return {
        "kv_connector": "HostConnector",
        "kv_connector_module_path": "tests.backend.executors.vllm.host_connector",
        "kv_connector_extra_config": {"is_async": is_async},
        "kv_role": "kv_both",
    }


def main() -> None:
    """Run all, print the findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--no-prefix-cache", action="store_true")
    parser.add_argument("--num-blocks", type=int, default=NUM_BLOCKS)
    parser.add_argument("--connector", choices=("sync", "async"))
    parser.add_argument("--schedules", nargs="*", default=[*SCHEDULES, "bros"])
    options = parser.parse_args()
    world = World(
        options.model,
        {
            "dtype": "float32",
            "block_size": BLOCK_SIZE,
            "num_gpu_blocks_override": options.num_blocks,
            "max_model_len": 1024,
            "max_num_batched_tokens": 512,
            "max_num_seqs": 64,
            "kv_cache_memory_bytes": 256 << 20,
            "tensor_parallel_size": options.ranks,
            "enable_prefix_caching": not options.no_prefix_cache,
            "kv_transfer_config": options.connector and _transfer_config(is_async=options.connector == "async"),
        },
    )
    prompts = list(random_prompts(NUM_PROMPTS, MAX_PROMPT, VOCAB_SIZE, seed=1))
    found = {"facts": world.loaded.facts, **under_schedules(world, prompts, options.schedules)}
    found |= {**seeds(world), **log_probs(world), **salts(world), **fall_back(world, prompts)}
    world.engine._runtime.close()
    print("\n" + json.dumps(found), flush=True)
