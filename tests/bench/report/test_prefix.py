"""The table of prefix caching: means and ranges of the right runs, what follows from them, and the document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.report.document import RESULTS, ROOT
from bench.report.prefix import PREFIX_BEGIN, PREFIX_END, prefix_text
from bench.report.sharing import put_into

PROVENANCE = {"commit": "c", "date": "d", "has_local_changes": False, "versions": {}}
PROVENANCE["hardware"] = {"num_cores": 2, "cpu": "x"}


def run(cache: str, seed: int, hits: float | None, in_time: float) -> dict[str, Any]:
    rates = {"hit_rate": {"rt": hits, "be": None}, "oracle_hit_rate": {"rt": 0.5, "be": None}}
    rates |= {"host_hit_rate": {"rt": None, "be": None}, "beside_hit_rate": {"rt": 0.45, "be": None}}
    scores = {"num_requests": 9, "rt_attainment": in_time, "be_requests_per_s": None}
    return {"trace": "chat", "cache": cache, "seed": seed, **scores, **rates}


def text_of(tmp_path: Path, in_time_without: float) -> str:
    runs = [run("by class", seed, (0.4, 0.6)[seed], 0.9) for seed in (0, 1)]
    runs += [run("by last use", seed, 0.35, 0.9) for seed in (0, 1)]
    runs += [run("none", seed, None, in_time_without) for seed in (0, 1)]
    (tmp_path / "prefix-sim.json").write_text(json.dumps({"provenance": PROVENANCE, "scale": 0.5, "runs": runs}))
    text = prefix_text(tmp_path)
    assert text is not None
    return text


def test_a_cell_is_the_mean_and_the_range_of_its_seeds(tmp_path: Path) -> None:
    text = text_of(tmp_path, 0.9)
    oracles = "50.0 (50.0 to 50.0) | 45.0 (45.0 to 45.0)"
    assert f"| chat | by class | 50.0 (40.0 to 60.0) |  | {oracles} |  |  |  |  | 90.0 (90.0 to 90.0) |  |" in text
    assert "at most 10.0 points below the oracle's alone (on chat)" in text
    assert "at most 5.0 below the oracle's beside running requests (on chat)" in text
    assert "up to 25.0 points" in text
    assert "nowhere below" in text


def test_a_loss_of_real_time_is_said(tmp_path: Path) -> None:
    assert "at most 2.0 points below that without a cache" in text_of(tmp_path, 0.92)


def test_the_document_holds_the_published_table() -> None:
    document, text = (ROOT / "docs" / "kv.md").read_text(), prefix_text(RESULTS)
    assert text is not None, "bench/results/prefix-sim.json is missing"
    assert put_into(document, text, PREFIX_BEGIN, PREFIX_END) == document, "run: python -m bench.report"
