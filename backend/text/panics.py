"""Panics of Rust libraries, as errors of the request that met one.

A panic reaches Python as a BaseException. Threads that serve many catch every Exception of a request, and no more.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from backend.core.errors import BrosError, shorten

logger = logging.getLogger(__name__)


@contextmanager
def panics_as_errors(library: str) -> Iterator[None]:
    """Raise BrosError where `library` panics inside the block."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # each library has a class of its own of this name
            raise
        words = f"{library} panicked: {shorten(str(error))}"
        logger.error("%s", words, exc_info=error)
        raise BrosError(words) from error
