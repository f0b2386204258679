"""Where the router becomes the bottleneck: a fleet of replicas behind one frontend, on a virtual clock.

    python -m bench.fleet --measure --out bench/results/fleet.json      half a minute; needs `make serve-many` once
    python -m bench.fleet --out bench/results/fleet.json                three minutes

The first command measures what a request and an event of a stream cost the real frontend of Dynamo in processor time.
The second simulates fleets that spend as much, and keeps the measured numbers. Replicas and load are those of
`bench.many`, without faults.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]  # it has no stubs

from backend.config import parse_config
from backend.core.numbers import above, whole
from backend.executors.sim import SimSettings
from bench import many
from bench.common.command import as_command, read_part
from bench.common.provenance import provenance
from bench.common.score import Slos, Window, score_be, score_rt
from bench.common.workload import CHAT_SMALL, PAPER_BE, gamma_arrivals, open_loop, poisson_arrivals
from bench.live.counting import CountingTarget
from bench.live.load import Query
from bench.many import CLASS_HEADER, SLOS, Way, engine_json, serving
from bench.sim.fleet import ROUTERS, Fleet, FleetLoad, Frontend

SIZES = (4, 16, 64)
CORES = (8, 4, 2, 1)  # of the frontend, where it costs something
RT_RATE, BE_RATE = many.RT_RATE / many.REPLICAS, many.BE_RATE / many.REPLICAS  # requests a replica and second
_WARM_UP_S = 5.0
_NUM_SHORT, _NUM_LONG, _LONG_TOKENS, _PROMPT_TOKENS = 400, 40, 250, 512


def make_load(num_replicas: int, duration_s: float, seed: int) -> FleetLoad:
    """Draw bursts of real-time requests, and more best-effort work than the replicas can do."""
    rng_rt, rng_be = (np.random.default_rng([seed, num_replicas, which]) for which in (1, 2))
    rt = open_loop(gamma_arrivals(RT_RATE * num_replicas, duration_s, many.RT_CV, rng_rt), CHAT_SMALL, rng_rt)
    be = open_loop(poisson_arrivals(BE_RATE * num_replicas, duration_s, rng_be), PAPER_BE, rng_be)
    return FleetLoad(rt, be, SLOS, duration_s)


def run_fleet(num_replicas: int, router: str, frontend: Frontend, duration_s: float, seed: int) -> dict[str, Any]:
    """Simulate one fleet; return its scores, and how busy the frontend was."""
    engine: SimSettings = parse_config(engine_json(1.0)).sim
    fleet = Fleet([engine] * num_replicas, frontend, router, make_load(num_replicas, duration_s, seed))
    fleet.run()
    window = Window(_WARM_UP_S, duration_s)
    cores = frontend.num_cores
    return {
        "num_replicas": num_replicas,
        "router": router,
        "num_cores": cores,
        "seed": seed,
        "busy_ratio": fleet.busy_s / (cores * duration_s) if cores else 0.0,
        "num_failed": len(fleet.errors),
        **score_rt(fleet.records, SLOS, window),
        **score_be(fleet.records, window),
    }


def measure_frontend() -> dict[str, float]:
    """Return the processor seconds of the real frontend: for a request, and for an event of a stream.

    Two loads on one worker: many requests of one token, and few of many tokens. Each token is an event.
    """
    with tempfile.TemporaryDirectory() as directory, serving(_QUICK, Path(directory), _quick_engine()) as (url, pids):
        frontend = _sibling(pids[0], "dynamo.frontend")
        asyncio.run(_send(url, 20, 20))  # warm
        short_s = _spent(frontend, url, _NUM_SHORT, 1)
        long_s = _spent(frontend, url, _NUM_LONG, _LONG_TOKENS)
    return costs(short_s, long_s)


def costs(short_s: float, long_s: float) -> dict[str, float]:
    """Return what a request and an event cost, by the processor time of both loads: two equations, two unknowns."""
    num_requests, num_events = np.array([_NUM_SHORT, _NUM_LONG]), np.array([_NUM_SHORT, _NUM_LONG * _LONG_TOKENS])
    found = np.linalg.solve(np.stack([num_requests, num_events], axis=1), np.array([short_s, long_s]))
    return {"request_s": float(max(0.0, found[0])), "event_s": float(max(0.0, found[1]))}


_QUICK = Way("KV-aware", ("--router", "kv"), has_faults=False, is_limit=True)


def _quick_engine() -> list[dict[str, Any]]:
    """One engine that takes all requests at once, in steps of 20 ms."""
    engine = engine_json(4.0)
    return [engine | {"sim": engine["sim"] | {"coefficients": [20e-3, 0, 0, 0, 0]}}]


def _spent(process: psutil.Process, url: str, num_requests: int, num_tokens: int) -> float:
    before = process.cpu_times()
    asyncio.run(_send(url, num_requests, num_tokens))
    after = process.cpu_times()
    return float(after.user + after.system - before.user - before.system)


async def _send(url: str, num_requests: int, num_tokens: int) -> None:
    """Send real-time requests, 20 at a time, and read their answers."""
    target, room = CountingTarget(f"{url}/v1", "bros", CLASS_HEADER), asyncio.Semaphore(20)

    async def one(index: int) -> None:
        async with room:
            query = Query(str(index), True, [1_000 + index] * _PROMPT_TOKENS, num_tokens, Slos(1.0, 1.0))
            async for _ in target.stream(query):
                pass

    try:
        await asyncio.gather(*map(one, range(num_requests)))
    finally:
        await target.close()


def _sibling(pid: int, module: str) -> psutil.Process:
    """Return the process of `module` that has the same parent."""
    parent = psutil.Process(pid).parent()
    assert parent is not None, f"process {pid} has no parent"
    return next(child for child in parent.children() if module in child.cmdline())


@as_command
def main() -> int:
    """Run the command line; return the exit status."""
    arguments = (parser := _parser()).parse_args()
    if arguments.measure:
        source = provenance()  # of the code that runs
        document = {"measured": {**measure_frontend(), "provenance": source}}
        print(document["measured"], file=sys.stderr)
    elif not arguments.out.exists():
        parser.error(f"argument --out: {arguments.out} does not exist: run --measure first")
    else:
        document = _simulated(read_part("--out", arguments.out, "measured"), arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def _simulated(measured: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    document: dict[str, Any] = {"measured": measured, "provenance": provenance(), "slos": asdict(SLOS)}
    document |= {"duration_s": arguments.duration_s, "rt_rate": RT_RATE, "be_rate": BE_RATE, "runs": []}
    cells = [(size, router, 0) for size in arguments.sizes for router in ROUTERS]
    cells += [(size, "kv", cores) for size in arguments.sizes for cores in CORES]
    for size, router, cores in cells:
        frontend = Frontend(measured["request_s"], measured["event_s"], cores)
        for seed in range(arguments.seeds):
            run = run_fleet(size, router, frontend, arguments.duration_s, seed)
            print(f"{size} {router} {cores}: {run['rt_attainment']['both']:.1%}", file=sys.stderr, flush=True)
            document["runs"].append(run)
    return document


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.fleet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="measure the real frontend; simulate nothing")
    parser.add_argument("--sizes", type=whole(), nargs="+", default=list(SIZES), help="replicas (default: 4 16 64)")
    parser.add_argument("--seeds", type=whole(), default=1, help="runs of each fleet (default: 1)")
    parser.add_argument(
        "--duration-s", type=above(_WARM_UP_S), default=20.0, help="requests arrive for so long (default: 20)"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
