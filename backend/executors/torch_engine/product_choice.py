"""The format for each number of rows: measured once on this machine with the model's own shapes, then kept.

    choice = (("4-bit", 16), ("bf16", None))        4-bit codes for up to 16 rows, bf16 for more

Each format of a matrix is timed for each of `ROWS`, with the caches emptied before, as a step finds its weights in
memory. The fastest format at a number of rows also serves the numbers down to the next smaller one in `ROWS`.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import torch

from backend.core.ownership import is_foreign, make_own_folder
from backend.executors.torch_engine.linear import Linear, Product, RowRange
from backend.executors.torch_engine.products import Format, Matrix, Target, formats_for

_log = logging.getLogger(__name__)

ROWS = (1, 2, 4, 8, 16, 32)
_REPEATS = 5
_FLUSH_BYTES = 64 << 20  # more than the last-level cache that one process gets of most processors
_MIN_BYTES = 4 << 20  # matrices of fewer bf16 bytes in all are not worth measuring: they stay in the caches

Choice = tuple[tuple[str, int | None], ...]
_Kept = dict[str, dict[str, list[tuple[str, int | None]]]]
Times = Mapping[str, Mapping[int, float]]  # seconds by format and number of rows


class ProductChoices:
    """Chooses once for each kind of matrix, and makes its products.

    `folder` keeps the measurements; None measures nothing. `pinned_rows` is the number of rows up to which coded
    formats serve, measured where None.
    """

    def __init__(self, target: Target, folder: Path | None, pinned_rows: int | None = None) -> None:
        self._target = target
        self._pinned_rows = pinned_rows
        self._kept = None if folder is None else KeptChoices(folder / "products.json", machine_key(target))
        self.by_kind: dict[str, Choice] = {}

    def linear(self, matrix: Matrix, num_alike: int = 1) -> Linear:
        """Return the matrix with its products; `num_alike` matrices of the model are of this kind."""
        formats = {each.name: each for each in formats_for(matrix, self._target)}
        made: dict[str, Product] = {}
        if matrix.kind not in self.by_kind:
            self.by_kind[matrix.kind] = self._choose(matrix, num_alike, list(formats.values()), made)
        ranges = []
        for name, max_rows in self.by_kind[matrix.kind]:
            product = made.get(name) or formats[name].make(matrix, self._target)
            ranges.append(RowRange(max_rows, product))
        return Linear(ranges)

    def describe(self) -> str:
        """Return the choices in one line, kinds with the same choice together."""
        kinds_by_choice: dict[Choice, list[str]] = {}
        for kind, choice in self.by_kind.items():
            kinds_by_choice.setdefault(choice, []).append(kind)
        return "; ".join(f"{', '.join(kinds)}: {in_words(choice)}" for choice, kinds in kinds_by_choice.items())

    def _choose(self, matrix: Matrix, num_alike: int, formats: Sequence[Format], made: dict[str, Product]) -> Choice:
        if len(formats) == 1:
            return ((formats[0].name, None),)
        if self._pinned_rows is not None:
            return default_choice(formats, self._pinned_rows)
        if self._kept is None or matrix.shape[0] * matrix.shape[1] * 2 * num_alike < _MIN_BYTES:
            return default_choice(formats)
        key = f"{matrix.kind} {list(matrix.shape)} of {'/'.join(each.name for each in formats)}"
        choice = self._kept.get(key)
        if choice is None:
            made.update({each.name: each.make(matrix, self._target) for each in formats})
            choice = fastest(time_products(made, formats, matrix.shape[1], self._target.dtype), formats)
            self._kept.put(key, choice)
        return choice


def in_words(choice: Choice) -> str:
    """Return a choice as one reads it: `4-bit to 16 rows, then bf16`."""
    return ", then ".join(name if rows is None else f"{name} to {rows} rows" for name, rows in choice)


def default_choice(formats: Sequence[Format], limited_rows: int | None = None) -> Choice:
    """Return the choice where nothing is measured; `limited_rows` replaces the formats' own defaults."""
    limited = [(each.name, each.default_rows if limited_rows is None else limited_rows) for each in formats[:-1]]
    return (*((name, rows) for name, rows in limited if rows), (formats[-1].name, None))


def fastest(times: Times, formats: Sequence[Format]) -> Choice:
    """Return the fastest format for each range of rows; the last of `formats` is for any number."""
    choice: list[tuple[str, int | None]] = []
    for rows in ROWS:
        best = min((each.name for each in formats), key=lambda name: times[name].get(rows, float("inf")))
        if choice and choice[-1][0] == best:
            choice.pop()
        choice.append((best, rows))
    last = formats[-1].name
    if choice[-1][0] == last:
        choice.pop()
    return (*choice, (last, None))


def time_products(
    products: Mapping[str, Product],
    formats: Sequence[Format],
    num_columns: int,
    dtype: torch.dtype,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Return the least time of each product for each number of rows it takes; the products run interleaved."""
    flush = torch.ones(_FLUSH_BYTES // 4)
    times: dict[str, dict[int, float]] = {each.name: {} for each in formats}
    for rows in ROWS:
        x = torch.ones((rows, num_columns), dtype=dtype)
        for _ in range(_REPEATS):
            for each in formats:
                if each.max_rows is not None and rows > each.max_rows:
                    continue
                flush.mul_(1.0)
                started_s = clock()
                products[each.name](x)
                duration_s = clock() - started_s
                times[each.name][rows] = min(duration_s, times[each.name].get(rows, duration_s))
    return times


def machine_key(target: Target) -> str:
    """Return what a measurement holds for: processor, instruction sets, threads and torch."""
    processor = target.processor
    return f"{processor.name}, {processor.isa}, {torch.get_num_threads()} threads, torch {torch.__version__}"


class KeptChoices:
    """The choices of this machine in a JSON file {machine: {matrix: choice}}; a file that cannot be read is empty."""

    def __init__(self, path: Path, machine: str) -> None:
        self._path, self._machine = path, machine

    def get(self, key: str) -> Choice | None:
        """Return the kept choice, or None."""
        kept = self._read().get(self._machine, {}).get(key)
        return None if kept is None else tuple(kept)

    def put(self, key: str, choice: Choice) -> None:
        """Keep a choice; where the folder cannot be written it is measured again next time."""
        document = self._read()
        document.setdefault(self._machine, {})[key] = list(choice)
        try:
            make_own_folder(self._path.parent)
            with tempfile.NamedTemporaryFile("w", dir=self._path.parent, delete=False) as file:
                json.dump(document, file, indent=1)
            os.replace(file.name, self._path)
        except OSError as error:
            _log.warning("product choices are not kept: %s", error)

    def _read(self) -> _Kept:
        if is_foreign(self._path.parent) or is_foreign(self._path):
            return {}
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Kept)
        except (OSError, msgspec.DecodeError):
            return {}
