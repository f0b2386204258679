"""Whether an input can be run at all: every line has a name of its own, and names its batch's endpoint.

The endpoint checks the body itself when the line's turn comes. Its refusal goes to the error file.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import msgspec

from client.batch.lines import LineError, parse_line
from client.batch.results import find_repeated, read_lines
from front.batches.objects import InputError

_MAX_ERRORS = 100  # the first; the rest is more of the same


def check_input(path: Path, endpoint: str, max_lines: int) -> tuple[int, list[InputError]]:
    """Return the number of lines, and the first errors found in them, or none. Blocks."""
    repeated = find_repeated(path)
    errors = list(islice(_errors(path, endpoint, repeated), _MAX_ERRORS))
    num_lines = sum(1 for _ in read_lines(path))
    if num_lines == 0:
        errors = [InputError(code="empty_file", message="the input file holds no request")]
    if num_lines > max_lines:
        words = f"{num_lines} requests exceed {max_lines}"
        errors = [InputError(code="too_many_tasks", message=words)]
    return num_lines, errors


def _errors(path: Path, endpoint: str, repeated: dict[int, int]) -> Iterator[InputError]:
    for index, text in read_lines(path):
        try:
            line = parse_line(index, text)
        except LineError as error:
            yield _refused(index, text, str(error))
            continue
        if index in repeated:
            words = f"custom_id {line.custom_id!r} is that of line {repeated[index] + 1}"
            yield InputError(code="duplicate_custom_id", message=words, line=index + 1, param="custom_id")
        if line.url != endpoint:
            words = f"url {line.url!r} is not the batch's endpoint {endpoint!r}"
            yield InputError(code="mismatched_endpoint", message=words, line=index + 1, param="url")


def _refused(index: int, text: bytes, message: str) -> InputError:
    words = message.removeprefix(f"line {index}: ")
    code = "invalid_request" if _is_json(text) else "invalid_json_line"
    return InputError(code=code, message=words, line=index + 1)


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return False
    return True
