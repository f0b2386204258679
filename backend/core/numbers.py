"""Numbers of a command line: types for `argparse` that name the word and its range where it is wrong."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable

MAX_PORT = 65_535


def whole(least: int = 1, most: int | None = None) -> Callable[[str], int]:
    """Return a reader of whole numbers in [least, most]; None: without an upper end."""

    def read(word: str) -> int:
        try:
            value = int(word)
        except ValueError:
            raise ArgumentTypeError(f"{word!r} is not a whole number") from None
        _check(word, value, least, most)
        return value

    return read


def real(least: float = 0.0, most: float | None = None) -> Callable[[str], float]:
    """Return a reader of finite numbers in [least, most]; None: without an upper end."""

    def read(word: str) -> float:
        value = _finite(word)
        _check(word, value, least, most)
        return value

    return read


def positive(word: str) -> float:
    """Return the finite number above 0 that `word` names."""
    if (value := _finite(word)) <= 0.0:
        raise ArgumentTypeError(f"{word} is not above 0")
    return value


def port(word: str) -> int:
    """Return the port that `word` names; 0 stands for any free one."""
    return whole(0, MAX_PORT)(word)


def _finite(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ArgumentTypeError(f"{word!r} is not a finite number")
    return value


def _check(word: str, value: float, least: float, most: float | None) -> None:
    if value < least:
        raise ArgumentTypeError(f"{word} is below {least:g}")
    if most is not None and value > most:
        raise ArgumentTypeError(f"{word} is above {most:g}")
