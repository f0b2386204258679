"""The output files of a batch, which are also its memory: what stands there is done and is not sent again."""

from __future__ import annotations

import fcntl
import os
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from client.batch.format import RESULT_ID
from client.errors import ClientError

_PREFIX = f'{{"id":"{RESULT_ID}'.encode()


class BatchFileError(ClientError):
    """The files of a batch do not fit together, or another process writes them."""


class _Result(msgspec.Struct):
    id: str
    custom_id: str | None


class Results:
    """Appends results and knows which lines of the input have one; see `open_results`. Memory: four bytes per line."""

    def __init__(self, output: BinaryIO, errors: BinaryIO) -> None:
        self._done = array("I")  # per line of the input: 0, or a checksum of its custom_id
        self._output = output
        self._errors = errors
        self.num_failed = self._resume(errors)
        self.num_done = self._resume(output) + self.num_failed

    def is_done(self, index: int, custom_id: str | None) -> bool:
        """Return whether line `index` has its result. Raises BatchFileError when that is another request's result."""
        found = self._done[index] if index < len(self._done) else 0
        if found and found != _checksum(custom_id):
            raise BatchFileError(f"line {index} ({custom_id}): the output holds another request's result: wrong input?")
        return bool(found)

    def append(self, index: int, custom_id: str | None, line: bytes, is_failure: bool) -> None:
        """Write the result of line `index`: once this returns, it outlives this process."""
        file = self._errors if is_failure else self._output
        file.write(line)
        file.flush()
        self._mark(index, custom_id)
        self.num_done += 1
        self.num_failed += is_failure

    def _resume(self, file: BinaryIO) -> int:
        """Mark the results in a file as done, cut off an unfinished last one, return how many there are."""
        count = end = 0
        for line in file:
            if not line.endswith(b"\n") and line[: len(_PREFIX)] == _PREFIX[: len(line)]:
                break
            self._mark(*_parse_result(file, line))
            count, end = count + 1, end + len(line)
        file.truncate(end)
        return count

    def _mark(self, index: int, custom_id: str | None) -> None:
        if index >= len(self._done):
            self._done.extend(0 for _ in range(index + 1 - len(self._done)))
        if self._done[index]:
            raise BatchFileError(f"line {index} ({custom_id}): it has two results")
        self._done[index] = _checksum(custom_id)


@contextmanager
def open_results(output: Path, errors: Path) -> Iterator[Results]:
    """Open a batch's output files, to go on where they end; nobody else can meanwhile. Raises BatchFileError."""
    with _open_locked(output) as output_file, _open_locked(errors) as errors_file:
        yield Results(output_file, errors_file)


def count_lines(path: Path) -> int:
    """Return the number of lines that are not blank."""
    return sum(1 for _ in read_lines(path))


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (index, text) of the lines that are not blank, one at a time; the index counts all lines."""
    with path.open("rb") as file:
        yield from ((index, line) for index, line in enumerate(file) if not line.isspace())


def _checksum(custom_id: str | None) -> int:
    return zlib.crc32((custom_id or "").encode()) | 1  # never 0, which means: not done


@contextmanager
def _open_locked(path: Path) -> Iterator[BinaryIO]:
    with path.open("ab+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BatchFileError(f"{path}: another process writes it") from error
        file.seek(0)
        yield file
        file.flush()
        os.fsync(file.fileno())


def _parse_result(file: BinaryIO, line: bytes) -> tuple[int, str | None]:
    try:
        result = msgspec.json.decode(line, type=_Result)
        return int(result.id.removeprefix(RESULT_ID)), result.custom_id
    except ValueError as error:  # msgspec's errors are ValueErrors too
        raise BatchFileError(f"{file.name}: not written by `bros batch`: {line[:80]!r}") from error
