"""`bros batch`: a file of best-effort requests, OpenAI's batch format in and out."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from client.batch.results import Results, count_lines, open_results
from client.batch.run import BatchSettings, run_batch
from client.batch.sender import OVERLOAD_RETRY
from client.client import AsyncClient
from client.commands.arguments import Subparsers, add_count, add_seconds, add_url


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "batch",
        help="run a file of requests as best-effort",
        description="Run a file of requests as best-effort. Start an interrupted batch again to continue it.",
    )
    parser.add_argument("input", type=Path, help="requests, a JSON object per line (OpenAI's batch format)")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", required=True, help="answers, in the order in which they finish"
    )
    parser.add_argument(
        "--errors",
        type=Path,
        metavar="FILE",
        help="requests that failed; delete it to try them again (default: OUT.errors.jsonl beside OUT.jsonl)",
    )
    add_count(parser, "--concurrency", "requests open at once", 32)
    add_count(parser, "--max-tokens", "output tokens of lines that name no number", 256)
    add_seconds(parser, "--finish-by-s", "deadline of every request, counted from now", "none")
    add_url(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the batch; 1 when some requests failed."""
    if not args.input.is_file():
        print(f"bros: {args.input}: no such file", file=sys.stderr)
        return 2
    if args.output.is_dir():
        print(f"bros: {args.output}: a folder; name a file", file=sys.stderr)
        return 2
    settings = BatchSettings(args.concurrency, args.max_tokens, args.finish_by_s)
    errors = args.errors or args.output.with_name(f"{args.output.name.removesuffix('.jsonl')}.errors.jsonl")
    for path in (args.output, errors):
        if path.resolve() == args.input.resolve():
            print(f"bros: {path}: the input, and to be written: name another file", file=sys.stderr)
            return 2
    with open_results(args.output, errors) as results:
        num_before, started_s = results.num_done, time.monotonic()
        num_tokens = asyncio.run(_run_shown(args.url, args.input, results, settings))
        elapsed_s = time.monotonic() - started_s
        num_new, num_failed = results.num_done - num_before, results.num_failed
    requests = f"{num_new} requests" + (f" ({num_before} were done before)" if num_before else "")
    rate = f"{num_tokens} tokens in {elapsed_s:.1f} s, {num_tokens / elapsed_s:.0f} tokens/s"
    print(f"bros: {requests}, {rate}", file=sys.stderr)
    if num_failed:
        print(f"bros: {num_failed} requests failed, see {errors}", file=sys.stderr)
    return 1 if num_failed else 0


async def _run_shown(url: str, source: Path, results: Results, settings: BatchSettings) -> int:
    """Run with a progress bar on stderr; return the number of output tokens."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f} tokens/s"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("batch", total=count_lines(source), completed=results.num_done, rate=0.0)
        num_tokens, started_s = 0, time.monotonic()

        def on_result(num_output: int) -> None:
            nonlocal num_tokens
            num_tokens += num_output
            progress.update(task, advance=1, rate=num_tokens / (time.monotonic() - started_s))

        async with AsyncClient(url, retry=OVERLOAD_RETRY) as client:
            await run_batch(client, source, results, settings, on_result)
    return num_tokens
