"""Errors a client can meet; `parse_error` makes them from a message of the server.

    ClientError                                  any of these
    ├── RequestError                             the server refused or lost this one request
    │   ├── InvalidRequestError   INVALID_REQUEST   it can never be served as written
    │   │   └── TooLargeError     TOO_LARGE         prompt and output exceed the model or the KV pool
    │   ├── OverloadedError       OVERLOADED        a queue is full: retry after `retry_after_s`
    │   ├── CancelledError        CANCELLED         cancelled, or its timeout ran out
    │   └── ExecutionError        EXECUTOR_FAILED   the engine failed while it ran; it may be sent again
    └── UnavailableError          ENGINE_DOWN       no server, no such model, or no engine behind it

The code stands in front of the message (`CODE: words; retry_after_ms=200`), because Triton's generate endpoints flatten
every status to HTTP 400 and its gRPC streams carry none.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from client.wire import ERROR_CODES

_CODED = re.compile(rf"\b(?P<code>{'|'.join(ERROR_CODES)}): ")
_RETRY_AFTER = re.compile(r"retry_after_ms=(?P<ms>\d{1,9})\b")


class ClientError(Exception):
    """Any error of this package."""


class RequestError(ClientError):
    """The server answered, and this request has no (more) tokens to come."""


class InvalidRequestError(RequestError):
    """The request can never be served as it is written."""


class TooLargeError(InvalidRequestError):
    """Prompt and output together exceed the model's context or the whole KV pool."""


class OverloadedError(RequestError):
    """A queue is full; the same request may be accepted after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CancelledError(RequestError):
    """The request was cancelled, or its timeout ran out."""


class ExecutionError(RequestError):
    """The engine failed while the request ran; sent again, it may succeed."""


class UnavailableError(ClientError):
    """There is no server at the address, no such model on it, or no engine behind it."""


_BY_CODE: dict[str, type[ClientError]] = {
    "INVALID_REQUEST": InvalidRequestError,
    "TOO_LARGE": TooLargeError,
    "CANCELLED": CancelledError,
    "ENGINE_DOWN": UnavailableError,
    "EXECUTOR_FAILED": ExecutionError,
    "INTERNAL": ExecutionError,
}
_BY_STATUS: dict[str, type[ClientError]] = {  # gRPC status names, for messages that Triton itself wrote
    "INVALID_ARGUMENT": InvalidRequestError,
    "CANCELLED": CancelledError,
    "DEADLINE_EXCEEDED": CancelledError,
    "UNAVAILABLE": UnavailableError,
    "NOT_FOUND": UnavailableError,
    "UNIMPLEMENTED": UnavailableError,
}
_TRITON_QUEUE_FULL = "Exceeds maximum queue size"  # Triton's own queue, where a model has one (bros_be)
_TRITON_QUEUE_TIMEOUT = "Request timeout expired"
_GRPC_TOO_LONG = "message larger than max"  # its status has other causes too, such as a proxy that limits rates
_TRITON_UNAVAILABLE = (
    "Request for unknown model",  # also one that is being loaded again
    "Server is stopping",
    "is not healthy",  # its stub has died
)
_DEFAULT_RETRY_AFTER_S = 1.0  # for an overloaded server that gives no advice


@contextmanager
def readable() -> Iterator[None]:
    """Turn what the reading of an answer raises into an UnavailableError: only another server sends such an answer."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, struct.error) as error:
        words = f"{type(error).__name__}: {str(error)[:200]}"
        raise UnavailableError(f"no server of ours: its answer cannot be read ({words})") from error


def parse_error(message: str, status: str = "") -> ClientError:
    """Return the typed error for a server's `message`; `status` (a gRPC status name) decides if it holds no code."""
    coded = _CODED.search(message)
    code = coded["code"] if coded else ""
    if code == "OVERLOADED" or _TRITON_QUEUE_FULL in message:
        advice = _RETRY_AFTER.search(message)
        return OverloadedError(message, int(advice["ms"]) / 1e3 if advice else _DEFAULT_RETRY_AFTER_S)
    if _TRITON_QUEUE_TIMEOUT in message:
        return CancelledError(message)
    if not code and _GRPC_TOO_LONG in message:
        return TooLargeError(message)
    if not code and any(words in message for words in _TRITON_UNAVAILABLE):
        return UnavailableError(message)
    error_type = _BY_CODE.get(code) or _BY_STATUS.get(status, RequestError)
    return error_type(message)
