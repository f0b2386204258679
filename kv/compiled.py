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
    """Compile a function of integers and arrays; when it is defined, if its numba `signature` is given.

    The result is kept on disk, if numba finds a directory to write to, until the file of the function changes. What it
    calls must stand in the same file, since numba does not follow others. Indices are not checked, but with
    NUMBA_DISABLE_JIT=1, which leaves all functions plain Python.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        try:
            return njit(signature, cache=True)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return njit(signature)(function)

    return decorate
