"""The output files of a batch, which are also its memory: a request with a result in them is not sent again."""

from __future__ import annotations

import codecs
import fcntl
import os
from array import array
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from client.batch.lines import RESULT_ID, checksum, custom_id_of
from client.errors import ClientError

_PREFIX = f'{{"id":"{RESULT_ID}'.encode()


class BatchFileError(ClientError):
    """The files of a batch do not fit together, or another process writes them."""


class _Result(msgspec.Struct):
    id: str
    custom_id: str | None
    line_crc32: int | None = None  # results of earlier versions have none


class Results:
    """Appends results and knows which lines of the input have one; see `open_results`. Memory: four bytes per line."""

    def __init__(self, output: BinaryIO, errors: BinaryIO) -> None:
        self._done = array(
            "I"
        )  # per line of the input: 0, or its checksum; of its custom_id where that is all there is
        self._output = output
        self._errors = errors
        self.num_failed = self._resume(errors)
        self.num_done = self._resume(output) + self.num_failed

    def has(self, index: int, crc32: int) -> bool:
        """Return whether the file holds the result of line `index` as it is now."""
        return index < len(self._done) and self._done[index] == crc32

    def is_done(self, index: int, crc32: int, custom_id: str | None) -> bool:
        """Return whether line `index` has its result. Raises BatchFileError when that is another request's result."""
        found = self._done[index] if index < len(self._done) else 0
        if found not in (0, crc32, _name_checksum(custom_id)):
            raise BatchFileError(
                f"line {index} ({custom_id}): {self._output.name} or {self._errors.name} holds another request's "
                "result: wrong input, files of another batch, or a line that was changed since? Name other files"
            )
        return bool(found)

    def append(self, index: int, crc32: int, line: bytes, is_failure: bool) -> None:
        """Write the result of line `index`: once this returns, it outlives this process. Raises BatchFileError."""
        _write_whole(self._errors if is_failure else self._output, line)
        self._mark(index, crc32)
        self.num_done += 1
        self.num_failed += is_failure

    def _resume(self, file: BinaryIO) -> int:
        """Mark the results in a file as done, cut off an unfinished last one, return how many there are."""
        count = end = 0
        for line in file:
            if _is_torn(line):
                break
            self._mark(*_parse_result(file, line))
            count, end = count + 1, end + len(line)
        file.truncate(end)
        return count

    def _mark(self, index: int, crc32: int) -> None:
        if index >= len(self._done):
            self._done.extend(0 for _ in range(index + 1 - len(self._done)))
        if self._done[index]:
            raise BatchFileError(
                f"line {index} has two results in {self._output.name} and {self._errors.name}: files of two batches?"
            )
        self._done[index] = crc32


@contextmanager
def open_results(output: Path, errors: Path) -> Iterator[Results]:
    """Open a batch's output files, to go on where they end; nobody else can meanwhile. Raises BatchFileError.

    A machine that stops loses what it has not written to disk: those requests are sent again.
    """
    if errors.resolve() == output.resolve():
        raise BatchFileError(f"{output}: answers and errors need a file each")
    with _open_locked(output) as output_file, _open_locked(errors) as errors_file:
        yield Results(output_file, errors_file)


def count_lines(path: Path) -> int:
    """Return the number of lines that are not blank."""
    return sum(1 for _ in read_lines(path))


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (index, text) of the lines that are not blank, one at a time; the index counts all lines.

    A byte-order mark in front of a line is no part of it: editors write one, and `cat` puts it between two files.
    """
    with path.open("rb") as file:
        for index, line in enumerate(file):
            if text := line.removeprefix(codecs.BOM_UTF8).strip():
                yield index, text


def find_repeated(path: Path) -> dict[int, int]:
    """Return, for each line whose custom_id an earlier line has, the index of that line: {index: first index}.

    Reads the file once, and again where two custom_ids have one checksum. Memory: four bytes per line meanwhile.
    """
    names = array("I", (_name_checksum(custom_id_of(text)) for _, text in read_lines(path)))
    ordered = np.sort(np.frombuffer(names, np.uint32))
    suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    return _find_repeated_among(suspects, path) if suspects - {_name_checksum(None)} else {}


def _find_repeated_among(suspects: Container[int], path: Path) -> dict[int, int]:
    first: dict[str, int] = {}
    repeated = {}
    for index, text in read_lines(path):
        custom_id = custom_id_of(text)
        if custom_id is None or _name_checksum(custom_id) not in suspects:
            continue
        if first.setdefault(custom_id, index) != index:
            repeated[index] = first[custom_id]
    return repeated


def _name_checksum(custom_id: str | None) -> int:
    return checksum((custom_id or "").encode("utf-8", "replace"))


def _is_torn(line: bytes) -> bool:
    """Return whether the last line is incomplete because a process or a machine stopped while it wrote.

    Such a line is a part of a result, or zeros where a file grew before its data was written.
    """
    is_ours = line[: len(_PREFIX)] == _PREFIX[: len(line)]
    return not line.endswith(b"\n") and (is_ours or not line.strip(b"\0"))


@contextmanager
def _open_locked(path: Path) -> Iterator[BinaryIO]:
    with path.open("ab+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BatchFileError(f"{path}: another process writes it") from error
        file.seek(0)
        yield file
        os.fsync(file.fileno())


def _write_whole(file: BinaryIO, line: bytes) -> None:
    """Append a line, past the file's buffer: all of it, or, on a full disk, nothing. Raises BatchFileError."""
    descriptor, left = file.fileno(), memoryview(line)
    end = os.fstat(descriptor).st_size
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    except OSError as error:
        os.ftruncate(descriptor, end)
        raise BatchFileError(f"{file.name}: {error.strerror}; run again, the batch goes on where it is") from error


def _parse_result(file: BinaryIO, line: bytes) -> tuple[int, int]:
    try:
        result = msgspec.json.decode(line, type=_Result)
        return int(result.id.removeprefix(RESULT_ID)), result.line_crc32 or _name_checksum(result.custom_id)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors too
        raise BatchFileError(f"{file.name}: not written by `bros batch`: {line[:80]!r}") from error
