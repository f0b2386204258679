"""The cost of Triton, measured on ways that cost nothing."""

from __future__ import annotations

from collections.abc import Sequence

from backend.request import PriorityClass
from bench.overhead import Flight, Send, describe, measure


def send_for_free(_prompt: Sequence[int], num_tokens: int, _priority_class: PriorityClass) -> Flight:
    flight = Flight()
    flight.note(num_tokens, has_ended=True)
    return flight


def test_every_way_is_compared_with_the_engine_in_process() -> None:
    ways: dict[str, Send] = dict.fromkeys(("in_process", "through_triton", "by_model_name"), send_for_free)
    result = measure(ways, num_rounds=2)
    for name in ("rt", "be"):
        assert result["throughput_ratio"][name].keys() == {"through_triton", "by_model_name"}
        assert result["cpu_us_per_token"][name]["in_process"].keys() == {"engine"}
        assert result["cpu_us_per_token"][name]["through_triton"].keys() == {"client", "server", "stubs", "engine"}
    text = describe({"executor": "sim", **result})
    assert "by the name of bros_be" in text
    assert "processor time per token in process, in µs: " in text
