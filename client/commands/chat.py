"""`bros chat`: talk to the model, real-time. Ctrl-C ends an answer, Ctrl-D the talk."""

from __future__ import annotations

import argparse
import sys

from client.client import Client
from client.commands.arguments import Subparsers, add_sampling, add_slos, add_url, options_from
from client.commands.generate import describe
from client.errors import ClientError
from client.generation import Chunk, Message, Options
from client.retry import Retry
from client.terminal import for_output, printable

_CLEAR = "/clear"


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "chat",
        help="talk to the model",
        description=f"Talk to the model, real-time. Ctrl-C ends an answer, Ctrl-D the talk; {_CLEAR} forgets it.",
    )
    parser.add_argument("--system", help="a system message that stands before the talk (default: none)")
    add_slos(parser)
    add_sampling(parser, max_tokens=512)
    add_url(parser)
    parser.set_defaults(run=run, priority_class="rt")


def run(args: argparse.Namespace) -> int:
    """Read a line, stream its answer, until the end of input."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 (importing it gives `input` editing and history)

    system = [Message(role="system", content=args.system)] if args.system else []
    messages = list(system)
    with Client(args.url, retry=Retry(max_attempts=5)) as client:
        while (line := _read_line()) is not None:
            if line == _CLEAR:
                messages = list(system)
            elif line:
                asked = [*messages, Message(role="user", content=line)]
                if answer := _answer(client, asked, options_from(args)):  # a message without an answer is forgotten
                    messages = [*asked, Message(role="assistant", content=answer)]
    return 0


def _read_line() -> str | None:
    """Return a line without its ends; None at the end of input. Ctrl-C drops the typed text."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "").strip()
        except KeyboardInterrupt:
            print()
        except EOFError:
            return None


def _answer(client: Client, messages: list[Message], options: Options) -> str:
    """Stream the answer and return it, as far as it came: Ctrl-C cancels the rest, on the server too."""
    text, last, words = "", Chunk("", []), ""
    try:
        with client.stream(messages, **options) as stream:
            for last in stream:
                text += last.text
                print(for_output(last.text), end="", flush=True)
        words = describe(last)
    except KeyboardInterrupt:
        words = "[cancelled]"
    except ClientError as error:
        words = printable(f"bros: {error}")
    print()
    print(words, file=sys.stderr)
    return text
