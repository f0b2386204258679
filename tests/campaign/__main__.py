"""The command line of the campaign; see the package."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from backend.core.numbers import positive, whole
from bench.common.command import CommandError, UsageError, as_command, read_part
from bench.common.provenance import provenance
from tests.campaign import __doc__ as PACKAGE
from tests.campaign.canary import canary
from tests.campaign.course import Course
from tests.campaign.grammar import make_case
from tests.campaign.house import House, HouseError
from tests.campaign.phases import PHASES
from tests.campaign.places import SkippedError
from tests.campaign.report import OUT, table
from tests.campaign.request_paths import GrpcPath
from tests.campaign.wire import send, wrong_with


@as_command
def main(arguments: list[str] | None = None) -> int:
    """Run the chosen phases, print their table; return 1 where there was a fault or an interruption."""
    args = _parser().parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if args.replay is not None:
        return asyncio.run(_replay(args.seed, args.replay))
    names = args.only or list(PHASES)
    before = _phases_before(args)
    results: dict[str, Any] = {}
    was_interrupted = False
    try:
        for name in names:
            run_phase(name, args, results)
    except KeyboardInterrupt:
        was_interrupted = True
        print("interrupted: what ran is reported, every server is stopped", file=sys.stderr)
    document = _document(args.seed, before, results)
    if args.out is not None:
        args.out.write_text(json.dumps(document, indent=1) + "\n")
    print(table(document))
    return 1 if was_interrupted or any(result.get("num_faults") for result in results.values()) else 0


def run_phase(name: str, args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Run a phase on a server of its own; its result is in `results` also where it was interrupted."""
    phase = PHASES[name]
    num = phase.short if args.short else phase.full
    if args.seconds is not None and phase.unit == "seconds":
        num = round(args.seconds)
    house = House(phase.options)
    until_s = time.monotonic() + (args.seconds or float("inf"))
    course = Course(name, house, args.seed, num, until_s, random.Random(f"{args.seed}/{name}"))
    was_interrupted = True
    try:
        house.start()
        asyncio.run(phase.run(course))
        was_interrupted = False
    except SkippedError as error:
        print(f"{name}: SKIPPED: {error}", file=sys.stderr)
        course.facts["skipped"] = str(error)
        was_interrupted = False
    except HouseError as error:
        course.fault("no server", str(error)[-600:])
    except OSError as error:  # a phase that cannot go on must not hide what the others find
        course.fault("the phase broke off", f"{type(error).__name__}: {error}")
    finally:
        house.close()
        results[name] = course.result(phase.allowed, was_interrupted) | {"unit": phase.unit}


def _phases_before(args: argparse.Namespace) -> dict[str, Any]:
    """Return the phases that `--out` keeps, before an hour is spent. Raises UsageError where it is another file."""
    if args.out is None:
        return {}
    if not args.out.parent.is_dir():
        raise UsageError(f"--out {args.out}: there is no folder {args.out.parent}")
    has_more = args.only and args.out.exists()
    return dict(read_part("--out", args.out, "phases")) if has_more else {}


def _document(seed: int, before: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Return the results with where they come from, and the phases of `before` that were not run anew."""
    run = {name: {**result, "provenance": provenance(), "seed": seed} for name, result in results.items()}
    phases = before | run
    return {
        "provenance": provenance(),
        "seed": seed,
        "phases": {name: phases[name] for name in PHASES if name in phases},
    }


async def _replay(seed: int, number: int) -> int:
    """Send one case of phase `wire` to a server of its own; print the case and its answer."""
    case = make_case(seed, number)
    print(f"{case.request_path}: {case.words}\n{case.data[:2_000]!r}")
    house = House()
    try:
        try:
            house.start()
        except HouseError as error:
            raise CommandError(f"no server: {error}") from error
        request_path = GrpcPath(house.grpc_url)
        reply = await send(house.http_port, request_path, case)
        await request_path.close()
        print(reply)
        words = wrong_with(case, reply) or await canary(house)
    finally:
        house.close()
    print(f"FAULT: {words}" if words else "as it should be")
    return 1 if words else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaign", description=PACKAGE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="every phase, small: minutes")
    parser.add_argument(
        "--only", action="append", choices=list(PHASES), metavar="PHASE", help="this phase (repeatable)"
    )
    parser.add_argument(
        "--seconds",
        type=positive,
        metavar="S",
        help="limit of each phase, and length of the soak (default: each phase's own)",
    )
    parser.add_argument("--seed", type=whole(0), default=0, help="default: %(default)s")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"result as JSON, e.g. {OUT}; with --only its other phases are kept"
    )
    parser.add_argument(
        "--replay", type=whole(0), metavar="NUMBER", help="send one case of phase `wire`, and nothing else"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
