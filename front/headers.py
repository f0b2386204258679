"""Headers that say what a body may say, for gateways that cannot change one. A body wins over a header."""

from __future__ import annotations

from contextlib import suppress

from starlette.datastructures import Headers

from client.generation import PriorityClass
from client.openai.errors import ApiError
from client.openai.tiers import parse_class

CLASS_HEADER = "x-priority-class"
SLO_HEADERS = {  # header -> field of a body; the first that is there counts
    "x-llm-d-slo-ttft-ms": "ttft_slo_ms",
    "x-slo-ttft-ms": "ttft_slo_ms",
    "x-llm-d-slo-tpot-ms": "tpot_slo_ms",
    "x-slo-tpot-ms": "tpot_slo_ms",
}
_GIVEN_ONCE = ("host", "origin", "authorization", "content-type")


def require_one_meaning(headers: Headers) -> None:
    """Raise ApiError where a header that says one thing comes twice and says two."""
    for name in _GIVEN_ONCE:
        if len(set(headers.getlist(name))) > 1:
            raise ApiError(f"{name}: given twice", param=name)


def class_of(headers: Headers) -> PriorityClass | None:
    """Return the class that a header names. Raises ApiError."""
    classes = {parse_class(word) for word in headers.getlist(CLASS_HEADER)}
    if len(classes) > 1:
        raise ApiError(f"{CLASS_HEADER}: given as rt and as be", param=CLASS_HEADER)
    return next(iter(classes), None)


def slos_of(headers: Headers) -> dict[str, float]:
    """Return the SLOs that headers name, by the fields of a body that they stand for. Raises ApiError."""
    given: dict[str, float] = {}
    for header, name in SLO_HEADERS.items():
        numbers = {_number(header, word) for word in headers.getlist(header)}
        if len(numbers) > 1:
            raise ApiError(f"{header}: given as {' and as '.join(map(str, sorted(numbers)))}", param=header)
        for number in numbers:
            given.setdefault(name, number)
    return given


def _number(header: str, word: str) -> float:
    with suppress(ValueError):
        if "_" not in word:  # Python reads 1_0 as 10
            return float(word)
    raise ApiError(f"{header}: {word[:60]!r} is not a number", param=header)
