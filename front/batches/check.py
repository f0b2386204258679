"""Whether an input can be run at all: every line has a name of its own, and names its batch's endpoint.

The endpoint checks the body itself when the line's turn comes. Its refusal goes to the error file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import msgspec

from client.batch.lines import LineError, parse_line
from client.batch.results import read_lines
from front.batches.objects import InputError

_MAX_ERRORS = 100  # the first; the rest is more of the same
_MAX_BLANK = 4  # lines for each request that an input may hold, blank ones among them
_MAX_SHOWN = 60  # characters of a custom_id in an error
_PIECE_BYTES = 1024 * 1024
IsStopped = Callable[[], bool]


class CheckStoppedError(Exception):
    """Nobody waits for the check any more."""


def check_input(
    path: Path, endpoint: str, max_lines: int, is_stopped: IsStopped = lambda: False
) -> tuple[int, list[InputError]]:
    """Return the number of lines, and the first errors found in them, or none. Blocks.

    No more than `max_lines` are parsed. Memory: a digest for each. Raises CheckStoppedError.
    """
    num_lines = _count(path, max_lines, is_stopped)
    if num_lines == 0:
        return 0, [InputError(code="empty_file", message="the input file holds no request")]
    if num_lines > max_lines:
        words = f"the input file holds more than {max_lines} requests, or {_MAX_BLANK * max_lines} lines"
        return num_lines, [InputError(code="too_many_tasks", message=words)]
    return num_lines, list(islice(_errors(_lines(path, is_stopped), endpoint), _MAX_ERRORS))


def _count(path: Path, max_lines: int, is_stopped: IsStopped) -> int:
    """Return the number of lines that are not blank; `max_lines` + 1 for more, and for too many blank ones."""
    num_ends = 0
    with path.open("rb") as file:
        while (piece := file.read(_PIECE_BYTES)) and num_ends <= _MAX_BLANK * max_lines:
            num_ends += piece.count(b"\n")
            _require_going_on(is_stopped)
    if num_ends > _MAX_BLANK * max_lines:
        return max_lines + 1
    return sum(1 for _ in islice(_lines(path, is_stopped), max_lines + 1))


def _errors(lines: Iterator[tuple[int, bytes]], endpoint: str) -> Iterator[InputError]:
    first: dict[bytes, int] = {}
    for index, text in lines:
        try:
            line = parse_line(index, text)
        except LineError as error:
            yield _refused(index, text, str(error))
            continue
        name = str(line.custom_id)
        earlier = first.setdefault(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest(), index)
        if earlier != index:
            words = f"custom_id {name[:_MAX_SHOWN]!r} is that of line {earlier + 1}"
            yield InputError(code="duplicate_custom_id", message=words, line=index + 1, param="custom_id")
        if line.url != endpoint:
            words = f"url {line.url!r} is not the batch's endpoint {endpoint!r}"
            yield InputError(code="mismatched_endpoint", message=words, line=index + 1, param="url")


def _lines(path: Path, is_stopped: IsStopped) -> Iterator[tuple[int, bytes]]:
    for line in read_lines(path):
        _require_going_on(is_stopped)
        yield line


def _require_going_on(is_stopped: IsStopped) -> None:
    if is_stopped():
        raise CheckStoppedError


def _refused(index: int, text: bytes, message: str) -> InputError:
    words = message.removeprefix(f"line {index}: ")
    code = "invalid_request" if _is_json(text) else "invalid_json_line"
    return InputError(code=code, message=words, line=index + 1)


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text.decode(), type=msgspec.Raw)  # read, and nothing made of it
    except (ValueError, RecursionError):
        return False
    return True
