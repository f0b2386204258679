"""Compiles loops over columns with numba, so that they may be written as the loops they are."""

# numba has no type hints.
# mypy: disable-error-code="no-any-return, no-untyped-call, untyped-decorator"

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from numba import njit

P = ParamSpec("P")
R = TypeVar("R")


def compiled(signature: str | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a function of integers and arrays, when it is defined if its numba `signature` is given.

    The result is kept on disk until the file of the function changes; what it calls must stand in the same file, since
    numba does not follow others. With NUMBA_DISABLE_JIT=1 functions stay plain Python, which checks every index.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        return njit(cache=True)(function) if signature is None else njit(signature, cache=True)(function)

    return decorate
