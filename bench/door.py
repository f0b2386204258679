"""Measures the cost of the front door: the same server over gRPC, and by OpenAI's API through `bros-openai`.

    python -m bench.door [--executor sim|torch] [--threads N] [--rounds N] [--json] [--out FILE] [--profile FILE]

Two numbers: time to first token of one request alone, and output tokens per second of 32 streams at once, of either
class. Each round measures gRPC before and after the front door, which is compared with the mean of both. The bars:
TTFT + 3 ms, and 93 % of the tokens per second. `--profile` runs the front door under cProfile and prints where its
time goes; the figures of such a run are worth nothing else.
"""

from __future__ import annotations

import argparse
import pstats
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backend.config import ExecutorKind
from backend.core.numbers import whole
from backend.core.request import PriorityClass
from backend.launcher.endpoints import choose_endpoints
from backend.launcher.probe import front_answers
from bench.common.command import as_command
from bench.common.output import put_out
from bench.common.provenance import provenance
from bench.live.door import door_client
from bench.live.server import running_server
from bench.overhead import (
    LOOSE_SLO_MS,
    NUM_STREAMS,
    STREAM_TOKENS,
    Flight,
    Send,
    over_grpc,
    serve_arguments,
    together,
    ttft_ms,
    warm_up,
)
from bench.report.overhead import THROUGH_TRITON

GRPC, DOOR, GRPC_AGAIN = "grpc", "door", "grpc_again"
TTFT_BAR_MS, THROUGHPUT_BAR = 3.0, 0.93
_TIERS = {PriorityClass.REAL_TIME: "priority", PriorityClass.BEST_EFFORT: "flex"}
_PROFILE_LINES = 30
_STOP_TIMEOUT_S = 30.0
Round = Mapping[str, Any]


@as_command
def main() -> int:
    """Measure and print; see the module's docstring."""
    options, source = _parser().parse_args(), provenance()  # of the code that runs
    arguments = [*serve_arguments(ExecutorKind(options.executor), options.threads), "--openai-port", "0"]
    with running_server(arguments) as address, over_grpc(address.grpc_url) as ways:
        assert address.openai_url is not None
        with _front(options.profile, address.grpc_url, address.openai_url) as url, door_client(url) as post:

            def send(prompt: Sequence[int], num_tokens: int, priority_class: PriorityClass) -> Flight:
                flight = Flight()
                post(_body(prompt, num_tokens, priority_class), flight.note)
                return flight

            rounds = measure({GRPC: ways[THROUGH_TRITON], DOOR: send}, options.rounds)
    if options.profile is not None:
        pstats.Stats(str(options.profile)).sort_stats("tottime").print_stats(_PROFILE_LINES)
    setup = {"executor": options.executor, "num_streams": NUM_STREAMS, "output_tokens": STREAM_TOKENS}
    result = {**setup, **compare(rounds), "rounds": rounds, "provenance": source}
    put_out(result, options, describe)
    return 0


def measure(ways: Mapping[str, Send], num_rounds: int) -> list[Round]:
    """Return what each round saw: gRPC, the front door, and gRPC once more."""
    warm_up(ways)
    laps = {**ways, GRPC_AGAIN: ways[GRPC]}
    return [
        {
            "ttft_ms": ttft_ms(laps),
            **{each.value: {way: together(send, each) for way, send in laps.items()} for each in PriorityClass},
        }
        for _ in range(num_rounds)
    ]


def compare(rounds: Sequence[Round]) -> dict[str, Any]:
    """Return medians over the rounds: what the front door adds to the TTFT, and its part of gRPC's throughput."""
    classes = [each.value for each in PriorityClass]
    return {
        "num_rounds": len(rounds),
        "ttft_ms": {way: _median(each["ttft_ms"][way] for each in rounds) for way in (GRPC, DOOR, GRPC_AGAIN)},
        "added_ttft_ms": _median(each["ttft_ms"][DOOR] - _direct(each["ttft_ms"]) for each in rounds),
        "tokens_per_s": {
            name: {way: _median(e[name][way] for e in rounds) for way in (GRPC, DOOR)} for name in classes
        },
        "throughput_ratio": {name: _median(e[name][DOOR] / _direct(e[name]) for e in rounds) for name in classes},
        "noise_ratio": {name: _median(e[name][GRPC_AGAIN] / e[name][GRPC] for e in rounds) for name in classes},
    }


def describe(result: Mapping[str, Any]) -> str:
    """Return the result in words, with its bars."""
    added_ms = result["added_ttft_ms"]
    lines = [
        f"executor {result['executor']}, {result['num_rounds']} rounds of {result['num_streams']} streams",
        f"TTFT alone: gRPC {result['ttft_ms'][GRPC]:.1f} ms, front door {added_ms:+.1f} ms (bar {TTFT_BAR_MS:+g} ms)",
    ]
    for name, rates in result["tokens_per_s"].items():
        ratio, noise = result["throughput_ratio"][name], result["noise_ratio"][name]
        words = f"front door {ratio:.1%} (bar {THROUGHPUT_BAR:.0%}), gRPC again {noise:.1%}"
        lines.append(f"{name}: gRPC {rates[GRPC]:.0f} tokens/s, {words}")
    return "\n".join(lines)


def _direct(seen: Mapping[str, float]) -> float:
    return (seen[GRPC] + seen[GRPC_AGAIN]) / 2


def _median(values: Iterator[float]) -> float:
    return statistics.median(values)


def _body(prompt: Sequence[int], num_tokens: int, priority_class: PriorityClass) -> dict[str, Any]:
    body: dict[str, Any] = {
        "prompt": list(prompt),
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "service_tier": _TIERS[priority_class],
    }
    if priority_class is PriorityClass.REAL_TIME:
        body |= {"ttft_slo_ms": LOOSE_SLO_MS, "tpot_slo_ms": LOOSE_SLO_MS}
    return body


@contextmanager
def _front(profile: Path | None, grpc_url: str, openai_url: str) -> Iterator[str]:
    """Yield the URL of the launch's front door, or of another of its kind that runs under cProfile."""
    if profile is None:
        yield openai_url
        return
    port = choose_endpoints("127.0.0.1", {"http": 0, "grpc": 0, "metrics": 0, "openai": 0}).openai_port
    command = [sys.executable, "-m", "cProfile", "-o", str(profile), "-m", "front.main"]
    with subprocess.Popen([*command, "--triton", f"grpc://{grpc_url}", "--port", str(port)]) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            while not front_answers(url):
                assert process.poll() is None, "the front door ended"
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(_STOP_TIMEOUT_S)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.door", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--executor", choices=["torch", "sim"], default="sim", help="(default: %(default)s)")
    parser.add_argument("--threads", type=whole(), default=1, help="of the torch engine (default: %(default)s)")
    parser.add_argument("--rounds", type=whole(), default=5, help="rounds to measure (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result there as JSON")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="of the front door, as cProfile writes it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
