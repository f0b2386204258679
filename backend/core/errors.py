"""Errors the engine raises, each of which a client meets as one Triton status.

    BrosError
    ├── InvalidRequestError      INVALID_ARG    INVALID_REQUEST   the request can never be served as written
    │   └── RequestTooLargeError INVALID_ARG    TOO_LARGE         prompt and output exceed the model or the KV pool
    ├── OverloadedError          UNAVAILABLE    OVERLOADED        a queue is full now: retry after `retry_after_s`
    ├── RequestCancelledError    CANCELLED      CANCELLED         the client, or its timeout, ended the request
    ├── EngineUnavailableError   UNAVAILABLE    ENGINE_DOWN       there is no engine to talk to
    ├── ExecutorError            INTERNAL       EXECUTOR_FAILED   a step failed: the requests of its batch are lost
    └── ConfigError              INVALID_ARG    CONFIG            the engine's configuration is wrong

The code stands in front of the message that a client reads (`OVERLOADED: …`), because Triton's generate
endpoints flatten every status to HTTP 400.
"""

from __future__ import annotations

import logging
from typing import ClassVar

logger = logging.getLogger(__name__)

_MAX_SHOWN_CHARS = 300  # of an error that is none of ours, which may repeat all that a client sent
_ENGINE_RETRY_AFTER_S = 1.0  # about what a dead engine's first restart waits for


class BrosError(Exception):
    """Any error this project raises on purpose."""

    code: ClassVar[str] = "INTERNAL"
    triton_status: ClassVar[str] = "INTERNAL"


class InvalidRequestError(BrosError):
    """The request can never be served as it is written."""

    code = "INVALID_REQUEST"
    triton_status = "INVALID_ARG"


class RequestTooLargeError(InvalidRequestError):
    """Prompt and output together exceed the model's context or the whole KV pool."""

    code = "TOO_LARGE"


class OverloadedError(BrosError):
    """A queue is full; the same request may be accepted after `retry_after_s` seconds."""

    code = "OVERLOADED"
    triton_status = "UNAVAILABLE"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(_with_advice(message, retry_after_s))
        self.retry_after_s = retry_after_s


class RequestCancelledError(BrosError):
    """The client went away, asked to stop, or its timeout ran out."""

    code = "CANCELLED"
    triton_status = "CANCELLED"


class EngineUnavailableError(BrosError):
    """There is no engine process to talk to, or it takes nothing now; `bros-serve` starts a dead one again."""

    code = "ENGINE_DOWN"
    triton_status = "UNAVAILABLE"

    def __init__(self, message: str) -> None:
        super().__init__(_with_advice(message, _ENGINE_RETRY_AFTER_S))


class ExecutorError(BrosError):
    """A step failed in the executor; the requests of its batch cannot go on."""

    code = "EXECUTOR_FAILED"


class ConfigError(BrosError):
    """The engine's configuration is wrong; the message names the field, its value and the limit."""

    code = "CONFIG"
    triton_status = "INVALID_ARG"


def to_bros_error(error: Exception, what: str) -> BrosError:
    """Return `error` in the form that the client of one request gets; `what` names the failure in the log.

    Any other type of error is a fault of this server: its traceback goes to the log.
    """
    if isinstance(error, BrosError):
        return error
    logger.error("%s: %s", what, shorten(repr(error)), exc_info=error)
    return BrosError(f"{what}: {shorten(repr(error))}")


def shorten(words: str, max_chars: int = _MAX_SHOWN_CHARS) -> str:
    """Return words that may be a client's, or about them, as they may stand in a message: cut, and valid UTF-8."""
    text = words.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= max_chars else text[:max_chars] + "…"


def _with_advice(message: str, retry_after_s: float) -> str:
    return f"{message}; retry_after_ms={retry_after_s * 1e3:.0f}"
