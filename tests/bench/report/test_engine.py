"""The torch engine's tables say of every bar whether it was met."""

from __future__ import annotations

import json
from pathlib import Path

from bench.report.document import RESULTS
from bench.report.engine import engine_sections


def test_nothing_is_said_without_results(tmp_path: Path) -> None:
    assert engine_sections(tmp_path) == []


def test_bar_is_missed_when_the_step_is_slower(tmp_path: Path) -> None:
    document = json.loads((RESULTS / "engine-bf16.json").read_text())
    case = next(case for case in document["cases"] if case["name"] == "decode 16")
    for step_s, verdict in ((0.0419, "met"), (0.0421, "not met")):
        case["step_s"] = step_s
        (tmp_path / "engine-bf16.json").write_text(json.dumps(document))
        assert f"decode 16, ms: {step_s * 1e3:.4g} (bar ≤ 42: {verdict})" in "\n".join(engine_sections(tmp_path))
