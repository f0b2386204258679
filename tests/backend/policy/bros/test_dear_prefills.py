"""Where the first prefill of a step is dear, best-effort waits for a step that has time for a large chunk."""

from __future__ import annotations

import pytest

from backend.core.plan import StepPlan
from backend.core.request import Request
from backend.engine.scheduler import Scheduler
from tests.backend.factories import be, rt
from tests.backend.policy.driving import make, step

ANY_PREFILL_S = 6e-3
TOKEN_S = 1e-4
DEAR = (10e-3, TOKEN_S, 0.0, 0.0, 1e-6, ANY_PREFILL_S)
WORTH_IT = 240  # tokens that take four times ANY_PREFILL_S
PROMPT = 900


def beside_a_decode(num_prompt: int, tpot_slo_s: float = 0.02, **knobs: object) -> tuple[Scheduler, Request, float]:
    """A scheduler with a real-time decode, and a best-effort request that comes now; the third value is the time."""
    scheduler = make(num_blocks=2000, **{"latency_coefficients": DEAR, "responsiveness_cap_s": 10.0, **knobs})
    decode, request = rt(20, 400, ttft_slo_s=0.5, tpot_slo_s=tpot_slo_s), be(num_prompt, 5)
    scheduler.add(decode, 0.0)
    now_s = step(scheduler, 0.0).predicted_s
    scheduler.add(request, now_s)
    return scheduler, request, now_s


def chunks(scheduler: Scheduler, request: Request, now_s: float, num_steps: int = 60) -> list[int]:
    """Run steps; return the tokens of the prompt of `request` in each, up to its first answer."""
    taken = []
    for _ in range(num_steps):
        if request.num_output:
            break
        plan: StepPlan = step(scheduler, now_s)
        now_s += plan.predicted_s
        taken.append(plan.num_new_tokens.get(request, 0))
    return taken


def test_small_chunks_are_put_off_until_they_are_worth_their_step() -> None:
    taken = chunks(*beside_a_decode(PROMPT))
    *before_end, end = [num_tokens for num_tokens in taken if num_tokens]
    assert sum(before_end) + end == PROMPT
    assert 0 in taken
    assert min(before_end) >= WORTH_IT


def test_a_large_chunk_in_few_steps_ends_the_prompt_sooner() -> None:
    taken = chunks(*beside_a_decode(PROMPT))
    time_s = sum(10e-3 + TOKEN_S * num_tokens + ANY_PREFILL_S * (num_tokens > 0) for num_tokens in taken)
    chunk_in_each_step = (0.02 - 10e-3 - ANY_PREFILL_S) / TOKEN_S  # at most: the decode needs a step in 20 ms
    assert time_s < 0.7 * PROMPT / chunk_in_each_step * 0.02


@pytest.mark.parametrize("num_prompt", [20, 40])
def test_a_prompt_that_fits_whole_is_not_put_off(num_prompt: int) -> None:
    assert chunks(*beside_a_decode(num_prompt, tpot_slo_s=0.1)) == [num_prompt]


def test_without_a_cost_of_the_first_prefill_nothing_is_put_off() -> None:
    taken = chunks(*beside_a_decode(PROMPT, latency_coefficients=(10e-3, TOKEN_S, 0.0, 0.0, 1e-6, 0.0)))
    while not taken[0]:
        taken.pop(0)  # the decode first gets its lead
    assert 0 not in taken
    assert max(taken) < WORTH_IT


def test_a_chunk_that_a_limit_and_not_the_time_makes_small_is_taken() -> None:
    taken = chunks(*beside_a_decode(300, tpot_slo_s=0.1, max_tokens_per_step=33))
    assert taken[:9] == [32] * 9


def test_a_chunk_that_a_cap_makes_small_is_taken() -> None:
    """No later step is longer than the cap, so waiting gains nothing."""
    scheduler, request, now_s = beside_a_decode(PROMPT, tpot_slo_s=0.1, responsiveness_cap_s=0.02)
    taken = chunks(scheduler, request, now_s)
    assert all(0 < num_tokens < WORTH_IT for num_tokens in taken)


def test_what_best_effort_claims_is_not_put_off() -> None:
    scheduler, request, now_s = beside_a_decode(PROMPT, tpot_slo_s=0.0115, be_min_share=0.4)
    taken = chunks(scheduler, request, now_s)
    assert sum(taken) > 0
    assert max(taken) < WORTH_IT
