"""Arguments that several commands share, and their meaning as `Options`."""

from __future__ import annotations

import argparse
from typing import TypeAlias, cast

from client import wire
from client.generation import Options

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # argparse has no public name for it

_OPTIONS = (
    "priority_class",
    "ttft_slo_s",
    "tpot_slo_s",
    "itl_slo_s",
    "deadline_s",
    "timeout_s",
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
)


def add_url(parser: argparse.ArgumentParser) -> None:
    """Declare where the server is."""
    parser.add_argument(
        "--url",
        default=wire.DEFAULT_GRPC_URL,
        help="server: [grpc://]host:port, grpcs://…, http://…, https://…, or fake:// for none (default: %(default)s)",
    )


def add_metrics_url(parser: argparse.ArgumentParser) -> None:
    """Declare where the server's metrics are."""
    parser.add_argument(
        "--metrics-url", default=wire.DEFAULT_METRICS_URL, help="Triton's metrics endpoint (default: %(default)s)"
    )


def add_slos(parser: argparse.ArgumentParser) -> None:
    """Declare the objectives of real-time requests."""
    parser.add_argument("--ttft-slo-s", type=seconds, help="rt: time to first token, seconds (default: the server's)")
    parser.add_argument(
        "--tpot-slo-s", type=seconds, help="rt: mean time per further token, seconds (default: the server's)"
    )
    parser.add_argument("--itl-slo-s", type=seconds, help="rt: longest gap between two tokens, seconds (default: none)")


def add_sampling(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    """Declare how tokens are chosen, and how many."""
    parser.add_argument(
        "--max-tokens", type=count, default=max_tokens, help="output tokens at most (default: %(default)s)"
    )
    parser.add_argument("--temperature", type=float, help="0 is greedy (default: the server's)")
    parser.add_argument("--top-p", type=float, help="sample among tokens of this total probability (default: 1)")
    parser.add_argument("--seed", type=int, help="same seed, same tokens (default: random)")
    parser.add_argument("--stop", action="append", help="the output ends before this string; may be given again")


def options_from(args: argparse.Namespace) -> Options:
    """Return the options that were given on the command line."""
    given = {name: getattr(args, name, None) for name in _OPTIONS}
    return cast(Options, {name: value for name, value in given.items() if value is not None})


def seconds(text: str) -> float:
    """Parse a positive number of seconds."""
    value = float(text)
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def count(text: str) -> int:
    """Parse a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value
