"""Errors as OpenAI's API says them, and the client's errors in its words.

    {"error": {"message": "temperature: …", "type": "invalid_request_error", "param": "temperature", "code": null}}

| client error          | status | code                      |
|-----------------------|--------|---------------------------|
| InvalidRequestError   | 400    | null; `param` is named    |
| TooLargeError         | 400    | context_length_exceeded   |
| CancelledError        | 408    | request_cancelled         |
| OverloadedError       | 429    | rate_limit_exceeded       |
| ExecutionError        | 500    | server_error              |
| UnavailableError      | 503    | engine_down               |
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from client.errors import (
    CancelledError,
    ClientError,
    InvalidRequestError,
    OverloadedError,
    TooLargeError,
    UnavailableError,
)

INVALID = "invalid_request_error"
_UNAVAILABLE_RETRY_S = 1.0  # a restarted engine or server is back within seconds
_MAX_MESSAGE_CHARS = 2000
_NAMED = re.compile(r"\bINVALID_REQUEST: (?P<name>[a-z_]+)(\[\d+\])?: ")
_OUR_NAME = re.compile(r"\brequest '[^']*': (?P<prompt>prompt\b)?")  # of a choice; its client knows another
_PARAMS = {  # names on Triton's wire that are others here
    "text_input": "prompt",
    "input_ids": "prompt",
    "stop_words": "stop",
    "return_log_probs": "logprobs",
    "json_schema": "response_format",
    "num_top_log_probs": "top_logprobs",
}


class ApiError(Exception):
    """An answer that is an error: HTTP status, and OpenAI's four fields."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        kind: str = INVALID,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message[:_MAX_MESSAGE_CHARS]
        self.param = param
        self.status = status
        self.kind = kind
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, object]:
        """The body of the answer."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def from_client(error: ClientError) -> ApiError:
    """Return `error` in OpenAI's words."""
    words = _OUR_NAME.sub(lambda found: "the prompt" if found["prompt"] else "", str(error))
    match error:
        case TooLargeError():
            return ApiError(words, code="context_length_exceeded")
        case InvalidRequestError():
            return ApiError(words, param=_param_of(words))
        case OverloadedError():
            headers = retry_after(error.retry_after_s)
            return ApiError(words, status=429, kind="rate_limit_error", code="rate_limit_exceeded", headers=headers)
        case CancelledError():
            return ApiError(words, status=408, kind="timeout_error", code="request_cancelled")
        case UnavailableError():
            headers = retry_after(_UNAVAILABLE_RETRY_S)
            return ApiError(words, status=503, kind="server_error", code="engine_down", headers=headers)
        case _:
            return ApiError(words, status=500, kind="server_error", code="server_error")


def retry_after(seconds: float) -> dict[str, str]:
    """Return the headers that say when to come again: HTTP's whole seconds, and OpenAI's milliseconds."""
    return {"Retry-After": str(max(1, math.ceil(seconds))), "retry-after-ms": str(math.ceil(seconds * 1e3))}


def not_found(what: str, name: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the 404 for a thing of kind `what` that is not there."""
    return ApiError(f"there is no {what} {name[:100]!r}", param, status=404, code=code)


def _param_of(message: str) -> str | None:
    named = _NAMED.search(message)
    return None if named is None else _PARAMS.get(named["name"], named["name"])
