"""Headers that say what a body may say, for gateways that cannot change one. A body wins over a header."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from client.generation import PriorityClass
from front.errors import ApiError
from front.tiers import parse_class

CLASS_HEADER = "x-priority-class"
SLO_HEADERS = {  # header -> field of a body; the first that is there counts
    "x-llm-d-slo-ttft-ms": "ttft_slo_ms",
    "x-slo-ttft-ms": "ttft_slo_ms",
    "x-llm-d-slo-tpot-ms": "tpot_slo_ms",
    "x-slo-tpot-ms": "tpot_slo_ms",
}


def class_of(headers: Mapping[str, str]) -> PriorityClass | None:
    """Return the class that a header names. Raises ApiError."""
    word = headers.get(CLASS_HEADER)
    return None if word is None else parse_class(word)


def with_slos(body: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
    """Return `body` with the SLOs that headers name and it does not. Raises ApiError."""
    given = dict(body)
    for header, name in SLO_HEADERS.items():
        if given.get(name) is None and (word := headers.get(header)) is not None:
            given[name] = _number(header, word)
    return given


def _number(header: str, word: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise ApiError(f"{header}: {word[:60]!r} is not a number", param=header) from error
