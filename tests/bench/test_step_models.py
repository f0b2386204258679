"""Shipped step models: the published formula, with its source and errors on record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bench.step_models
from bench.step_models import Pair, StepWork, load_pairs

DOCUMENT = json.loads(Path(bench.step_models.__file__).with_name("step_models.json").read_text())
PUBLISHED = Path(__file__).parents[3] / "shared/data/step_times/step_models.json"


@pytest.fixture(params=sorted(DOCUMENT["pairs"]))
def pair(request: pytest.FixtureRequest) -> Pair:
    return load_pairs()[request.param]


def test_every_pair_names_its_source_licence_and_held_out_error(pair: Pair) -> None:
    assert "aiconfigurator-core 0.12.0" in DOCUMENT["source"]
    assert DOCUMENT["licence"] == "Apache-2.0"
    assert DOCUMENT["pairs"][pair.name]["heldout_error"]["mean_pct"] < 5.0


def test_a_step_is_never_faster_with_more_work(pair: Pair) -> None:
    small = StepWork(64, 64, 64 * 500)
    larger = [
        StepWork(65, 65, 64 * 500),
        StepWork(64, 64, 65 * 500),
        StepWork(564, 64, 64 * 500, 1, 125_000.0),
        StepWork(64, 64, 64 * 500, num_copied=100),
    ]
    assert all(pair.step_s(work) >= pair.step_s(small) for work in larger)
    assert pair.step_s(larger[2]) > pair.step_s(small)
    assert pair.step_s(larger[3]) > pair.step_s(small)


def test_work_is_summed_over_decodes_and_prefill_chunks() -> None:
    work = StepWork.of_sequences([(100, 1), (300, 1), (512, 256)], num_copied=7)
    assert work == StepWork(258, 2, 400, 1, 256 * (512 + 128), 7)


def test_chunks_of_a_prompt_add_up_to_the_pairs_of_the_whole() -> None:
    chunks = [StepWork.of_sequences([(start, 128)]).prefill_pairs for start in range(0, 512, 128)]
    assert sum(chunks) == StepWork.of_sequences([(0, 512)]).prefill_pairs == 512**2 / 2


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the full set of fitted models is not at hand")
def test_shipped_coefficients_are_those_of_the_full_set(pair: Pair) -> None:
    entry = DOCUMENT["pairs"][pair.name]
    published = json.loads(PUBLISHED.read_text())[entry["source_key"]]["roofline"]["coef"]
    assert sorted(entry["coefficients"].values()) == sorted(v for k, v in published.items() if not k.startswith("r5"))
