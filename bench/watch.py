"""What `bros top` costs the engine that it watches: short windows with and without it, on a real server under load.

    python -m bench.watch [--executor torch|sim] [--out bench/results/watch.json]

One server, a constant number of decoding requests, and one `bros top` as a user starts it, which is stopped (SIGSTOP)
in every second window. Processor time is the engine process's own, from the kernel's nanosecond counts, so that other
work on the machine does not enter; its ratio per step, between the two windows of a pair, is the cost. The simulated
executor only sleeps, so that its engine's time is all scheduling: there the cost is told as a share of the step's time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # ships no types

from bench.intervals import Interval, mean_interval, ratio_interval
from bench.provenance import provenance
from bench.server import running_server
from client import AsyncClient, Client

PROMPT_TOKENS, OUTPUT_TOKENS = 64, 4_000
SIM_STEP_S = 0.02
_SETTLE_S = 5.0  # until all requests decode and `bros top` has started
_EXECUTORS: dict[str, tuple[int, list[str]]] = {  # requests, arguments of bros-serve
    "torch": (16, ["--kv-tokens", "65536"]),
    "sim": (64, ["--set", f"sim.coefficients=[{SIM_STEP_S}, 0, 0, 0, 0]", "--set", "sim.num_blocks=25000"]),
}


@dataclass(frozen=True, slots=True)
class Window:
    """What the engine did: its steps and its processor time in seconds."""

    num_steps: int
    cpu_s: float

    @property
    def cpu_per_step_s(self) -> float:
        return self.cpu_s / self.num_steps


def main() -> int:
    """Measure and print; see the module's docstring."""
    options = _parser().parse_args()
    num_requests, arguments = _EXECUTORS[options.executor]
    with running_server(["--executor", options.executor, *arguments]) as address:
        client = Client(address.grpc_url)
        with client, load(address.grpc_url, num_requests), top(address.grpc_url, address.metrics_url) as watcher:
            threading.Event().wait(_SETTLE_S)
            pairs = measure(client, watcher, options.pairs, options.window_s)
    result = {"executor": options.executor, "num_requests": num_requests, **score(pairs, options.window_s)}
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


@contextmanager
def top(url: str, metrics_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `bros top` with its default interval."""
    command = [sys.executable, "-m", "client.cli", "top", "--url", url, "--metrics-url", metrics_url]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def measure(
    client: Client, watcher: subprocess.Popen[bytes], num_pairs: int, window_s: float
) -> list[dict[str, Window]]:
    """Return pairs of windows, `watched` and `alone`, the order changing from pair to pair: drifts cancel."""
    (engine,) = (
        process
        for process in psutil.Process().children(recursive=True)
        if "backend.engine_process" in process.cmdline()
    )
    signals = {"watched": signal.SIGCONT, "alone": signal.SIGSTOP}
    pairs = []
    for index in range(num_pairs):
        pair = {}
        for name in sorted(signals, reverse=bool(index % 2)):
            watcher.send_signal(signals[name])
            steps_before, cpu_before_s = client.inspect().total_steps, cpu_s(engine.pid)
            threading.Event().wait(window_s)
            pair[name] = Window(client.inspect().total_steps - steps_before, cpu_s(engine.pid) - cpu_before_s)
        assert watcher.poll() is None, "`bros top` ended"
        pairs.append(pair)
    watcher.send_signal(signal.SIGCONT)
    return pairs


def cpu_s(pid: int) -> float:
    """Return the processor time of a process in seconds, from the scheduler's counts of its threads."""
    counts = (path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(count.split()[0]) for count in counts) * 1e-9


def score(pairs: Sequence[dict[str, Window]], window_s: float) -> dict[str, Any]:
    """Return the cost: as a ratio of processor time per step, and as a share of the time that passes."""
    watched, alone = ([pair[name] for pair in pairs] for name in ("watched", "alone"))
    ratio = ratio_interval([w.cpu_per_step_s for w in watched], [w.cpu_per_step_s for w in alone])
    added = [
        (w.cpu_per_step_s - a.cpu_per_step_s) * a.num_steps / window_s for w, a in zip(watched, alone, strict=True)
    ]
    steps = ratio_interval([w.num_steps for w in watched], [a.num_steps for a in alone])
    return {
        "num_pairs": len(pairs),
        "window_s": window_s,
        "cpu_ms_per_step": {
            "alone": mean_interval([a.cpu_per_step_s * 1e3 for a in alone]).estimate,
            "watched": mean_interval([w.cpu_per_step_s * 1e3 for w in watched]).estimate,
        },
        "added_cpu_per_step_ratio": asdict(Interval(ratio.estimate - 1, ratio.low - 1, ratio.high - 1)),
        "added_share_of_time_ratio": asdict(mean_interval(added)),
        "steps_ratio": asdict(steps),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.watch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--executor", choices=sorted(_EXECUTORS), default="torch", help="(default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=12, help="of windows (default: %(default)s)")
    parser.add_argument("--window-s", type=float, default=2.0, help="length of a window (default: %(default)s s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result there as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
