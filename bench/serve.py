"""Measure a live server under an open-loop load of real-time and best-effort requests.

    python -m bench.serve --policy bros --rt-rate 0.8 --be-backlog 150 --out x.json       starts bros-serve itself
    python -m bench.serve --compare fcfs priority bros --rt-rate 0.8 --be-rate 0.4 --seeds 0 1 2 --out x.json
    python -m bench.serve --suite issue --budget-s 1500 --out bench/results/measured.json
    python -m bench.serve --openai http://127.0.0.1:8000/v1 --model NAME --rt-rate 0.8 --out x.json

Several policies run interleaved on the same seeds, each on a server of its own. Real-time requests are scored by
arrival in [warmup, duration); unfinished ones are misses. Next to `--out` the raw events of every request are kept as
JSON lines. Other processes on the machine distort the figures; `foreign_cores` is their load just before a run.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil  # type: ignore[import-untyped]  # ships no types

from backend.core.numbers import positive, real, whole
from backend.policy.settings import POLICY_NAMES
from bench.common.command import CommandError, as_command
from bench.common.provenance import provenance
from bench.common.score import RequestRecord, Slos, Window, score_be, score_rt
from bench.common.workload import CHAT_SMALL, PAPER_BE, closed_loop, open_loop, poisson_arrivals
from bench.live.load import BrosTarget, Mix, OpenAITarget, Target, drive
from bench.live.server import ServerAddress, running_server
from client.transports.loopback import direct_mounts

SLOS = (Slos(0.5, 0.06), Slos(1.0, 0.1), Slos(2.0, 0.2))  # all are scored; the middle one is what requests ask for
ASKED = SLOS[1]
MAX_SEQS = 64
_SETTLE_S = 1.0  # between a server's start and its load, in which the rest of the machine is looked at


@dataclass(frozen=True, slots=True)
class Setup:
    """One measured mix: rates are requests per second, Poisson; a backlog arrives at time 0.

    prompt_scale: factor of prompt lengths relative to the usual ones.
    """

    name: str
    rt_rate: float = 0.0
    be_rate: float = 0.0
    be_backlog: int = 0
    kv_tokens: int = 12_288
    max_tokens_per_step: int = 512
    warmup_s: float = 5.0
    duration_s: float = 65.0
    drain_s: float = 15.0
    prompt_scale: float = 1.0
    ttft_slo_s: float = ASKED.ttft_slo_s
    tpot_slo_s: float = ASKED.tpot_slo_s

    @property
    def slos(self) -> Slos:
        """Return what real-time requests ask for."""
        return Slos(self.ttft_slo_s, self.tpot_slo_s)

    def mix(self, seed: int) -> Mix:
        """Draw the arrivals."""
        rng_rt, rng_be = (np.random.default_rng([seed, which]) for which in (1, 2))
        chats, documents = (lengths.with_prompts(self.prompt_scale) for lengths in (CHAT_SMALL, PAPER_BE))
        rt = open_loop(poisson_arrivals(self.rt_rate, self.duration_s, rng_rt), chats, rng_rt)
        be_times_s = poisson_arrivals(self.be_rate, self.duration_s, rng_be)
        be = closed_loop(self.be_backlog, documents, rng_be) + open_loop(be_times_s, documents, rng_be)
        return Mix(rt, be, self.slos, self.duration_s, self.drain_s, seed)

    @property
    def window(self) -> Window:
        return Window(self.warmup_s, self.duration_s)

    @property
    def flags(self) -> list[str]:
        """Return the options of a server for this mix."""
        steps = (f"max_tokens_per_step={self.max_tokens_per_step}", f"max_seqs_per_step={MAX_SEQS}")
        settings = [part for step in steps for part in ("--set", f"scheduler.{step}")]
        return ["--kv-tokens", str(self.kv_tokens), *settings]


# The loads on which vLLM was measured (bench/results/peers.json), and each class alone.
SUITES: dict[str, list[tuple[Setup, tuple[str, ...]]]] = {
    "issue": [
        (Setup("backlog", rt_rate=0.8, be_backlog=150), ("bros", "priority_tuned", "priority", "fcfs")),
        (Setup("be_alone", be_backlog=150), ("bros", "fcfs")),
        (Setup("mix_0.8_0.4", rt_rate=0.8, be_rate=0.4), ("bros", "priority_tuned", "priority", "fcfs")),
        (Setup("mix_1.2_0.55", rt_rate=1.2, be_rate=0.55), ("bros", "priority_tuned", "priority", "fcfs")),
        (Setup("rt_alone", rt_rate=0.8), ("bros", "fcfs")),
    ],
}


def measure(connect: Callable[[], Target], setup: Setup, seed: int) -> tuple[dict[str, Any], list[RequestRecord]]:
    """Connect inside an event loop, drive the load of `setup` and score it."""

    async def run() -> list[RequestRecord]:
        target = connect()
        try:
            return await drive(target, setup.mix(seed))
        finally:
            await target.close()

    records = asyncio.run(run())
    scores = score_rt(records, setup.slos, setup.window)
    attained = {
        f"{slos.ttft_slo_s:g} s, {slos.tpot_slo_s * 1e3:g} ms": score_rt(records, slos, setup.window)["rt_attainment"]
        for slos in SLOS
    }
    result = {
        "setup": asdict(setup),
        "seed": seed,
        **scores,
        "rt_attainment_at": attained,
        **score_be(records, setup.window),
        "num_rt_failed": sum(record.is_rt and record.error is not None for record in records),
    }
    return result, records


def measure_policy(
    policy: str,
    setup: Setup,
    seed: int,
    settings: Sequence[str] = (),
    connect: Callable[[str], Target] = BrosTarget,
) -> tuple[dict[str, Any], list[RequestRecord]]:
    """Start a server of `policy` with further `settings` (KEY=VALUE), `connect` to its URL, measure it, stop it."""
    flags = ["--policy", policy, *setup.flags]
    flags += [part for setting in settings for part in ("--set", setting)]
    with running_server(flags) as address:
        foreign_cores = psutil.cpu_percent(_SETTLE_S) / 100 * (psutil.cpu_count() or 1)
        before, start_s = _server_counters(address), time.monotonic()
        result, records = measure(lambda: connect(f"grpc://{address.grpc_url}"), setup, seed)
        after, wall_s = _server_counters(address), time.monotonic() - start_s
    counters = {name: value - before.get(name, 0.0) for name, value in after.items()}
    result |= {
        "policy": policy,
        "ready_s": address.ready_s,
        "foreign_cores": round(foreign_cores, 2),
        "engine_busy_ratio": counters.get("bros_step_duration_seconds_sum", 0.0) / wall_s,
        "server_counters": counters,
    }
    return result, records


@as_command
def main() -> int:
    """Run the command line; return the exit status."""
    arguments = (parser := _parser()).parse_args()
    setup = Setup("custom", **{name: getattr(arguments, name) for name in _SETUP_FLAGS})
    if not (arguments.suite or setup.rt_rate or setup.be_rate or setup.be_backlog):
        parser.error("no load: give --rt-rate, --be-rate, --be-backlog or --suite")
    if setup.duration_s <= setup.warmup_s:
        parser.error(f"--duration-s {setup.duration_s:g} must be above --warmup-s {setup.warmup_s:g}")
    events = arguments.out.with_suffix(".events.jsonl.gz")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, Any]] = []
    facts = provenance()
    with gzip.open(events, "wt") as file:
        for result, records in _measurements(arguments, setup):
            runs.append(result)
            name = {"mix": result["setup"]["name"], "policy": result["policy"], "seed": result["seed"]}
            for record in records:
                file.write(json.dumps({**name, **_event(record)}) + "\n")
            arguments.out.write_text(json.dumps({"provenance": facts, "runs": runs}, indent=1) + "\n")
            print(_summary(result), file=sys.stderr, flush=True)
    return 0 if runs else 1


def _measurements(arguments: argparse.Namespace, setup: Setup) -> Iterator[tuple[dict[str, Any], list[RequestRecord]]]:
    """Yield measured runs until all are done or the next one would not fit the time budget."""
    if arguments.url or arguments.openai:
        for seed in arguments.seeds:
            result, records = measure(lambda: _connect(arguments), setup, seed)
            if not any(record.token_times_s for record in records):
                reason = next((record.error for record in records if record.error), "no token came")
                raise CommandError(f"{arguments.openai or arguments.url} answered no request: {reason}")
            yield {**result, "policy": arguments.label or arguments.openai or arguments.url}, records
        return
    plan = SUITES[arguments.suite] if arguments.suite else [(setup, arguments.compare or (arguments.policy,))]
    end_s = time.monotonic() + arguments.budget_s
    for seed in arguments.seeds:
        for mix, policies in plan:
            for policy in _rotated(policies, seed):
                if time.monotonic() + mix.duration_s + mix.drain_s + 30.0 > end_s:
                    print(f"no time for {mix.name} {policy} seed {seed}", file=sys.stderr)
                    continue
                yield measure_policy(policy, replace(mix), seed)


def _connect(arguments: argparse.Namespace) -> Target:
    if arguments.openai:
        return OpenAITarget(arguments.openai, arguments.model, arguments.openai_priority)
    return BrosTarget(arguments.url)


def _rotated(policies: Sequence[str], by: int) -> list[str]:
    """Start every seed with another policy, so that none always comes first."""
    shift = by % len(policies)
    return [*policies[shift:], *policies[:shift]]


def _server_counters(address: ServerAddress) -> dict[str, float]:
    """Sums over labels of every bros_ counter on the metrics endpoint."""
    with httpx2.Client(timeout=10, mounts=direct_mounts(address.metrics_url)) as http:
        lines = http.get(address.metrics_url).raise_for_status().text.splitlines()
    counters: dict[str, float] = {}
    for line in lines:
        name, _, value = line.rpartition(" ")
        name = name.partition("{")[0]
        if name.startswith("bros_") and name.endswith(("_total", "_sum", "_count")):
            counters[name] = counters.get(name, 0.0) + float(value)
    return counters


def _event(record: RequestRecord) -> dict[str, Any]:
    values = asdict(record)
    values["token_times_s"] = [round(time_s, 4) for time_s in record.token_times_s]
    return values


def _summary(result: dict[str, Any]) -> str:
    attainment, ttft, tpot = result["rt_attainment"], result["ttft_s"], result["tpot_s"]
    return (
        f"{result['setup']['name']:14} {result['policy']:15} seed {result['seed']}: RT met {attainment['both']} of "
        f"{result['num_rt']} (TTFT p50 {ttft['p50']}, p99 {ttft['p99']}; TPOT p50 {tpot['p50']}, p99 {tpot['p99']}); "
        f"BE {result['be_requests_per_s']:.2f} req/s, {result['be_tokens_per_s']:.1f} tok/s; "
        f"foreign cores {result.get('foreign_cores')}"
    )


_SETUP_FLAGS = {
    "rt_rate": "RT requests per second",
    "be_rate": "BE requests per second",
    "be_backlog": "BE requests at time 0",
    "kv_tokens": "KV pool of the server, in tokens",
    "max_tokens_per_step": "new tokens of a step",
    "warmup_s": "RT arrivals before this are not scored",
    "duration_s": "requests arrive for this time",
    "drain_s": "time limit for RT answers after that",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = Setup("custom")
    for name, words in _SETUP_FLAGS.items():
        default = getattr(defaults, name)
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(
            flag,
            type=whole(0) if isinstance(default, int) else real(),
            default=default,
            help=f"{words} (default: {default})",
        )
    parser.add_argument("--policy", choices=POLICY_NAMES, default="bros", help="default: %(default)s")
    parser.add_argument("--compare", nargs="+", choices=POLICY_NAMES, help="several policies, interleaved")
    parser.add_argument("--suite", choices=sorted(SUITES), help="a named set of mixes and policies")
    parser.add_argument("--seeds", nargs="+", type=whole(0), default=[0], help="default: 0")
    parser.add_argument(
        "--budget-s",
        type=positive,
        default=86_400.0,
        help="start no run that would end later, s (default: %(default)g)",
    )
    parser.add_argument("--url", help="a live bros server, e.g. grpc://127.0.0.1:8001, instead of starting one")
    parser.add_argument("--openai", metavar="URL", help="an OpenAI-compatible endpoint, up to /v1")
    parser.add_argument("--openai-priority", action="store_true", help="send vLLM's priority: RT 0, BE 1")
    parser.add_argument("--model", default="", help="model name for --openai")
    parser.add_argument("--label", help="name of a live server in the results")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
