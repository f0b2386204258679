"""Four engines behind NVIDIA Dynamo's frontend under a bursty load of both classes, one slow and one killed half way.

    python -m bench.many --out bench/results/many.json        ten minutes; needs `make serve-many` once

The executor is simulated, so that four engines fit on two cores. The limit is one engine with four times the capacity.
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
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.common.provenance import provenance
from bench.common.score import RequestRecord, Slos, Window, score_be, score_rt
from bench.common.workload import CHAT_SMALL, PAPER_BE, closed_loop, gamma_arrivals, open_loop
from bench.live.load import Mix, OpenAITarget, drive
from bench.live.server import free_port

REPLICAS = 4
SLOS = Slos(0.5, 0.1)
CLASS_HEADER = "x-dynamo-meta-policy-class"
# Seconds: a step, a new token, a token of context in a decode, a pair in a prefill, a copied token.
_STEP_S = (25e-3, 100e-6, 100e-9, 0.0, 5e-6)
_KV_BLOCKS, _SEQS, _STEP_TOKENS = 1024, 32, 512
_SLOW, _KILLED = 1, 0  # which engine is twice as slow, and which dies


@dataclass(frozen=True, slots=True)
class Road:
    """One way to spread requests over the engines."""

    name: str
    options: tuple[str, ...]
    is_limit: bool = False


ROADS = (
    Road("round robin", ("--router", "round-robin")),
    Road("least loaded", ("--router", "least-loaded")),
    Road("KV-aware", ("--router", "kv", "--no-class-queues")),
    Road("KV-aware, class queues", ("--router", "kv")),
    Road("one engine of four times the capacity", ("--router", "round-robin"), is_limit=True),
)


def engine_json(capacity: int, slowness: float = 1.0) -> dict[str, Any]:
    """Return the configuration of a simulated engine of `capacity` times the usual size."""
    step_s, *per_unit = (seconds * slowness for seconds in _STEP_S)
    sim = {
        "coefficients": [step_s, *(seconds / capacity for seconds in per_unit)],
        "num_blocks": _KV_BLOCKS * capacity,
        "max_seqs_per_step": _SEQS * capacity,
        "max_tokens_per_step": _STEP_TOKENS * capacity,
    }
    service = {"be_coalesce_s": 0.0, "ttft_slo_s": SLOS.ttft_slo_s, "tpot_slo_s": SLOS.tpot_slo_s}
    return {"executor": "sim", "sim": sim, "service": service}


@contextmanager
def serving(road: Road, directory: Path) -> Iterator[tuple[str, list[int]]]:
    """Start the frontend and its workers; yield the URL and the workers' process ids."""
    slownesses = [1.0] if road.is_limit else [2.0 if index == _SLOW else 1.0 for index in range(REPLICAS)]
    files = [directory / f"{index}.json" for index in range(len(slownesses))]
    for file, slowness in zip(files, slownesses, strict=True):
        file.write_text(json.dumps(engine_json(REPLICAS if road.is_limit else 1, slowness)))
    port = free_port()
    command = [sys.executable, "-m", "backend.dynamo.serve_many", "--port", str(port), *road.options, "--replicas", "1"]
    process = subprocess.Popen([*command, "--config", *map(str, files)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = ""
        while "Ctrl-C" not in said:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"serve-many ended: {said}")
            said += line
        workers = re.search(r"Workers: ([\d, ]+)\.", said)
        assert workers is not None, said
        yield f"http://127.0.0.1:{port}", [int(pid) for pid in workers[1].split(", ")]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


def make_mix(arguments: argparse.Namespace, seed: int) -> Mix:
    """Draw a bursty real-time load and a backlog of documents."""
    rng_rt, rng_be = (np.random.default_rng([seed, which]) for which in (1, 2))
    times_s = gamma_arrivals(arguments.rt_rate, arguments.duration_s, 3.0, rng_rt)
    be = closed_loop(arguments.be_backlog, PAPER_BE, rng_be)
    return Mix(open_loop(times_s, CHAT_SMALL, rng_rt), be, SLOS, arguments.duration_s, 30.0, seed)


async def measure(url: str, victim: int | None, mix: Mix) -> tuple[list[RequestRecord], float | None]:
    """Drive the load, kill `victim` half way; return what every request got, and how long the worker was away."""
    target = OpenAITarget(f"{url}/v1", "bros", sends_priority=False, class_header=CLASS_HEADER)
    death = asyncio.create_task(_kill(url, victim, mix.duration_s / 2)) if victim is not None else None
    try:
        records = await drive(target, mix)
    finally:
        await target.close()
    return records, None if death is None else await death


async def _kill(url: str, victim: int, after_s: float) -> float:
    await asyncio.sleep(after_s)
    before = await asyncio.to_thread(_instances, url)
    os.kill(victim, signal.SIGKILL)
    died_s = time.monotonic()
    while True:
        await asyncio.sleep(0.1)
        now = await asyncio.to_thread(_instances, url)
        if len(now) == len(before) and now != before:
            return time.monotonic() - died_s


def _instances(url: str) -> set[int]:
    with urllib.request.urlopen(f"{url}/health", timeout=10.0) as answer:
        return {instance["instance_id"] for instance in json.load(answer)["instances"]}


def result_of(
    road: Road, seed: int, mix: Mix, records: Sequence[RequestRecord], away_s: float | None
) -> dict[str, Any]:
    """Score one run. A stream is lost where it ended in an error; tokens are wrong where a whole answer has not all."""
    window = Window(5.0, mix.duration_s)
    whole = [record for record in records if record.is_finished]
    return {
        "road": road.name,
        "is_limit": road.is_limit,
        "seed": seed,
        **score_rt(records, SLOS, window),
        **score_be(records, window),
        "num_lost": sum(record.error is not None for record in records),
        "num_whole": len(whole),
        "num_missing_tokens": sum(max(0, r.num_output - len(r.token_times_s)) for r in whole),
        "num_extra_tokens": sum(max(0, len(r.token_times_s) - r.num_output) for r in whole),
        "away_s": away_s,
    }


def main() -> int:
    """Run the command line; return the exit status."""
    arguments = _parser().parse_args()
    facts, runs = provenance(), []
    for seed in range(arguments.seeds):
        for road in ROADS:
            print(f"{road.name}, seed {seed}", file=sys.stderr, flush=True)
            mix = make_mix(arguments, seed)
            with tempfile.TemporaryDirectory() as directory, serving(road, Path(directory)) as (url, pids):
                victim = None if road.is_limit else pids[_KILLED]
                records, away_s = asyncio.run(measure(url, victim, mix))
            runs.append(result_of(road, seed, mix, records, away_s))
            print(f"  {_summary(runs[-1])}", file=sys.stderr, flush=True)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps({"provenance": facts, "runs": runs}, indent=1) + "\n")
    return 0


def _summary(run: dict[str, Any]) -> str:
    away = "" if run["away_s"] is None else f", worker back after {run['away_s']:.1f} s"
    return (
        f"RT {run['rt_attainment']['both']:.1%} of {run['num_rt']}, BE {run['be_tokens_per_s']:.0f} tokens/s, "
        f"{run['num_lost']} streams lost, {run['num_missing_tokens']} tokens missing, "
        f"{run['num_extra_tokens']} twice{away}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.many", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs of each road (default: 1)")
    parser.add_argument("--duration-s", type=float, default=60.0, help="requests arrive for so long (default: 60)")
    parser.add_argument("--rt-rate", type=float, default=4.0, help="real-time requests per second (default: 4)")
    parser.add_argument("--be-backlog", type=int, default=400, help="best-effort requests at time 0 (default: 400)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
