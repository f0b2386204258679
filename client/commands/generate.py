"""`bros generate`: stream one answer to the terminal."""

from __future__ import annotations

import argparse
import sys

import msgspec

from client.client import Client
from client.commands.arguments import Subparsers, add_sampling, add_seconds, add_slos, add_url, options_from
from client.generation import Chunk, Message, Prompt
from client.retry import Retry
from client.terminal import for_output


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = commands.add_parser("generate", help="stream one answer", description="Stream one answer to stdout.")
    parser.add_argument("prompt", help="text that the model continues; - reads it from stdin")
    parser.add_argument("--chat", action="store_true", help="put the prompt through the model's chat template")
    parser.add_argument(
        "--class",
        dest="priority_class",
        choices=("rt", "be"),
        default="rt",
        help="class of service (default: %(default)s)",
    )
    add_slos(parser)
    add_seconds(parser, "--deadline-s", "be: finish by, from now", "none")
    add_seconds(parser, "--timeout-s", "cancel after this time", "never")
    add_sampling(parser, max_tokens=128)
    parser.add_argument("--json", action="store_true", help="a JSON object per chunk, the last with metrics (seconds)")
    add_url(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Stream the answer; say on stderr how it went."""
    text: str = sys.stdin.read() if args.prompt == "-" else args.prompt
    prompt: Prompt = [Message(role="user", content=text)] if args.chat else text
    with (
        Client(args.url, retry=Retry(max_attempts=5)) as client,
        client.stream(prompt, **options_from(args)) as stream,
    ):
        for chunk in stream:
            sys.stdout.write(msgspec.json.encode(chunk).decode() + "\n" if args.json else for_output(chunk.text))
            sys.stdout.flush()
    if not args.json:
        sys.stdout.write("\n")
        print(describe(chunk), file=sys.stderr)
    return 0


def describe(last: Chunk) -> str:
    """Return a line about a finished answer."""
    if last.metrics is None:
        return f"[{last.finish_reason}]"
    facts = [str(last.finish_reason), f"{last.metrics.num_output_tokens} tokens"]
    if last.metrics.ttft_s is not None:
        facts.append(f"TTFT {last.metrics.ttft_s:.3f} s")
    if last.metrics.tpot_s is not None:
        facts.append(f"TPOT {last.metrics.tpot_s:.3f} s")
    if last.metrics.num_preemptions:
        facts.append(f"preempted {last.metrics.num_preemptions} times")
    if last.metrics.has_hopeless_slo:
        facts.append("SLO below what the server can do alone")
    return f"[{', '.join(facts)}]"
