"""The tables of the front door's cost and of real-time beside a batch: what they say of a result, and the document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.report.document import RESULTS, ROOT
from bench.report.door import BEGIN, END, door_text
from bench.report.sharing import put_into

PROVENANCE: dict[str, Any] = {"commit": "c", "date": "d", "has_local_changes": False, "versions": {}}
PROVENANCE["hardware"] = {"num_cores": 2, "cpu": "x"}


def cost(added_ms: float, ratio: float) -> dict[str, Any]:
    tokens = {"grpc": 1000.0, "door": 1000.0 * ratio}
    return {
        "num_streams": 32,
        "output_tokens": 64,
        "num_rounds": 7,
        "ttft_ms": {"grpc": 20.0, "door": 20.0 + added_ms},
        "added_ttft_ms": added_ms,
        "tokens_per_s": {"rt": tokens, "be": tokens},
        "throughput_ratio": {"rt": 1.0, "be": ratio},
        "provenance": PROVENANCE,
    }


@pytest.mark.parametrize(
    ("added_ms", "ratio", "verdicts"), [(2.9, 0.93, ("met", "met")), (3.1, 0.92, ("**missed**",) * 2)]
)
def test_the_worse_class_is_held_against_the_bars(
    tmp_path: Path, added_ms: float, ratio: float, verdicts: tuple[str, str]
) -> None:
    (tmp_path / "door.json").write_text(json.dumps(cost(added_ms, ratio)))
    text = door_text(tmp_path)
    assert text is not None
    assert f"{added_ms:.1f} ms more to the first token (bar: 3 ms: {verdicts[0]})" in text
    assert f"{ratio:.1%} of the tokens per second (bar: 93%: {verdicts[1]})" in text


def test_without_results_there_is_no_table(tmp_path: Path) -> None:
    assert door_text(tmp_path) is None


def test_the_document_says_what_the_results_say() -> None:
    text, document = door_text(RESULTS), (ROOT / "docs" / "openai.md").read_text()
    assert text is not None
    assert put_into(document, text, BEGIN, END) == document
