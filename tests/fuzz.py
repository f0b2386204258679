"""Seeded simulated runs with faults and cancels: nothing may be lost, leaked, repeated or overwritten.

    python -m tests.fuzz --runs 10000 --out bench/results/fuzz.json
    python -m tests.fuzz --runs 10000 --host-part --out bench/results/fuzz-host.json    evicted prefixes go to the host
    python -m tests.fuzz --runs 1000 --tiny-pool     many short requests that begin alike, in 48 to 96 KV slots
    python -m tests.fuzz --replay 4711 [--host-part | --tiny-pool]

A run draws a policy, settings, a KV pool that is mostly too small, and requests of both classes. It cancels some
requests at any moment. It lets steps fail, stall and jitter. It checks:

- in every step: each slot attended to holds the value written for it, and tokens come in order;
- in every step: all invariants of the scheduler and the KV manager hold;
- in every step: a request that waits has found the prefix that a new search finds;
- at all times: the engine never stands still with work;
- at the end: each request ended exactly once, and no slot is left over;
- in one run of eight: the same seed gives the same outcome.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from pathlib import Path

from backend.core.clock import VirtualClock
from backend.core.errors import ExecutorError
from backend.core.numbers import whole
from backend.core.plan import StepOutput
from backend.core.request import FinishReason, PriorityClass, Request, RequestId, RequestState, SamplingParams, Slo
from backend.engine.engine import Cancel, Engine, Submit
from backend.engine.scheduler import make_scheduler
from backend.executors.sim import SimExecutor, SimSettings, token_at
from backend.policy.registry import POLICIES
from backend.policy.settings import POLICY_NAMES, SchedulerSettings
from bench.common.command import as_command
from bench.common.provenance import provenance
from bench.common.workers import worker_processes
from kv.prefixes import Prefix

EOS = 2
_MAX_STEPS = 20_000
_NO_BOUND = 1 << 30
_EVICT_EVERY = 5  # steps, in runs that keep prefixes on the host
_REPEAT_EVERY = 8  # runs between two that are made twice and compared


@dataclass(frozen=True, slots=True)
class RunResult:
    """What one run did, or how it failed."""

    seed: int
    policy: str
    num_steps: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    digest: str = ""  # of every token with its time, and every end
    error: str | None = None


class Form(StrEnum):
    """The form of a run. It overrules what the seed draws."""

    DRAWN = "drawn"
    HOST_PART = "host-part"  # it keeps evicted prefixes on the host
    TINY_POOL = "tiny-pool"  # many short requests that begin alike, in 48 to 96 KV slots


class FuzzRun:
    """One run, wholly decided by its form and its seed."""

    def __init__(self, seed: int, policy: str | None = None, form: Form = Form.DRAWN) -> None:
        self.random = random.Random(seed)
        self.clock = VirtualClock()
        self.sim = self._draw_sim(seed)
        self.settings = self._draw_settings(policy)
        if form is Form.HOST_PART:
            self._give_host_part()
        if form is Form.TINY_POOL:
            self._give_tiny_pool()
        self.executor = SimExecutor(self.sim, self.clock, output_length=self._output_length)
        self.scheduler = make_scheduler(self.settings, self.executor.capacity(), frozenset({EOS}))
        self.scheduler.view.be_alike.set_bounds(num_alike=(16, 40, 256)[seed % 3], band=4)  # prompts are short here
        self.engine = Engine(self.scheduler, self.executor, self.clock, self._take)
        self._max_open = 24 if form is Form.TINY_POOL else _NO_BOUND
        draw, num = (
            (self._draw_short, 60) if form is Form.TINY_POOL else (self._draw_request, self.random.randint(3, 12))
        )
        self.requests = [draw(index) for index in range(num)]
        self.output_lengths: dict[str, int] = {
            request.request_id: self.random.randint(1, 40) for request in self.requests if self.random.random() < 0.5
        }
        self.tokens: dict[str, list[int]] = {request.request_id: [] for request in self.requests}
        self.ends: dict[str, FinishReason | None] = {}
        self.counts: Counter[str] = Counter(requests=len(self.requests))
        self.trace = hashlib.sha256()

    def run(self) -> int:
        """Run to the end; return the number of steps. Raises AssertionError where anything is wrong."""
        waiting = self._to_come = list(self.requests)
        is_burst = self.random.random() < 0.5
        cancel_rate = self.random.choice((0.0, 0.02, 0.1))
        for num_steps in range(_MAX_STEPS):
            num_open = len(self.requests) - len(waiting) - len(self.ends)
            while waiting and num_open < self._max_open and (is_burst or self.random.random() < 0.4):
                num_open += 1
                self._submit(waiting.pop(0))
            if self.random.random() < cancel_rate:
                self._cancel(self.random.choice(self.requests))
            if num_steps % _EVICT_EVERY == 0 and self.settings.prefix_host_tokens:
                self.scheduler.kv.evict_all()  # to the host, so that later requests find it there
            did_step = self.engine.step()
            self.scheduler.check_invariants()
            self._check_searches()
            if not did_step:
                assert self.scheduler.is_idle, f"the engine stands still after {num_steps} steps"
                if not waiting:
                    self._check_end()
                    return num_steps
                self.clock.advance(self.random.uniform(0.0, 0.2))
        raise AssertionError(f"requests are left after {_MAX_STEPS} steps")

    def _submit(self, request: Request) -> None:
        request.arrival_s = self.clock.now_s()
        if request.deadline_s is not None:
            request.deadline_s += request.arrival_s
        self.engine.post(Submit(request))

    def _cancel(self, request: Request) -> None:
        is_here = request.request_id not in self.ends and request not in self._to_come
        is_prefilling = is_here and request.num_output == 0 and request.num_computed > 0
        state = "prefilling" if is_prefilling and request.state is RequestState.RUNNING else request.state.value
        self.counts[f"cancels.{state if is_here else 'not_here'}"] += 1
        self.engine.post(Cancel(request.request_id))

    def _check_searches(self) -> None:
        """Assert that a search which goes on where the last one ended finds what a new one finds."""
        kv = self.scheduler.kv
        for request in self.requests:
            if request.state is RequestState.WAITING and request.prefix is not None:
                found, fresh = kv.find(request.prefix), Prefix(request.prompt_token_ids, request.cache_salt)
                assert found == kv.find(fresh), f"{request.request_id}: found {found} tokens"
                assert [*request.prefix.lenders] == [*fresh.lenders], f"{request.request_id}: found other rows"

    def _check_end(self) -> None:
        missing = self.tokens.keys() - self.ends.keys()
        assert not missing, f"no end for {sorted(missing)}"
        self.scheduler.kv.evict_all()
        usage = self.scheduler.kv.usage()
        assert usage.num_free_blocks == self.sim.num_blocks, f"slots leaked: {usage}"
        self.scheduler.kv.begin_step()  # host slots of the last copies are free from here on
        assert not self.scheduler.kv.usage().num_host_slots_used, "host slots leaked"

    def _take(self, output: StepOutput) -> None:
        for request, token_id, _ in output.tokens:
            assert request.request_id not in self.ends, f"{request.request_id}: a token after the end"
            sent = self.tokens[request.request_id]
            expected = self._expected_token(request, len(sent))
            assert token_id == expected, f"{request.request_id}: token {len(sent)} is {token_id}, not {expected}"
            sent.append(token_id)
            self.trace.update(f"{request.request_id} {token_id} {self.clock.now_s()!r}\n".encode())
        for request in output.finished:
            self._end(request, request.finish_reason)
        for failure in output.failed:
            kind = "failed_by_faults" if isinstance(failure.error, ExecutorError) else "refused"
            self.counts[kind] += 1
            self._end(failure.request, FinishReason.ERROR)

    def _end(self, request: Request, reason: FinishReason | None) -> None:
        name = request.request_id
        assert name not in self.ends, f"{name}: ended twice"
        self.ends[name] = reason
        self.trace.update(f"{name} ends: {reason}\n".encode())
        num_sent = len(self.tokens[name])
        if reason is FinishReason.LENGTH:
            assert num_sent == request.sampling.max_tokens, f"{name}: {num_sent} tokens at its full length"
        if reason is FinishReason.STOP:
            assert self.tokens[name][-1] == EOS, f"{name}: stopped without a stop token"

    def _expected_token(self, request: Request, index: int) -> int:
        if index + 1 >= self.output_lengths.get(request.request_id, 1 << 30):
            return EOS
        return token_at(self.sim, request.request_id, request.num_prompt + index)

    def _output_length(self, request: object) -> int:
        return self.output_lengths.get(request.request_id, 1 << 30)  # type: ignore[attr-defined]  # a Sequenced

    # What a seed decides

    def _draw_sim(self, seed: int) -> SimSettings:
        draw = self.random
        block_size = draw.choice((1, 4, 8, 16))
        return SimSettings(
            num_blocks=-(-draw.choice((200, 200, 240, 320)) // block_size),
            block_size=block_size,
            num_host_slots=draw.choice((0, 40, 400, 400)),
            max_seq_len=200,
            max_tokens_per_step=draw.choice((32, 128, 512)),
            max_seqs_per_step=draw.choice((2, 8, 16)),
            host_copy_s_per_token=draw.choice((1e-7, 1e-7, 5e-6, 1e-3)),
            fills_from_right=draw.random() < 0.8,
            noise_ratio=draw.choice((0.0, 0.1)),
            fault_rate=draw.choice((0.0, 0.0, 0.0, 0.02)),
            stall_rate=draw.choice((0.0, 0.02)),
            seed=seed,
            verify=True,
        )

    def _draw_settings(self, policy: str | None) -> SchedulerSettings:
        draw = self.random
        drawn = draw.choice(("bros", "bros", "bros", *POLICY_NAMES))
        return SchedulerSettings(
            policy=policy or drawn,
            max_waiting_be=draw.choice((8, 1000)),
            refuse_hopeless_rt=draw.random() < 0.2,
            sharing=draw.random() < 0.8,
            checkpoints=draw.random() < 0.8,
            prefix_caching=draw.random() < 0.8,
            prefix_host_tokens=(0, 16, 100, 300)[self.sim.seed % 4],
            chunked_prefill=draw.random() < 0.8,
            be_min_share=draw.choice((0.0, 0.02, 0.3)),
            kv_headroom_ratio=draw.choice((0.0, 0.02)),
            paper_base_seqs=4,
        )

    def _give_host_part(self) -> None:
        seed, name = self.sim.seed, self.settings.policy
        self.sim = replace(self.sim, num_host_slots=self.sim.num_host_slots or 100)
        self.settings = replace(
            self.settings,
            policy="bros" if POLICIES[name].has_plain_kv else name,
            prefix_caching=True,
            prefix_host_tokens=(16, 100, 300)[seed % 3],
        )

    def _give_tiny_pool(self) -> None:
        most, block_size = self.random.choice((48, 64, 96)), self.random.choice((4, 16))
        self.sim = replace(
            self.sim, num_blocks=most // block_size, block_size=block_size, num_host_slots=64, max_seq_len=most
        )
        self.settings = replace(
            self.settings,
            policy="bros" if POLICIES[self.settings.policy].has_plain_kv else self.settings.policy,
            max_waiting_be=1000,
            sharing=True,
            prefix_caching=True,
            prefix_host_tokens=(0, 16, 32)[self.sim.seed % 3],
        )

    def _draw_short(self, index: int) -> Request:
        """Draw a request for a pool that it may fill. Its prompt begins like others and goes on like some of them."""
        draw, most = self.random, self.sim.max_seq_len
        num_alike, num_own = draw.choice((0, 4, 16, 32, 40)), draw.choice((1, 4, 8, 16, 17, 32))
        prompt = ((7,) * num_alike + (draw.choice((8, 9, 10)),) * num_own)[: most - 1]
        max_tokens = min(draw.choice((1, 2, 5, 16, 17, 30, 64)), most - len(prompt))
        request = self._draw_request(index)
        return replace(request, prompt_token_ids=prompt, sampling=replace(request.sampling, max_tokens=max_tokens))

    def _draw_request(self, index: int) -> Request:
        draw = self.random
        is_rt = draw.random() < 0.5
        itl_slo_s = draw.choice((None, 0.05))
        return Request(
            request_id=RequestId(f"r{index}"),
            priority_class=PriorityClass.REAL_TIME if is_rt else PriorityClass.BEST_EFFORT,
            prompt_token_ids=self._draw_prompt(index),
            cache_salt=draw.choice(("", "", "other")),
            sampling=SamplingParams(
                max_tokens=draw.choice((draw.randint(1, 30), draw.randint(30, 50))), ignore_eos=False
            ),
            arrival_s=0.0,
            slo=Slo(draw.choice((0.05, 0.4)), draw.choice((0.01, 0.2)), itl_slo_s) if is_rt else None,
            deadline_s=draw.choice((None, draw.uniform(0.1, 5.0))) if not is_rt else None,
        )

    def _draw_prompt(self, index: int) -> tuple[int, ...]:
        """Draw a prompt that begins like others, or is one that came before with more behind it, or like no other."""
        draw = self.random
        num_tokens = draw.choice((1, 15, 16, 17, draw.randint(1, 150), draw.randint(60, 150)))
        prompt = range(3, 3 + num_tokens)
        num_alike = draw.choice((0, 0, 8, 40, 100, num_tokens))
        return tuple(prompt[:num_alike]) + tuple(1_000 * (index + 1) + token_id for token_id in prompt[num_alike:])


def run_one(seed: int, policy: str | None = None, form: Form = Form.DRAWN) -> RunResult:
    """Run one seed, one seed in `_REPEAT_EVERY` twice, and return the outcome."""
    result = _run_once(seed, policy, form)
    if seed % _REPEAT_EVERY == 0 and result.error is None and _run_once(seed, policy, form) != result:
        return replace(result, error="the same seed gave another outcome")
    return result


def _run_once(seed: int, policy: str | None, form: Form) -> RunResult:
    run = FuzzRun(seed, policy, form)
    name = run.settings.policy
    try:
        num_steps = run.run()
    except Exception as error:  # whatever went wrong is this run's result
        return RunResult(seed, name, error=f"{type(error).__name__}: {error}")
    stats = run.scheduler.stats()
    preemptions = {
        f"preemptions.{priority_class.value}_{kind.value}": num
        for (priority_class, kind), num in stats.total_preemptions.items()
    }
    ends = Counter(f"ends.{reason.value}" for reason in run.ends.values() if reason is not None)
    tokens = {"copied_out_tokens": stats.total_copied_out_tokens, "restored_tokens": stats.total_copied_in_tokens}
    prefixes = {
        f"prefix_tokens.{cls.value}_{source.value}": num for (cls, source), num in stats.total_prefix_tokens.items()
    }
    layout = {f"layout.{run.scheduler.kv.config.layout.value}": 1}
    counts = {
        **run.counts,
        **preemptions,
        **ends,
        **tokens,
        **layout,
        **prefixes,
        "host_parts": int(run.scheduler.kv.config.num_host_prefix_slots > 0),
        "evicted_slots": stats.total_evicted_slots,
        "recomputed_tokens": stats.total_recomputed_tokens,
    }
    return RunResult(seed, name, num_steps, counts, run.trace.hexdigest())


@as_command
def main(argv: list[str] | None = None) -> int:
    """Run the seeds on all cores; print one replay line per failure; exit 1 if there is one."""
    args = _parse(argv)
    if args.replay is not None:
        FuzzRun(args.replay, form=args.form).run()
        print(f"seed {args.replay}: passed")
        return 0
    start_s, source = time.monotonic(), provenance()  # of the code that runs, whatever is committed meanwhile
    results: list[RunResult] = []
    try:
        _run_all(args, results, start_s)
    finally:  # also after Ctrl-C: a failure that was found counts
        failures = [result for result in results if result.error]
        if args.out:
            Path(args.out).write_text(
                json.dumps({"provenance": source, **_summary(results, args.seed, time.monotonic() - start_s)}, indent=1)
                + "\n"
            )
        print(f"\n{len(results)} runs, {len(failures)} failures, {time.monotonic() - start_s:.0f} s", file=sys.stderr)
    return 1 if failures else 0


def _run_all(args: argparse.Namespace, results: list[RunResult], start_s: float) -> None:
    """Append the result of every seed to `results`, in order."""
    with worker_processes(args.jobs, _quiet) as pool:
        run = partial(run_one, form=args.form)
        for result in pool.map(run, range(args.seed, args.seed + args.runs), chunksize=16):
            results.append(result)
            if result.error:
                flag = "" if args.form is Form.DRAWN else f" --{args.form}"
                print(
                    f"\npython -m tests.fuzz --replay {result.seed}{flag}   # {result.policy}: {result.error}",
                    flush=True,
                )
            _show_progress(len(results), args.runs, start_s)


def _summary(results: list[RunResult], first_seed: int, wall_s: float) -> dict[str, object]:
    return {
        "first_seed": first_seed,
        "runs": len(results),
        "failures": [{"seed": r.seed, "policy": r.policy, "error": r.error} for r in results if r.error],
        "runs_by_policy": dict(sorted(Counter(r.policy for r in results).items())),
        "steps": sum(r.num_steps for r in results),
        "counts": dict(sorted(sum((Counter(r.counts) for r in results), Counter()).items())),
        "wall_s": round(wall_s, 1),
    }


def _show_progress(done: int, total: int, start_s: float) -> None:
    if sys.stderr.isatty() or done % 500 == 0 or done == total:
        elapsed_s = time.monotonic() - start_s
        filled = 30 * done // total
        bar = "#" * filled + "." * (30 - filled)
        left_s = elapsed_s / done * (total - done)
        print(f"\r[{bar}] {done}/{total}, {left_s:.0f} s left", end="", file=sys.stderr, flush=True)


def _quiet() -> None:
    logging.disable(logging.CRITICAL)  # injected faults are meant


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=whole(), default=1000, help="seeds to run (default: 1000)")
    parser.add_argument("--seed", type=whole(0), default=0, help="first seed (default: 0)")
    parser.add_argument("--jobs", type=whole(), default=os.cpu_count(), help="processes (default: all cores)")
    parser.set_defaults(form=Form.DRAWN)
    for form, words in (
        (Form.HOST_PART, "keep evicted prefixes on the host in every run"),
        (Form.TINY_POOL, "many short requests that begin alike, in 48 to 96 KV slots, in every run"),
    ):
        parser.add_argument(f"--{form}", action="store_const", const=form, dest="form", help=words)
    parser.add_argument("--out", metavar="FILE.json", help="write a summary")
    parser.add_argument("--replay", type=whole(0), metavar="SEED", help="run one seed here, with its traceback")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
