"""`bros`: the command line over this package. Data on stdout, words on stderr; exit 0 done, 1 failed, 2 misused."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from client.commands import batch, chat, generate, status, top
from client.errors import ClientError
from client.terminal import printable
from client.transports import UrlError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Ctrl-C cancels open requests and counts as a failure."""
    args = make_parser().parse_args(arguments)
    try:
        return int(args.run(args))
    except ClientError as error:
        print(printable(f"bros: {error}"), file=sys.stderr)
    except UrlError as error:
        print(f"bros: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nbros: interrupted", file=sys.stderr)
    except BrokenPipeError:  # the reader of our output has gone; so that the flush at exit finds no pipe either:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a file that cannot be read or written
        print(f"bros: {error}", file=sys.stderr)
    return 1


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="bros",
        description="Real-time (rt) and best-effort (be) LLM requests to a Triton server with the bros models.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in (generate, chat, batch, status, top):
        command.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
