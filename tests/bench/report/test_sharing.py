"""The table of shared blocks: ratios of the right runs, the verdict they allow, and the document that holds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.report.document import RESULTS, ROOT
from bench.report.sharing import put_into, sharing_text

PROVENANCE = {"commit": "c", "date": "d", "has_local_changes": False, "versions": {}}
PROVENANCE["hardware"] = {"num_cores": 2, "cpu": "x"}


def run(label: str, size: int, sharing: bool, rate: float, attained: float = 1.0) -> dict[str, Any]:
    scenario = {"pair": "p", "block_size": size, "seed": 0, "settings": {"sharing": sharing}}
    return {"label": label, "scenario": scenario, "be_tokens_per_s": rate, "rt_attainment": {"both": attained}}


def table_of(tmp_path: Path, runs: list[dict[str, Any]]) -> str:
    (tmp_path / "study-sharing.json").write_text(json.dumps({"provenance": PROVENANCE, "runs": runs}))
    text = sharing_text(tmp_path)
    assert text is not None
    return text


@pytest.mark.parametrize(
    ("rate", "said"),
    [(109.0, "No regime here gains a tenth; the highest ratio is 1.090."), (110.0, "short requests in blocks of 128")],
)
def test_a_ratio_is_that_of_the_same_cell_with_and_without(tmp_path: Path, rate: float, said: str) -> None:
    runs = [run("short", 16, True, 50.0), run("short", 16, False, 50.0)]
    runs += [run("short", 128, True, rate, 0.5), run("short", 128, False, 100.0, 0.25)]
    text = table_of(tmp_path, runs)
    assert f"| p | short | 1.000 (100.0 / 100.0) | {rate / 100:.3f} (50.0 / 25.0) |" in text
    assert said in text


def test_the_document_holds_the_published_table() -> None:
    document, text = (ROOT / "docs" / "kv.md").read_text(), sharing_text(RESULTS)
    assert text is not None, "bench/results/study-sharing.json is missing"
    assert put_into(document, text) == document, "run: python -m bench.report"
