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


def above(limit: float, most: float | None = None) -> Callable[[str], float]:
    """Return a reader of finite numbers in (limit, most]; None: without an upper end."""

    def read(word: str) -> float:
        value = _finite(word)
        if value <= limit:
            raise ArgumentTypeError(f"{word} is not above {limit:g}")
        _check(word, value, limit, most)
        return value

    return read


positive = above(0.0)
port = whole(0, MAX_PORT)  # 0: any free one


def _finite(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise ArgumentTypeError(f"{word!r} is not a number") from None
    if not math.isfinite(value):
        raise ArgumentTypeError(f"{word} is not finite")
    return value


def _check(word: str, value: float, least: float, most: float | None) -> None:
    if value < least:
        raise ArgumentTypeError(f"{word} is below {least}")
    if most is not None and value > most:
        raise ArgumentTypeError(f"{word} is above {most}")
