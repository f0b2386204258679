"""`bros top`: watch the engine; or record it."""

from __future__ import annotations

import argparse
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx2
import msgspec
from rich.console import Console
from rich.live import Live

from client.client import Client
from client.commands.arguments import Subparsers, add_metrics_url, add_seconds, add_url
from client.errors import ClientError, UnavailableError
from client.health import metrics_url
from client.prometheus import scrape
from client.top.history import Frame, History
from client.top.record import Recording
from client.top.view import render
from client.transports.loopback import direct_mounts

INTERVAL_S = 0.5  # between two looks, unless told otherwise
_TIMEOUT_S = 5.0
_RECORDING_SIZE = (120, 44)  # cells


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "top",
        help="watch the engine",
        description="Watch requests, latencies, steps and the KV pool live. Ctrl-C ends it.",
    )
    add_seconds(parser, "--interval-s", "between two looks", INTERVAL_S)
    add_seconds(parser, "--window-s", "that rates and quantiles cover", 10.0)
    add_seconds(parser, "--for-s", "end after this time", "never")
    parser.add_argument("--json", action="store_true", help="a JSON object per look, of the engine's state")
    parser.add_argument(
        "--svg",
        type=Path,
        metavar="FILE",
        help="after the first --window-s, record an animated SVG for --for-s (required) instead of showing",
    )
    add_url(parser)
    add_metrics_url(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Look, draw, wait, until the time is over or Ctrl-C. Where nobody answers the first look, say so and end."""
    if args.svg and args.for_s is None:
        print("bros: --svg needs --for-s", file=sys.stderr)
        return 2
    history = History(args.window_s)
    url = args.metrics_url or metrics_url(args.url)
    try:
        with Client(args.url) as client, httpx2.Client(timeout=_TIMEOUT_S, mounts=direct_mounts(url or "")) as http:
            looks = _looks(partial(look, client, http, url), args)
            first = next(looks)
            if first.snapshot is None and first.samples is None:
                print(f"bros: {first.problem}", file=sys.stderr)
                return 1
            looks = itertools.chain([first], looks)
            if args.json:
                _print_json(looks)
            elif args.svg:
                _record(looks, history, args.svg, args.interval_s)
            else:
                _show(looks, history)
    except KeyboardInterrupt:
        return 0
    return 0


def look(client: Client, http: httpx2.Client, url: str | None) -> Frame:
    """Ask engine and metrics endpoint once; the frame names what failed."""
    snapshot = samples = None
    problems = []
    try:
        snapshot = client.inspect(timeout_s=_TIMEOUT_S)
    except ClientError as error:
        problems.append(str(error))
    try:
        if url is None:
            raise UnavailableError("where the metrics are does not follow from --url: name them with --metrics-url")
        samples = scrape(http, url)
    except ClientError as error:
        problems.append(str(error))
    return Frame(time.monotonic(), snapshot, samples, "; ".join(problems) or None)


def _looks(look_once: Callable[[], Frame], args: argparse.Namespace) -> Iterator[Frame]:
    """Yield a look every interval; a slow one delays the next, it does not crowd it."""
    lead_s = args.window_s if args.svg else 0.0
    end_s = time.monotonic() + lead_s + (args.for_s or float("inf"))
    pause = threading.Event()
    while (started_s := time.monotonic()) < end_s:
        yield look_once()
        pause.wait(max(0.0, started_s + args.interval_s - time.monotonic()))


def _print_json(looks: Iterator[Frame]) -> None:
    for frame in looks:
        record = {"engine": frame.snapshot, "problem": frame.problem}
        print(msgspec.json.encode(record).decode(), flush=True)


def _show(looks: Iterator[Frame], history: History) -> None:
    console = Console()
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        for frame in looks:
            history.add(frame)
            live.update(render(history, console.width, console.height), refresh=True)


def _record(looks: Iterator[Frame], history: History, path: Path, interval_s: float) -> None:
    """Record once the history covers its window: before, rates and quantiles have nothing to tell."""
    width, height = _RECORDING_SIZE
    recording = Recording(width)
    for frame in looks:
        history.add(frame)
        if history.is_full:
            recording.add(render(history, width, height))
    recording.save(path, interval_s)
    print(f"bros: recorded {path}", file=sys.stderr)
