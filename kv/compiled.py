"""Compiles loops over arrays with numba."""

# numba has no type hints.
# mypy: disable-error-code="no-any-return, no-untyped-call, untyped-decorator"

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from numba import njit

P = ParamSpec("P")
R = TypeVar("R")


def compiled(signature: str | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a function of integers and arrays: at its definition with a numba `signature`, else at its first call.

    numba keeps the result on disk until the function's file changes, if it finds a directory to write to. Functions
    that it calls must be in the same file: numba does not watch other files. Compiled code does not check indices.
    NUMBA_DISABLE_JIT=1 leaves all functions plain Python, which does.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        try:
            return njit(signature, cache=True)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return njit(signature)(function)

    return decorate
