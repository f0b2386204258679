"""Four engines behind NVIDIA Dynamo's frontend under a bursty load of both classes, one slow and one killed half way.

    python -m bench.many --out bench/results/many.json --seeds 3        nine minutes a seed; after `make serve-many`

The executor is simulated, so that four engines fit on two cores; the frontend, its routers and the workers are real.
Simulated engines count up (`sim.counts_up`), so every missing or double token shows. The limit of each situation is one
engine with the capacity that the four have together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from backend.core.numbers import above, positive, real, whole
from bench.common.command import CommandError, as_command
from bench.common.output import merge_into
from bench.common.provenance import provenance
from bench.common.score import RequestRecord, Slos, Window, score_be, score_rt
from bench.common.workload import CHAT_SMALL, PAPER_BE, Arrival, gamma_arrivals, open_loop, poisson_arrivals
from bench.live.counting import CountingTarget, count
from bench.live.load import MAX_LATE_S, Mix, drive
from bench.live.server import free_port
from client.transports.loopback import direct_mounts

REPLICAS = 4
RT_RATE, BE_RATE = 6.0, 25.0  # requests per second, for all replicas
RT_CV = 3.0  # of the times between real-time requests
SLOS = Slos(1.0, 0.2)
CLASS_HEADER = "x-dynamo-meta-policy-class"
VOCAB_SIZE = 32_000
WRONG = ("num_lost", "num_missing", "num_double", "num_foreign")  # of a run: each is to be 0
# Seconds: a step, a new token, a token of context in a decode, a pair in a prefill, a copied token.
_STEP_S = (40e-3, 100e-6, 100e-9, 0.0, 5e-6)
_KV_BLOCKS, _SEQS, _STEP_TOKENS = 2048, 32, 512
_SLOWNESS = 2.0
_SLOW, _KILLED = 1, 0  # which engine is slow, and which dies
_WARM_UP_S, _DRAIN_S = 10.0, 30.0
_FIRST_S, _FIRST_FACTOR = 4.0, 3.0  # best-effort requests come faster at first, to fill the engines


@dataclass(frozen=True, slots=True)
class Way:
    """One way to spread requests over the engines: options of `serve_many`.

    has_faults: one of the engines is slow, and another is killed.
    """

    name: str
    options: tuple[str, ...]
    has_faults: bool = True
    is_limit: bool = False


_CLASS_QUEUES = ("--router", "kv")
WAYS = (
    Way("round robin", ("--router", "round-robin")),
    Way("least loaded", ("--router", "least-loaded")),
    Way("KV-aware", ("--router", "kv", "--no-class-queues")),
    Way("KV-aware, class queues", _CLASS_QUEUES),
    Way("one engine", ("--router", "round-robin"), is_limit=True),
    Way("KV-aware, class queues", _CLASS_QUEUES, has_faults=False),
    Way("one engine", ("--router", "round-robin"), has_faults=False, is_limit=True),
)


def capacities(way: Way) -> list[float]:
    """Return the capacity of each engine: 1 is a usual one, 0.5 takes twice as long for everything."""
    each = [1 / _SLOWNESS if way.has_faults and index == _SLOW else 1.0 for index in range(REPLICAS)]
    return [sum(each)] if way.is_limit else each


def engine_json(capacity: float) -> dict[str, Any]:
    """Return the configuration of a simulated engine: a slower one, or one that takes more at once."""
    size, slowness = max(1.0, capacity), max(1.0, 1 / capacity)
    step_s, *per_unit = (seconds * slowness for seconds in _STEP_S)
    sim = {
        "coefficients": [step_s, *(seconds / size for seconds in per_unit)],
        "num_blocks": round(_KV_BLOCKS * size),
        "max_seqs_per_step": round(_SEQS * size),
        "max_tokens_per_step": round(_STEP_TOKENS * size),
        "vocab_size": VOCAB_SIZE,
        "counts_up": True,
    }
    return {"executor": "sim", "sim": sim, "service": {"ttft_slo_s": SLOS.ttft_slo_s, "tpot_slo_s": SLOS.tpot_slo_s}}


@contextmanager
def serving(way: Way, directory: Path, engines: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[int]]]:
    """Start the frontend and a worker for each configuration; yield the URL and the workers' process ids."""
    files = [directory / f"{index}.json" for index in range(len(engines))]
    for file, engine in zip(files, engines, strict=True):
        file.write_text(json.dumps(engine))
    port = free_port()
    command = [sys.executable, "-m", "backend.dynamo.serve_many", "--port", str(port), *way.options]
    command += ["--replicas", "1", "--config", *map(str, files)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = ""
        while "Ctrl-C" not in said:
            line = process.stdout.readline()
            if not line:
                raise CommandError(f"serve-many ended with status {process.wait()} before it was ready {said}".strip())
            said += line
        workers = re.search(r"Workers: ([\d, ]+)\.", said)
        assert workers is not None, said
        yield f"http://127.0.0.1:{port}", [int(pid) for pid in workers[1].split(", ")]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


def make_mix(arguments: argparse.Namespace, seed: int) -> Mix:
    """Draw a bursty real-time load, and more best-effort work than the engines can do."""
    rng_rt, rng_be = (np.random.default_rng([seed, which]) for which in (1, 2))
    times_s = gamma_arrivals(arguments.rt_rate, arguments.duration_s, RT_CV, rng_rt)
    be = [*_first(arguments.be_rate, rng_be), *poisson_arrivals(arguments.be_rate, arguments.duration_s, rng_be)]
    rt = open_loop(times_s, CHAT_SMALL, rng_rt)
    return Mix(rt, _sorted(open_loop(be, PAPER_BE, rng_be)), SLOS, arguments.duration_s, _DRAIN_S, seed)


def _first(rate: float, rng: np.random.Generator) -> list[float]:
    return poisson_arrivals(rate * (_FIRST_FACTOR - 1.0), _FIRST_S, rng)


def _sorted(arrivals: Sequence[Arrival]) -> list[Arrival]:
    return sorted(arrivals, key=lambda arrival: arrival.arrival_s)


@dataclass(frozen=True, slots=True)
class Death:
    """When a worker was killed, on the run's axis, and how long it took until the frontend knew its successor."""

    killed_s: float
    away_s: float


async def measure(
    url: str, victim: int | None, mix: Mix, target: CountingTarget, max_late_s: float
) -> tuple[list[RequestRecord], Death | None]:
    """Drive the load, kill `victim` half way; return what every request got, and the death."""
    death = asyncio.create_task(_kill(url, victim, mix.duration_s / 2)) if victim is not None else None
    try:
        records = await drive(target, mix, max_late_s)
    finally:
        await target.close()
    return records, None if death is None else await death


async def _kill(url: str, victim: int, after_s: float) -> Death:
    began_s = time.monotonic()
    await asyncio.sleep(after_s)
    before = await asyncio.to_thread(_instances, url)
    os.kill(victim, signal.SIGKILL)
    died_s = time.monotonic()
    while True:
        await asyncio.sleep(0.1)
        now = await asyncio.to_thread(_instances, url)
        if len(now) == len(before) and now != before:
            return Death(died_s - began_s, time.monotonic() - died_s)


def _instances(url: str) -> set[int]:
    with httpx2.Client(timeout=10.0, mounts=direct_mounts(url)) as http:
        answer = http.get(f"{url}/health").raise_for_status().json()
    return {instance["instance_id"] for instance in answer["instances"]}


def run_way(way: Way, seed: int, mix: Mix, max_late_s: float) -> dict[str, Any]:
    """Serve, measure and score one way of routing."""
    engines = list(map(engine_json, capacities(way)))
    with tempfile.TemporaryDirectory() as directory, serving(way, Path(directory), engines) as (url, pids):
        victim = pids[_KILLED] if way.has_faults and not way.is_limit else None

        async def main() -> tuple[list[RequestRecord], Death | None, CountingTarget]:
            target = CountingTarget(f"{url}/v1", "bros", CLASS_HEADER)
            return *await measure(url, victim, mix, target, max_late_s), target

        records, death, target = asyncio.run(main())
    window = Window(_WARM_UP_S, mix.duration_s)
    return {
        **asdict(way),
        "seed": seed,
        **score_rt(records, SLOS, window),
        **score_be(records, window),
        **what_went_wrong(records, target),
        "num_whole": sum(record.is_finished for record in records),
        "death": None if death is None else asdict(death) | {"pauses_s": pauses_s(records, death.killed_s)},
    }


def what_went_wrong(records: Sequence[RequestRecord], target: CountingTarget) -> dict[str, Any]:
    """Return how many streams were lost, why, and how many tokens were missing, double or foreign, at any time."""
    return {
        "num_requests": len(records),
        "num_lost": sum(record.error is not None for record in records),
        "errors": sorted({record.error for record in records if record.error is not None})[:5],
        **asdict(count(target.answers.values(), VOCAB_SIZE)),
    }


def pauses_s(records: Sequence[RequestRecord], killed_s: float) -> list[float]:
    """Return how long each real-time stream paused that was under way at the kill, ascending."""
    pauses = []
    for record in records:
        before = [time_s for time_s in record.token_times_s if time_s <= killed_s]
        after = [time_s for time_s in record.token_times_s if time_s > killed_s]
        if record.is_rt and before and after:
            pauses.append(after[0] - before[-1])
    return sorted(pauses)


@as_command
def main() -> int:
    """Run the command line; return the exit status: 1 where a stream was lost or a token was wrong."""
    arguments = _parser().parse_args()
    load = {name: getattr(arguments, name) for name in ("duration_s", "rt_rate", "be_rate")}
    document: dict[str, Any] = {"provenance": provenance(), "replicas": REPLICAS, "slowness": _SLOWNESS, **load}
    document |= {"slos": asdict(SLOS), "runs": []}
    ways = [way for way in WAYS if not arguments.ways or way.name in arguments.ways]
    for seed in range(arguments.seeds):
        for way in ways:
            kind = "with faults" if way.has_faults else "without faults"
            print(f"{way.name}, {kind}, seed {seed}", file=sys.stderr, flush=True)
            mix = make_mix(arguments, seed)
            document["runs"].append(run_way(way, seed, mix, arguments.max_late_s))
            print(f"  {_summary(document['runs'][-1])}", file=sys.stderr, flush=True)
            merge_into(arguments.out, document)
    return int(any(run[name] for run in document["runs"] for name in WRONG))


def _summary(run: dict[str, Any]) -> str:
    death = run["death"]
    words = "" if death is None else f"; worker back after {death['away_s']:.1f} s, pauses {death['pauses_s'][-1:]}"
    return (
        f"RT {run['rt_attainment']['both']:.1%} of {run['num_rt']}, BE {run['be_tokens_per_s']:.0f} tokens/s, "
        f"{run['num_lost']} of {run['num_requests']} streams lost {run['errors']}, "
        f"{run['num_missing']} tokens missing, {run['num_double']} double, {run['num_foreign']} foreign{words}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.many", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=whole(), default=1, help="runs of each way (default: 1)")
    parser.add_argument(
        "--duration-s", type=above(_WARM_UP_S), default=60.0, help="requests arrive for so long (default: 60)"
    )
    parser.add_argument("--rt-rate", type=real(), default=RT_RATE, help="real-time requests a second (default: 6)")
    parser.add_argument("--be-rate", type=real(), default=BE_RATE, help="best-effort requests a second (default: 25)")
    parser.add_argument(
        "--max-late-s",
        type=positive,
        default=MAX_LATE_S,
        help="give up when a request leaves later (default: %(default)s)",
    )
    parser.add_argument("--ways", nargs="*", help="only ways to route of these names (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
