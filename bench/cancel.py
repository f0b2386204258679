"""Time until the KV slots of a client that leaves are free: a real server, and clients that leave in every way.

    python -m bench.cancel [--cancels N] [--json] [--out bench/results/cancel.json]

One visitor after another opens a real-time stream, reads for a while and leaves. There are three situations: alone on
the server, beside 16 streams of either class, and beside these while other work wants every core.

The server records its steps (`service.step_file`) on the visitors' clock. Slots are free at the end of the last step
with the visitor. The engine was told during that step, so the time of notice is known to within one step. The simulated
executor takes the same time for every step. The file shows visitors by their prompt, which is longer than all others.
Every request that was left must have been counted as cancelled.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx2

from backend.config import ServiceSettings
from backend.core.numbers import whole
from bench.common.command import as_command
from bench.common.output import put_out
from bench.common.provenance import provenance
from bench.live.server import ServerAddress, running_server
from bench.report.cancel import describe, summary
from client import AsyncClient, Client
from client.errors import CancelledError
from client.generation import Options, PriorityClass, encode
from client.prometheus import scrape
from client.snapshot import Snapshot
from client.transports.grpc import GrpcTransport
from client.transports.loopback import direct_mounts

SIM_STEP_S = 0.01
NUM_STREAMS = 16  # of the load, of each class
LOAD_TOKENS = 250  # output of each at most
VISITOR_TOKENS = 300  # of the prompt
_PROMPT = [1_000] * VISITOR_TOKENS
_OPTIONS: Options = {"priority_class": "rt", "max_tokens": 2_000, "ignore_eos": True}  # nobody stays so long
_SETTLE_S = 5.0  # until the whole load decodes
_POLL_S = ServiceSettings().cancel_poll_s
_PAUSE_S = 0.15  # before the server is asked whether a visitor has gone
_TIMEOUT_S = 0.2  # far beyond the first token
_COUNTED_S = 10.0  # until metrics have come, which are flushed once a second

_PROCESSES = multiprocessing.get_context("forkserver")  # each starts in no time

Leave = Callable[
    [float], float
]  # open a stream, leave it this number of seconds after its first token; return the time


@dataclass(frozen=True, slots=True)
class Visit:
    """When a visitor came and left, and when the next one may come, in seconds of the monotonic clock."""

    came_s: float
    left_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Step:
    """When a step ended, and how many visitors decoded in it."""

    end_s: float
    num_visitors: int


@as_command
def main() -> int:
    """Measure and print; see the module's docstring."""
    options = _parser().parse_args()
    source = provenance()
    _PROCESSES.set_forkserver_preload(["client"])
    loads = {"alone": (0, 0), "beside": (NUM_STREAMS, 0), "busy": (NUM_STREAMS, os.cpu_count() or 1)}
    result = {
        "num_cancels": options.cancels,
        "num_streams": NUM_STREAMS,
        "step_ms": SIM_STEP_S * 1e3,
        "cancel_poll_ms": _POLL_S * 1e3,
        "loads": {name: measure(*load, options.cancels) for name, load in loads.items()},
        "provenance": source,
    }
    put_out(result, options, describe)
    return 0


def measure(num_streams: int, num_busy: int, num_cancels: int) -> dict[str, Any]:
    """Return by way how long after leaving the visitors' slots were free, beside `num_streams` of each class and
    `num_busy` processes that compute."""
    with tempfile.TemporaryDirectory() as directory:
        step_file = Path(directory) / "steps"
        settings = [f"sim.coefficients=[{SIM_STEP_S}, 0, 0, 0, 0]", f'service.step_file="{step_file}"']
        settings.append("scheduler.prefix_caching=false")  # a visitor is known by how much of it is computed
        arguments = [word for setting in settings for word in ("--set", setting)]
        with running_server(["--executor", "sim", *arguments]) as address, ExitStack() as stack:
            stack.enter_context(beside(_keep_streams, address.grpc_url, num_streams))
            for _ in range(num_busy):
                stack.enter_context(beside(_compute))
            threading.Event().wait(_SETTLE_S)
            ways = stack.enter_context(ways_to_leave(address.grpc_url, address.http_url))
            watcher = stack.enter_context(Client(address.grpc_url))
            visits = {way: pay_visits(leave, num_cancels + 1, watcher.inspect) for way, leave in ways.items()}
            check_counted(address, len(visits) * (num_cancels + 1))
        steps = read_steps(step_file)  # which the engine has closed
    return {way: summary([delay_ms(visit, steps) for visit in visited]) for way, visited in visits.items()}


@contextmanager
def beside(work: Callable[..., None], *arguments: object) -> Iterator[None]:
    """Let another process work, so that visitors need not wait for this one."""
    process = _PROCESSES.Process(target=work, args=arguments, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _compute() -> None:
    while True:
        pass


def _keep_streams(url: str, num_streams: int) -> None:
    chance = random.Random(0)

    async def keep_one_open(client: AsyncClient, name: PriorityClass) -> None:
        while True:
            max_tokens = chance.randint(LOAD_TOKENS // 4, LOAD_TOKENS)
            async for _ in client.stream("x", priority_class=name, max_tokens=max_tokens, ignore_eos=True):
                continue

    async def keep_all_open() -> None:
        async with AsyncClient(url) as client:
            await asyncio.gather(*(keep_one_open(client, name) for name in ("rt", "be") for _ in range(num_streams)))

    asyncio.run(keep_all_open())


def pay_visits(leave: Leave, num_visits: int, inspect: Callable[[], Snapshot]) -> list[Visit]:
    """Let visitors come and leave, each when the last has gone, at every phase of the server's polls."""
    chance = random.Random(0)
    pause = threading.Event()
    visits = []
    for _ in range(num_visits):
        came_s = time.monotonic()
        left_s = leave(chance.uniform(0.0, _POLL_S))
        pause.wait(_PAUSE_S)
        while any(request.num_known > VISITOR_TOKENS for request in inspect().requests):
            pause.wait(_PAUSE_S)
        visits.append(Visit(came_s, left_s, time.monotonic()))
    return visits[1:]  # the first one connected


def check_counted(address: ServerAddress, num_left: int) -> None:
    """Wait until the server has counted all that left as cancelled; raise AssertionError where it does not."""
    give_up_s = time.monotonic() + _COUNTED_S
    with httpx2.Client(mounts=direct_mounts(address.metrics_url)) as http:
        while True:
            samples = scrape(http, address.metrics_url)
            num_counted = samples.sum("bros_requests_total", **{"class": "rt"}, outcome="cancelled")
            if num_counted == num_left:
                return
            assert time.monotonic() < give_up_s, f"{num_left} requests were left, {num_counted} counted as cancelled"
            threading.Event().wait(0.1)


def read_steps(path: Path) -> list[Step]:
    """Return the steps that an engine wrote down."""
    lines = map(json.loads, path.read_text().splitlines())
    return [Step(line["end_s"], sum(start >= VISITOR_TOKENS for start in line["starts"])) for line in lines]


def delay_ms(visit: Visit, steps: Sequence[Step]) -> float:
    """Return the milliseconds from leaving to the end of the last step with the visitor in it."""
    during = [step for step in steps if visit.came_s <= step.end_s <= visit.end_s]
    present = [index for index, step in enumerate(during) if step.num_visitors]
    first, last = present[0], present[-1]
    assert all(step.num_visitors == 1 for step in during[first : last + 1]), "two visitors at once, or one that paused"
    return (during[last].end_s - visit.left_s) * 1e3


# --- the ways to leave ----------------------------------------------------------------------------------------------


@contextmanager
def ways_to_leave(grpc_url: str, http_url: str) -> Iterator[Mapping[str, Leave]]:
    """Connect to a server; yield the ways by name."""
    with Client(grpc_url) as over_grpc, Client(http_url) as over_http:
        transport = GrpcTransport(grpc_url)
        yield {
            "gRPC stream cancelled": partial(close_stream, over_grpc),
            "gRPC client killed": partial(kill_client, grpc_url),
            "HTTP connection closed": partial(close_stream, over_http),
            "request timeout": partial(run_out_of_time, transport),
        }
        transport.close()


def close_stream(client: Client, stay_s: float) -> float:
    """Close a stream that is open: over gRPC the call is cancelled, over HTTP its connection closed."""
    with client.stream(_PROMPT, **_OPTIONS) as stream:
        next(stream)
        threading.Event().wait(stay_s)
        return time.monotonic()


def kill_client(url: str, stay_s: float) -> float:
    """Kill a process that reads a stream: the kernel closes its connection."""
    reads, writes = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_read_on, args=(url, writes), daemon=True)
    process.start()
    reads.recv()
    threading.Event().wait(stay_s)
    left_s = time.monotonic()
    process.kill()
    process.join()
    return left_s


def _read_on(url: str, writes: Connection) -> None:
    with Client(url) as client, client.stream(_PROMPT, **_OPTIONS) as stream:
        next(stream)
        writes.send(None)
        stream.join()


def run_out_of_time(transport: GrpcTransport, stay_s: float) -> float:
    """Let the request's own timeout run out; what the request takes to the server counts as delay."""
    timeout_s = _TIMEOUT_S + stay_s
    call = replace(encode(_PROMPT, _OPTIONS), parameters={"timeout": round(timeout_s * 1e6)})
    left_s = time.monotonic() + timeout_s
    try:
        for _ in transport.stream(call):
            continue
    except CancelledError:
        return left_s
    raise AssertionError("a request outlived its timeout")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.cancel", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cancels", type=whole(), default=30, help="visitors that leave in each way (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result there as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
