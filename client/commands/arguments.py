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


def add_seconds(parser: argparse.ArgumentParser, flag: str, help: str, default: float | str) -> None:
    """Declare a time in seconds; `default` is a number, or words for what happens without one."""
    value = default if isinstance(default, float) else None
    parser.add_argument(flag, type=_seconds, metavar="S", default=value, help=f"{help}, seconds (default: {default})")


def add_count(parser: argparse.ArgumentParser, flag: str, help: str, default: int) -> None:
    """Declare a whole number of at least 1."""
    parser.add_argument(flag, type=_count, metavar="N", default=default, help=f"{help} (default: {default})")


def add_url(parser: argparse.ArgumentParser) -> None:
    """Declare where the server is."""
    schemes = "[grpc://]host:port, grpcs://…, http://…, https://…, or fake:// for none"
    parser.add_argument("--url", default=wire.DEFAULT_GRPC_URL, help=f"server: {schemes} (default: %(default)s)")


def add_metrics_url(parser: argparse.ArgumentParser) -> None:
    """Declare where the server's metrics are."""
    parser.add_argument(
        "--metrics-url",
        help="Triton's metrics endpoint (default: that of --url, by the distance of bros-serve's ports)",
    )


def add_slos(parser: argparse.ArgumentParser) -> None:
    """Declare the objectives of real-time requests."""
    add_seconds(parser, "--ttft-slo-s", "rt: time to first token", "the server's")
    add_seconds(parser, "--tpot-slo-s", "rt: mean time per further token", "the server's")
    add_seconds(parser, "--itl-slo-s", "rt: longest gap between two tokens", "none")


def add_sampling(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    """Declare how tokens are chosen, and how many."""
    add_count(parser, "--max-tokens", "output tokens at most", max_tokens)
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (default: the server's)")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample among tokens of this probability (default: 1)")
    parser.add_argument("--seed", type=int, metavar="N", help="same seed, same tokens (default: random)")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end before this string; may be given again")


def options_from(args: argparse.Namespace) -> Options:
    """Return the options that were given on the command line."""
    given = {name: getattr(args, name, None) for name in _OPTIONS}
    return cast(Options, {name: value for name, value in given.items() if value is not None})


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    if value > wire.MAX_S:
        raise argparse.ArgumentTypeError(f"{text} exceeds {wire.MAX_S} seconds, which are 30 days")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value
