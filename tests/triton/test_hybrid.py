"""Both classes at once on the real model: the purpose of this project.

The tests ask who goes first, which a slow machine does not change; `bench` has the times.
"""

from __future__ import annotations

import random

import pytest

from tests.triton.servers import PATIENCE_S, Server, wait_until
from tests.triton.streams import Answer, Stream

pytestmark = pytest.mark.triton

NUM_BE, BE_PROMPT_TOKENS = 20, 250
BE_MAX_TOKENS = range(8, 8 + NUM_BE)  # so that no two that begin at once end at once
NUM_OVERTAKING = 4  # first come, first served: all 20


@pytest.mark.vllm
def test_a_real_time_request_starts_before_20_long_best_effort_ones_that_came_first(smollm: Server) -> None:
    chance = random.Random(5)
    prompts = [[chance.randrange(1000, 20_000) for _ in range(BE_PROMPT_TOKENS)] for _ in range(NUM_BE)]
    with Stream(smollm.grpc_url) as be_stream, Stream(smollm.grpc_url) as rt_stream:
        background = [
            be_stream.send({"input_ids": prompt, "max_tokens": max_tokens, "ignore_eos": True}, "bros_be")
            for prompt, max_tokens in zip(prompts, BE_MAX_TOKENS, strict=True)
        ]
        wait_until(lambda: smollm.num_requests() == NUM_BE, "20 requests in the engine")
        num_overtaking = [num_ended_before_first_token(rt_stream, background) for _ in range(5)]
        assert not all(answer.is_final.is_set() for answer in background), "the background was over too soon"
        for answer in background:
            assert answer.is_final.wait(200.0)
        assert [len(answer.token_ids) for answer in background] == list(BE_MAX_TOKENS)
    assert max(num_overtaking) <= NUM_OVERTAKING


def num_ended_before_first_token(stream: Stream, background: list[Answer]) -> int:
    """Send a real-time request, wait for its end; return how many others ended before its first token came."""
    num_before = num_ended(background)
    answer = stream.send({"text_input": "The sea is", "max_tokens": 2, "stream": True}, "bros_rt")
    wait_until(lambda: bool(answer.responses or answer.errors), "the first token")
    num_after = num_ended(background)
    assert answer.is_final.wait(PATIENCE_S)
    assert not answer.errors
    return num_after - num_before


def num_ended(answers: list[Answer]) -> int:
    return sum(answer.is_final.is_set() for answer in answers)
