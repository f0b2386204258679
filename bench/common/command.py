"""How the commands of bench/, tools/ and tests/ end when they cannot go on: with one line, and no traceback."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

INTERRUPTED = 130  # what a shell reports of a command that SIGINT ended: 128 + 2
Arguments = ParamSpec("Arguments")
Status = TypeVar("Status")


class CommandError(Exception):
    """The command cannot go on; the message is for a person. Exit status 1."""

    status = 1


class UsageError(CommandError):
    """An option names what the command cannot take. Exit status 2."""

    status = 2


def as_command(main: Callable[Arguments, Status]) -> Callable[Arguments, Status]:
    """Let `main` end with one line and an exit status after Ctrl-C and after a CommandError."""

    @wraps(main)
    def run(*arguments: Arguments.args, **named: Arguments.kwargs) -> Status:
        try:
            return main(*arguments, **named)
        except (KeyboardInterrupt, SystemError) as error:
            if not _is_interrupt(error):
                raise
            print("interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except CommandError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.status)

    return run


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether Ctrl-C is behind an error: code compiled by numba may turn it into a SystemError."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _is_interrupt(error.__cause__))


def read_json(option: str, path: Path) -> Any:
    """Return the contents of the JSON file that `option` names. Raises UsageError."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{option} {path} is not JSON: {error}") from error


def read_part(option: str, path: Path, key: str) -> Any:
    """Return the value of `key` in the JSON object that `option` names. Raises UsageError."""
    document = read_json(option, path)
    if not isinstance(document, dict) or key not in document:
        raise UsageError(f"{option} {path} is not a file of this command: it lacks {key!r}")
    return document[key]
