"""`bros status`: is the server there, are the models ready, what does the engine do."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

import msgspec

from client.client import Client
from client.commands.arguments import Subparsers, add_url
from client.errors import ClientError, InvalidRequestError
from client.health import Readiness, ask_readiness
from client.snapshot import Snapshot
from client.terminal import for_output, printable

_TIMEOUT_S = 5.0
_CANARY_TIMEOUT_S = 30.0


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "status",
        help="show whether the server is ready, and its models",
        description="Ask the server and its engine how they are; 0 when ready.",
    )
    add_url(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the status; 0 when server, models and engine are ready."""
    readiness = ask_readiness(args.url)
    if readiness.is_live:
        with Client(args.url) as client:
            snapshot, problem = ask_engine(client)
    else:
        snapshot, problem = None, f"no server at {args.url}"
    if args.json:
        engine = msgspec.to_builtins(snapshot) if snapshot else None
        print(json.dumps({**asdict(readiness), "engine": engine, "problem": problem}))
    else:
        print(for_output(describe(readiness, snapshot)))
        if problem:
            print(printable(f"bros: {problem}"), file=sys.stderr)
    return 0 if readiness.is_ready and all(readiness.ready_models.values()) and problem is None else 1


def ask_engine(client: Client) -> tuple[Snapshot | None, str | None]:
    """Return the engine's state, None if the server does not allow the question; and the problem, or None.

    Triton's own health stays good with a dead engine. An engine that may not be asked therefore has to produce a token.
    """
    try:
        return client.inspect(timeout_s=_TIMEOUT_S), None
    except InvalidRequestError:
        pass
    except ClientError as error:
        return None, str(error)
    try:
        client.generate("ping", max_tokens=1, priority_class="rt", timeout_s=_CANARY_TIMEOUT_S)
        return None, None
    except ClientError as error:
        return None, str(error)


def describe(readiness: Readiness, snapshot: Snapshot | None) -> str:
    """Return the status in a few lines."""
    words = {True: "ready", False: "not ready"}
    lines = [f"server  {words[readiness.is_ready] if readiness.is_live else 'down'}"]
    lines += [f"{model:<7} {words[is_ready]}" for model, is_ready in readiness.ready_models.items()]
    if snapshot is not None:
        num_slots = snapshot.kv.num_blocks * snapshot.kv.block_size
        lines.append(f"policy  {snapshot.policy}")
        lines += [
            f"{name:<7} {now.num_running} running, {now.num_waiting} waiting, {now.num_preempted} preempted"
            for name, now in snapshot.requests_by_class.items()
        ]
        rt, be, cached = map(sum, (snapshot.kv.head_fill, snapshot.kv.tail_fill, snapshot.kv.cached_fill))
        lines.append(f"kv      rt {rt}, be {be}, cached {cached} of {num_slots} slots")
        lines += [f"engine  {fact}" for fact in snapshot.facts]
    return "\n".join(lines)
