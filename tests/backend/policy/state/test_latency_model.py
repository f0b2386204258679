"""The latency model learns step times, is never fooled by one outlier, and inverts itself exactly."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.policy.state.latency_model import PRIOR, LatencyModel, StepFeatures

TRUTH = (12e-3, 80e-6, 30e-9, 3e-9, 6e-6, 2e-3)


def random_step(draw: random.Random) -> StepFeatures:
    num_decodes = draw.randint(1, 200)
    chunk = draw.choice((0, 0, draw.randint(2, 1500)))
    pairs = chunk * (draw.randint(0, 2000) + chunk / 2)
    return StepFeatures(
        num_decodes + chunk, num_decodes * draw.randint(50, 2000), pairs, draw.choice((0, 0, 300)), chunk > 1
    )


def time_s(features: StepFeatures, truth: tuple[float, ...] = TRUTH) -> float:
    return truth[0] + sum(c * x for c, x in zip(truth[1:], features, strict=True))


def trained(num_steps: int, noise: float = 0.0, seed: int = 0) -> LatencyModel:
    draw, model = random.Random(seed), LatencyModel()
    for _ in range(num_steps):
        features = random_step(draw)
        model.observe(features, time_s(features) * max(0.2, draw.gauss(1.0, noise)))
    return model


def error(model: LatencyModel, truth: tuple[float, ...] = TRUTH) -> float:
    """Mean relative error on fresh steps."""
    draw = random.Random(99)
    steps = [random_step(draw) for _ in range(100)]
    return float(np.mean([abs(model.predict_s(f) - time_s(f, truth)) / time_s(f, truth) for f in steps]))


def test_an_untrained_model_predicts_by_its_cautious_prior() -> None:
    model = LatencyModel()
    assert model.coefficients == pytest.approx(PRIOR)


def test_it_finds_the_truth_in_a_few_dozen_steps() -> None:
    assert error(trained(60)) < 0.03


def test_it_finds_the_truth_under_noise() -> None:
    assert error(trained(400, noise=0.1)) < 0.05


def test_it_equals_weighted_least_squares_where_nothing_is_negative() -> None:
    """The recursion's slow twin: one least squares problem over all steps, relative errors, no forgetting."""
    draw = random.Random(5)
    steps = [random_step(draw) for _ in range(300)]
    times_s = [time_s(step) * draw.gauss(1.0, 0.02) for step in steps]
    model = LatencyModel(TRUTH, forgetting=1.0)
    for features, duration_s in zip(steps, times_s, strict=True):
        model.observe(features, duration_s)
    rows = np.array([[1.0, *step] for step in steps]) / np.array(times_s)[:, None]
    direct = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)[0]
    fresh = [random_step(draw) for _ in range(50)]
    predicted = [model.predict_s(step) for step in fresh]
    assert predicted == pytest.approx([float(direct @ [1.0, *step]) for step in fresh], rel=0.02)


@given(st.lists(st.tuples(st.integers(0, 2000), st.floats(1e-5, 10.0)), min_size=1, max_size=40))
def test_coefficients_are_never_negative_whatever_was_measured(measured: list[tuple[int, float]]) -> None:
    model = LatencyModel()
    for size, duration_s in measured:
        model.observe(StepFeatures(size, 3 * size, float(size * size), size % 7), duration_s)
    assert min(model.coefficients) >= 0.0
    assert np.isfinite(model.coefficients).all()


def test_one_stall_of_a_hundred_steps_hardly_moves_it() -> None:
    model = trained(200)
    model.observe(StepFeatures(10, 1000, 0.0, 0), 100 * time_s(StepFeatures(10, 1000, 0.0, 0)))
    assert error(model) < 0.02


def test_it_follows_a_machine_that_becomes_twice_as_slow() -> None:
    model, draw = trained(300), random.Random(7)
    slow = tuple(2 * c for c in TRUTH)
    errors = [error(model, slow)]
    for _ in range(3):
        for _ in range(300):
            features = random_step(draw)
            model.observe(features, time_s(features, slow))
        errors.append(error(model, slow))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.45
    assert errors[1] < 0.3
    assert errors[3] < 0.03


def test_a_long_decode_phase_does_not_forget_what_prefills_cost() -> None:
    model, draw = trained(300), random.Random(7)
    for _ in range(3000):
        num_decodes = draw.randint(1, 64)
        features = StepFeatures(num_decodes, num_decodes * draw.randint(50, 500), 0.0, 0)
        model.observe(features, time_s(features) * draw.gauss(1.0, 0.05))
    prefill = StepFeatures(1000, 0, 500_000.0, 0)
    assert model.predict_s(prefill) == pytest.approx(time_s(prefill), rel=0.25)


def test_its_error_is_exposed() -> None:
    assert trained(300).error_ratio < 0.02
    assert 0.05 < trained(300, noise=0.2).error_ratio < 0.3


@given(st.floats(1e-6, 1.0), st.integers(0, 10_000))
def test_the_largest_chunk_fits_and_one_token_more_does_not(budget_s: float, context: int) -> None:
    model = LatencyModel(TRUTH)
    num_tokens = model.max_chunk(budget_s, context, 10**6)
    assert model.prefill_s(num_tokens, context) <= budget_s * (1 + 1e-9)
    assert model.prefill_s(num_tokens + 1, context) > budget_s * (1 - 1e-9)


@pytest.mark.parametrize("budget_s", [0.0, -1.0])
def test_no_time_takes_no_chunk(budget_s: float) -> None:
    assert LatencyModel().max_chunk(budget_s, 0, 100) == 0


def test_no_chunk_is_larger_than_what_is_wanted() -> None:
    assert LatencyModel(TRUTH).max_chunk(1.0, 0, 100) == 100
    assert LatencyModel(TRUTH).max_chunk(float("inf"), 0, 100) == 100


def trained_on(step_s: Callable[[int, bool], float]) -> LatencyModel:
    """A model that has seen steps of 250 decodes, half of them with a chunk, take `step_s(new tokens, has_prefill)`."""
    draw, model = random.Random(3), LatencyModel()
    for _ in range(400):
        chunk = draw.choice((0, draw.randint(50, 800)))
        duration_s = step_s(250 + chunk, chunk > 0)
        model.observe(StepFeatures(250 + chunk, 250 * 600, 0.5 * chunk**2, 0, chunk > 0), duration_s)
    return model


def test_it_tells_what_any_prefill_costs_from_what_its_tokens_cost() -> None:
    model = trained_on(lambda num_new, has_prefill: 10e-3 + 40e-6 * num_new + 3e-3 * has_prefill)
    assert model.c5 == pytest.approx(3e-3, rel=0.1)


def test_where_the_first_tokens_of_a_chunk_are_free_a_prefill_costs_nothing_extra() -> None:
    """Below the knee of a roofline: that is when best-effort prompts are spread (`Budgets.prefill_end_s`)."""
    model = trained_on(lambda num_new, _has_prefill: 10e-3 + 40e-6 * max(0, num_new - 350))
    assert model.c5 < 1e-4
