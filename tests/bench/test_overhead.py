"""The cost of Triton, measured on ways that cost nothing, and compared on rounds made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from backend.core.request import PriorityClass
from bench.common.provenance import provenance
from bench.overhead import Flight, Send, measure
from bench.report.overhead import compare, describe, overhead_sections


def send_for_free(_prompt: Sequence[int], num_tokens: int, _priority_class: PriorityClass) -> Flight:
    flight = Flight()
    flight.note(num_tokens, has_ended=True)
    return flight


def make_round(speed: float, through_ratio: float, added_ms: float) -> dict[str, Any]:
    """A round on a machine of this speed, which goes up by a tenth meanwhile."""
    rates = {
        "in_process": speed,
        "through_triton": 1.05 * speed * through_ratio,
        "by_model_name": 1.05 * speed * through_ratio,
        "in_process_again": 1.1 * speed,
    }
    cpu_us = {way: {"engine": 1e6 / rate} for way, rate in rates.items()}
    ttft_ms = {"in_process": 50.0, "through_triton": 50.0 + added_ms, "by_model_name": 50.0, "in_process_again": 50.0}
    of_class = {"tokens_per_s": rates, "cpu_us_per_token": cpu_us}
    return {"ttft_ms": ttft_ms, "rt": of_class, "be": of_class}


def test_every_round_measures_every_way_and_the_engine_in_process_twice() -> None:
    ways: dict[str, Send] = dict.fromkeys(("in_process", "through_triton", "by_model_name"), send_for_free)
    rounds = measure(ways, num_rounds=2)
    assert len(rounds) == 2
    for each in rounds:
        assert each["ttft_ms"].keys() == {*ways, "in_process_again"}
        for name in ("rt", "be"):
            assert each[name]["tokens_per_s"].keys() == {*ways, "in_process_again"}
            assert each[name]["cpu_us_per_token"]["in_process"].keys() == {"engine"}
            assert each[name]["cpu_us_per_token"]["through_triton"].keys() == {"client", "server", "stubs", "engine"}
    assert "rt: tokens/s" in describe({"executor": "sim", **compare(rounds)})


def test_ratios_are_of_a_round_and_not_of_a_machine_that_wanders() -> None:
    rounds = [make_round(speed, 0.9, added_ms=3.0) for speed in (100.0, 400.0, 250.0)]
    found = compare(rounds)
    for way in ("through_triton", "by_model_name"):
        assert found["rt"]["throughput_ratio"][way] == pytest.approx({"median": 0.9, "q1": 0.9, "q3": 0.9})
    assert found["rt"]["throughput_ratio"]["in_process_again"]["median"] == pytest.approx(1.1)
    assert found["added_ttft_ms"]["through_triton"]["median"] == pytest.approx(3.0)
    assert found["added_ttft_ms"]["by_model_name_against_through_triton"]["median"] == pytest.approx(-3.0)


def test_the_spread_between_rounds_is_told() -> None:
    ratios = compare([make_round(100.0, ratio, 0.0) for ratio in (0.8, 0.9, 1.0, 1.1, 0.7)])["be"]["throughput_ratio"]
    assert ratios["through_triton"] == pytest.approx({"median": 0.9, "q1": 0.8, "q3": 1.0})


@pytest.mark.parametrize(("ratio", "added_ms", "missed"), [(0.96, 4.0, 0), (0.94, 4.0, 2), (0.96, 6.0, 1)])
def test_the_report_holds_the_medians_to_the_bars(tmp_path: Path, ratio: float, added_ms: float, missed: int) -> None:
    assert overhead_sections(tmp_path) == []
    load = {"num_streams": 32, "prompt_tokens": 32, "output_tokens": 64}
    result = {**load, **compare([make_round(100.0, ratio, added_ms)]), "provenance": provenance()}
    (tmp_path / "overhead.json").write_text(json.dumps(result))
    assert "\n".join(overhead_sections(tmp_path)).count("**missed**") == missed


def test_the_report_tells_the_engine_s_part_of_the_processor_without_the_client(tmp_path: Path) -> None:
    load = {"num_streams": 32, "prompt_tokens": 32, "output_tokens": 64}
    found = make_round(100.0, 0.9, 0.0)
    spent_us = {"client": 500.0, "server": 60.0, "stubs": 40.0, "engine": 900.0}
    found["rt"]["cpu_us_per_token"].update(through_triton=spent_us, by_model_name=spent_us)
    (tmp_path / "overhead.json").write_text(json.dumps({**load, **compare([found]), "provenance": provenance()}))
    assert (
        "rt: of the processor time but the client's, the engine has 90.0 % and 90.0 %"
        in overhead_sections(tmp_path)[-2]
    )
