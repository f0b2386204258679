"""Shipped step models: the published formula, with its source and errors on record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import bench.sim.step_models
from bench.common.stats import mean_absolute_percentage_error
from bench.sim.step_models import Coefficients, Pair, StepWork, load_pairs
from tools.fit_step_models import fit, predict, random_step

DOCUMENT = json.loads(Path(bench.sim.step_models.__file__).with_name("step_models.json").read_text())
INDEPENDENT = {
    "opt13b-a100-tp2": "opt13b-shape_a100_tp2_fp16",
    "opt30b-a100-tp4": "opt30b-shape_a100_tp4_fp16",
    "llama8b-a100": "llama3.1-8b_a100_tp1_bf16",
    "llama8b-h100": "llama3.1-8b_h100_tp1_bf16",
    "llama70b-h100-tp4": "llama3.1-70b_h100_tp4_bf16",
    "llama70b-a100-tp8": "llama3.1-70b_a100_tp8_bf16",
}
PUBLISHED = Path(__file__).parents[4] / "shared/data/step_times/step_models.json"


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
    work = StepWork.of_sequences([100, 300, 512], [1, 1, 256], num_copied=7)
    assert work == StepWork(258, 2, 400, 1, 256 * (512 + 128), 7)


def test_chunks_of_a_prompt_add_up_to_the_pairs_of_the_whole() -> None:
    chunks = [StepWork.of_sequences([start], [128]).prefill_pairs for start in range(0, 512, 128)]
    assert sum(chunks) == StepWork.of_sequences([0], [512]).prefill_pairs == 512**2 / 2


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the independent fit of the same timings is not at hand")
def test_an_independent_fit_of_the_same_timings_agrees(pair: Pair) -> None:
    published = json.loads(PUBLISHED.read_text())[INDEPENDENT[pair.name]]["roofline"]["coef"]
    names = ["r0_ms", "r1_ms_per_new_tok_below_knee", "r2_ms_per_new_tok_above_knee", "r3_ms_per_decode_ctx_tok"]
    names += ["r4_ms_per_prefill_pair", "r6_ms_per_decode_seq", "r7_ms_if_any_prefill", "knee_tokens", "smooth"]
    other = replace(pair, coefficients=Coefficients(*(published[name] for name in names)))
    works = [random_step(np.random.default_rng(seed)) for seed in range(200)]
    ours, theirs = ([model.step_s(work) for work in works] for model in (pair, other))
    assert mean_absolute_percentage_error(ours, theirs) < 0.03


def test_the_fit_recovers_a_known_roofline(pair: Pair) -> None:
    rng = np.random.default_rng(0)
    works = [random_step(rng) for _ in range(400)]
    exact_ms = np.asarray([1e3 * (pair.step_s(work) - pair.host_overhead_s) for work in works])
    refitted = predict(fit(works, exact_ms), works)
    assert mean_absolute_percentage_error(refitted.tolist(), exact_ms.tolist()) < 1e-6
