"""Measures what share of the engine's time `bros top` costs: short windows with and without it, on a loaded server.

    python -m bench.watch --executor sim [--out bench/results/watch.json]

One server, a constant number of decoding requests, and one `bros top` as a user starts it, stopped (SIGSTOP) in every
second window. It looks ten times as often as usual, because a look costs less than the noise of a busy machine. The
result is one look's processor time, and its share of the time between two looks at the usual interval. The time is the
engine process's own, from the kernel's nanosecond counts, per step. Other work on the machine and slower steps do not
count. The simulated executor has 25,000 blocks to show, as many as a large GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # ships no types

from backend.core.numbers import positive, whole
from bench.common.command import as_command
from bench.common.intervals import mean_interval, ratio_interval
from bench.common.provenance import provenance
from bench.live.server import running_server
from client import AsyncClient, Client
from client.commands.top import INTERVAL_S

PROMPT_TOKENS, OUTPUT_TOKENS = 64, 4_000
SIM_STEP_S = 0.02
_EAGERNESS = 10  # looks for each usual one
_SETTLE_S = 5.0  # until all requests decode and `bros top` has started
_EXECUTORS: dict[str, tuple[int, list[str]]] = {  # requests, arguments of bros-serve
    "torch": (16, ["--kv-tokens", "65536"]),
    "sim": (64, ["--set", f"sim.coefficients=[{SIM_STEP_S}, 0, 0, 0, 0]", "--set", "sim.num_blocks=25000"]),
}


@dataclass(frozen=True, slots=True)
class Window:
    """What the engine did: its steps, its processor time in seconds, and how often it was looked at."""

    num_steps: int
    cpu_s: float
    num_looks: int

    @property
    def cpu_per_step_s(self) -> float:
        return self.cpu_s / self.num_steps


@as_command
def main() -> int:
    """Measure and print; see the module's docstring."""
    options = _parser().parse_args()
    num_requests, arguments = _EXECUTORS[options.executor]
    with (
        running_server(["--executor", options.executor, *arguments]) as address,
        Client(address.grpc_url) as client,
        load(address.grpc_url, num_requests),
        top(address.grpc_url, address.metrics_url) as watcher,
    ):
        threading.Event().wait(_SETTLE_S)
        pairs = measure(client, watcher, options.pairs, options.window_s)
    result = {"executor": options.executor, "num_requests": num_requests, **score(pairs)}
    if options.out is not None:
        options.out.write_text(json.dumps({**result, "provenance": provenance()}, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 0


@contextmanager
def load(url: str, num_requests: int) -> Iterator[None]:
    """Keep that many best-effort requests decoding, from a thread of its own."""

    async def keep_one_open(client: AsyncClient, seed: int) -> None:
        while True:
            prompt = [1_000 + seed] * PROMPT_TOKENS
            await client.generate(prompt, priority_class="be", max_tokens=OUTPUT_TOKENS, ignore_eos=True)

    async def keep_all_open() -> None:
        async with AsyncClient(url) as client:
            await asyncio.gather(*(keep_one_open(client, seed) for seed in range(num_requests)))

    loop = asyncio.new_event_loop()
    task = loop.create_task(keep_all_open())
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.wait([task])))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()


@dataclass(frozen=True, slots=True)
class Watcher:
    """A running `bros top` and the lines that it printed, one a look."""

    process: subprocess.Popen[bytes]
    lines: Path

    def num_looks(self) -> int:
        return self.lines.read_bytes().count(b"\n")


@contextmanager
def top(url: str, metrics_url: str) -> Iterator[Watcher]:
    """Run `bros top`."""
    command = [sys.executable, "-m", "client.cli", "top", "--url", url, "--metrics-url", metrics_url]
    with tempfile.NamedTemporaryFile() as lines:
        process = subprocess.Popen([*command, "--json", "--interval-s", str(INTERVAL_S / _EAGERNESS)], stdout=lines)
        with process:
            try:
                yield Watcher(process, Path(lines.name))
            finally:
                process.kill()


def measure(client: Client, watcher: Watcher, num_pairs: int, window_s: float) -> list[dict[str, Window]]:
    """Return pairs of windows, `watched` and `alone`, the order changing from pair to pair: drifts cancel."""
    (engine,) = (
        process
        for process in psutil.Process().children(recursive=True)
        if "backend.server.engine_process" in process.cmdline()
    )
    signals = {"watched": signal.SIGCONT, "alone": signal.SIGSTOP}
    pairs = []
    for index in range(num_pairs):
        pair = {}
        for name in sorted(signals, reverse=bool(index % 2)):
            watcher.process.send_signal(signals[name])
            before = Window(client.inspect().total_steps, cpu_s(engine.pid), watcher.num_looks())
            threading.Event().wait(window_s)
            after = Window(client.inspect().total_steps, cpu_s(engine.pid), watcher.num_looks())
            pair[name] = Window(
                after.num_steps - before.num_steps, after.cpu_s - before.cpu_s, after.num_looks - before.num_looks
            )
        assert watcher.process.poll() is None, "`bros top` ended"
        pairs.append(pair)
    watcher.process.send_signal(signal.SIGCONT)
    return pairs


def cpu_s(pid: int) -> float:
    """Return the processor time of a process in seconds, from the scheduler's counts of its threads."""
    counts = (path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(count.split()[0]) for count in counts) * 1e-9


def score(pairs: Sequence[dict[str, Window]]) -> dict[str, Any]:
    """Return what a look costs, in processor time and as a share of the usual time to the next one.

    steps_ratio: steps watched over steps alone, under all these looks, whoever took the processor from the engine.
    """
    looks_s = [
        (pair["watched"].cpu_per_step_s - pair["alone"].cpu_per_step_s)
        * pair["watched"].num_steps
        / pair["watched"].num_looks
        for pair in pairs
    ]
    steps = ratio_interval([p["watched"].num_steps for p in pairs], [p["alone"].num_steps for p in pairs])
    return {
        "num_pairs": len(pairs),
        "num_looks": sum(pair["watched"].num_looks for pair in pairs),
        "cpu_ms_per_step_alone": mean_interval([p["alone"].cpu_per_step_s * 1e3 for p in pairs]).estimate,
        "cpu_ms_per_look": asdict(mean_interval([look_s * 1e3 for look_s in looks_s])),
        "cost_ratio": asdict(mean_interval([look_s / INTERVAL_S for look_s in looks_s])),
        "steps_ratio": asdict(steps),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.watch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--executor", choices=sorted(_EXECUTORS), default="torch", help="(default: %(default)s)")
    parser.add_argument(
        "--pairs", type=whole(2), default=12, help="of windows, at least 2 for an interval (default: %(default)s)"
    )
    parser.add_argument("--window-s", type=positive, default=2.0, help="length of a window (default: %(default)s s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result there as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
