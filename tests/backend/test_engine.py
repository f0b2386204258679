"""The engine on the simulator, end to end: everything but the model is the production code."""

from __future__ import annotations

import random

import pytest

from backend.executors.sim import token_at
from backend.policy.settings import POLICY_NAMES
from backend.request import FinishReason
from tests.backend.factories import Harness, be, rt


@pytest.mark.parametrize("policy", POLICY_NAMES)
@pytest.mark.parametrize("seed", range(2))
def test_every_request_ends_once_with_its_own_tokens_under_memory_pressure(policy: str, seed: int) -> None:
    random_ = random.Random(seed)
    harness = Harness(policy=policy, num_blocks=64, num_host_slots=200, max_seq_len=600, max_tokens_per_step=256)
    requests = [
        random_.choice((rt, be))(random_.randint(1, 400), random_.randint(1, 100), request_id=f"r{index}")
        for index in range(40)
    ]
    for request in requests:
        harness.submit(request)
        harness.step(random_.randint(0, 6))
    harness.run()
    for request in requests:
        expected = [
            token_at(harness.executor.settings, request.request_id, request.num_prompt + index)
            for index in range(request.sampling.max_tokens)
        ]
        assert harness.tokens[request.request_id] == expected
        assert harness.reasons[request.request_id] is FinishReason.LENGTH
    assert harness.scheduler.stats().kv.num_free_blocks == 64
