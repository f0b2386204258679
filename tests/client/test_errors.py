"""Messages of the server become typed errors."""

from __future__ import annotations

import pytest

import client.errors as errors
from client import wire
from client.errors import OverloadedError, RequestError, parse_error
from client.openai.errors import from_client


@pytest.mark.parametrize(
    ("message", "status", "error_type"),
    [
        ("INVALID_REQUEST: max_tokens: 0 is below 1", "", errors.InvalidRequestError),
        ("TOO_LARGE: request 'a7': prompt of 9000 tokens exceeds 8192", "", errors.TooLargeError),
        ("CANCELLED: request 'a7': timed out", "", errors.CancelledError),
        ("ENGINE_DOWN: there is no engine", "", errors.UnavailableError),
        ("EXECUTOR_FAILED: a step failed", "", errors.ExecutionError),
        ("in ensemble 'x', TOO_LARGE: wrapped by another model", "", errors.TooLargeError),
        ("Request for unknown model: 'bros' is not found", "NOT_FOUND", errors.UnavailableError),
        ("Request for unknown model: 'bros' has no available versions", "", errors.UnavailableError),
        ("Server is stopping, scheduler for model has stopped accepting new requests", "", errors.UnavailableError),
        ("Stub process 'bros_rt_0_0' is not healthy.", "", errors.UnavailableError),
        ("INVALID_REQUEST: 'Server is stopping' is no role", "", errors.InvalidRequestError),
        ("Deadline Exceeded", "DEADLINE_EXCEEDED", errors.CancelledError),
        ("Received message larger than max (9 vs. 8)", "RESOURCE_EXHAUSTED", errors.TooLargeError),
        ("rate limit", "RESOURCE_EXHAUSTED", errors.RequestError),
        ("Request timeout expired", "UNAVAILABLE", errors.CancelledError),
        ("Expected JSON: it was not", "", errors.RequestError),
    ],
)
def test_code_decides_the_type_and_status_stands_in(
    message: str, status: str, error_type: type[errors.ClientError]
) -> None:
    error = parse_error(message, status)
    assert type(error) is error_type
    assert str(error) == message


def test_retry_advice_is_read_from_the_message() -> None:
    error = parse_error("OVERLOADED: be queue: 512 requests wait; retry_after_ms=250")
    assert isinstance(error, OverloadedError)
    assert error.retry_after_s == 0.25


@pytest.mark.parametrize("message", ["OVERLOADED: full", "[request id: a7] Exceeds maximum queue size"])
def test_overload_without_advice_gets_a_second(message: str) -> None:
    error = parse_error(message, "UNAVAILABLE")
    assert isinstance(error, OverloadedError)
    assert error.retry_after_s == 1.0


@pytest.mark.parametrize("code", wire.ERROR_CODES)
def test_every_code_has_a_type_of_its_own(code: str) -> None:
    assert type(parse_error(f"{code}: words")) not in (errors.ClientError, RequestError)


def test_a_refusal_over_http_shows_no_name_of_ours() -> None:
    words = "TOO_LARGE: request 'chatcmpl-7#5.155': prompt of 9 tokens exceeds max_seq_len 8"
    assert from_client(errors.TooLargeError(words)).message == (
        "TOO_LARGE: the prompt of 9 tokens exceeds max_seq_len 8"
    )
    assert (
        from_client(errors.TooLargeError("request 'a': the prompt has no tokens")).message == "the prompt has no tokens"
    )
