"""The inputs of the load tools are the model's, and their output is split by class correctly."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from backend.wire import names as wire

LOAD_TOOLS = Path(__file__).resolve().parents[2] / "deploy" / "load_tools"


@pytest.mark.parametrize("name", ["mixed.json", "by_model.json"])
def test_the_inputs_are_tensors_of_the_model(name: str) -> None:
    records = json.loads((LOAD_TOOLS / name).read_text())["data"]
    assert records
    assert {key for record in records for key in record} <= wire.input_names().keys()


def test_the_mixed_input_holds_both_classes() -> None:
    records = json.loads((LOAD_TOOLS / "mixed.json").read_text())["data"]
    assert [record["priority_class"] for record in records] == [["rt"], ["be"]]


def test_times_are_taken_from_the_request_to_its_responses() -> None:
    describe = runpy.run_path(str(LOAD_TOOLS / "by_class.py"))["describe"]
    requests = [{"timestamp": 0, "response_timestamps": [20_000_000, 30_000_000, 40_000_000]}] * 3
    assert describe("rt", requests) == "rt: 3 requests, TTFT p50 20.0 ms, p90 20.0 ms, gap p50 10.0 ms"
