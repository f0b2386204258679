"""The table of step times: it bends where the engine does, never falls, and adds up."""

from __future__ import annotations

import numpy as np
import pytest

from bench.sim.step_models import StepWork, load_pairs
from bench.sim.step_table import KNOTS, TabledPair, fit_table


def make_work(num_decodes: int, chunk: int = 0) -> StepWork:
    return StepWork.of_sequences([300] * num_decodes + [0] * (chunk > 0), [1] * num_decodes + [chunk] * (chunk > 0))


def change_of_format_ms(work: StepWork) -> float:
    """A machine on which eight rows are read from other weights than seven, and cost twice as much."""
    return 10.0 + (12.0 if work.num_new_tokens >= 8 else 0.0) + 0.5 * work.num_new_tokens


WORKS = [make_work(n) for n in range(1, 33)] + [make_work(n, chunk) for n in (0, 4) for chunk in (60, 130, 250, 512)]


def test_a_change_of_weight_format_is_followed() -> None:
    times_ms = np.asarray(list(map(change_of_format_ms, WORKS)))
    assert fit_table(WORKS, times_ms).times_ms(WORKS) == pytest.approx(times_ms, rel=0.01)


def test_more_tokens_never_take_less_time() -> None:
    """Not even where the steps that were recorded did."""
    times_ms = np.asarray([30.0 if work.num_new_tokens < 8 else 20.0 for work in WORKS])
    fitted_ms = fit_table(WORKS, times_ms).times_ms([make_work(n) for n in range(1, 64)])
    assert min(np.diff(fitted_ms)) >= 0.0


def test_fitted_times_of_unsteady_steps_add_up_to_the_recorded() -> None:
    works = WORKS * 100
    noise = np.random.default_rng(0).lognormal(0.0, 0.3, len(works))
    times_ms = np.asarray(list(map(change_of_format_ms, works))) * noise
    assert fit_table(works, times_ms).times_ms(works).sum() == pytest.approx(times_ms.sum(), rel=0.01)


def test_a_tabled_pair_takes_what_its_table_says_and_copies_besides() -> None:
    times_ms = np.asarray(list(map(change_of_format_ms, WORKS)))
    coefficients = load_pairs()["llama8b-h100"].coefficients
    pair = TabledPair("", "", coefficients, 4096, 0.0, 1e-3, fit_table(WORKS, times_ms))
    work = make_work(2)
    copying = StepWork.of_sequences([300, 300], [1, 1], num_copied=5)
    assert pair.step_s(work) == pytest.approx(11e-3, rel=0.01)
    assert pair.step_s(copying) - pair.step_s(work) == pytest.approx(5e-3)


def test_knots_ascend() -> None:
    assert list(KNOTS) == sorted(set(KNOTS))
