"""The BROS policy as a whole: shares, and progress whatever is switched off."""

from __future__ import annotations

import random

import pytest

from tests.backend.factories import Harness, be, rt
from tests.backend.policy.driving import FIT


def test_best_effort_keeps_its_share_under_any_real_time_load() -> None:
    harness = Harness(be_min_share=0.1, num_blocks=2000, max_tokens_per_step=256, verify=False, coefficients=FIT[:5])
    background = be(3000, 5)
    harness.submit(background)
    for _ in range(400):  # twice what the machine can do
        harness.submit(rt(400, 4, ttft_slo_s=0.3, tpot_slo_s=0.02))
        harness.engine.step()
        if len(harness.tokens[background.request_id]) == 5:
            return
    raise AssertionError(f"best-effort starved: {background.num_computed} of 3000 tokens")


def test_best_effort_keeps_its_share_where_real_time_fills_the_batch_slots() -> None:
    harness = Harness(be_min_share=0.1, max_seqs_per_step=4, num_blocks=2000, verify=False, coefficients=FIT[:5])
    background = be(20, 40)
    harness.submit(background, *(rt(10, 400, tpot_slo_s=0.011) for _ in range(8)))
    harness.step(200)
    num_served = len(harness.tokens[background.request_id])
    assert num_served > 200 * 4 * 0.1 / 3, f"best-effort got {num_served} of 800 tokens"
    assert num_served < 200 * 4 * 0.1, "best-effort got more than its share"


def test_preemptions_are_bounded_when_memory_is_always_short() -> None:
    """A full pool and a steady flow of real-time: each real-time request preempts a few times, not at every token."""
    harness = Harness(num_blocks=60, max_seq_len=400, kv_headroom_ratio=0.0)
    harness.submit(*(be(200, 50) for _ in range(10)))
    num_rt, draw = 40, random.Random(1)
    for _ in range(num_rt):
        harness.submit(rt(draw.randint(20, 100), 40))
        harness.step(8)
    harness.run()
    assert sum(harness.scheduler.stats().total_preemptions.values()) <= 3 * num_rt


@pytest.mark.parametrize("ablation", ["sharing", "checkpoints", "chunked_prefill"])
def test_every_ablation_serves_everything(ablation: str) -> None:
    harness = Harness(num_blocks=40, max_seq_len=400, max_tokens_per_step=128, **{ablation: False})
    requests = [make_one(80 + 20 * index, 20) for index in range(4) for make_one in (rt, be)]
    harness.submit(*requests)
    harness.run()
    assert all(len(harness.tokens[request.request_id]) == 20 for request in requests)
