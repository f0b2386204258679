"""Both classes at once on the real model: what this project is for."""

from __future__ import annotations

import random
import time

import pytest

from tests.triton.servers import Server, wait_until
from tests.triton.streams import Stream

pytestmark = pytest.mark.triton

NUM_BE, BE_PROMPT_TOKENS, BE_MAX_TOKENS = 20, 700, 8
RT_TTFT_S = 1.0


def test_a_real_time_request_starts_within_its_objective_while_20_long_best_effort_ones_run(smollm: Server) -> None:
    chance = random.Random(5)
    prompts = [[chance.randrange(1000, 20_000) for _ in range(BE_PROMPT_TOKENS)] for _ in range(NUM_BE)]
    with Stream(smollm.grpc_url) as be_stream, Stream(smollm.grpc_url) as rt_stream:
        time_to_first_token(rt_stream)  # the engine has served before
        background = [
            be_stream.send({"input_ids": prompt, "max_tokens": BE_MAX_TOKENS, "ignore_eos": True}, "bros_be")
            for prompt in prompts
        ]
        wait_until(lambda: smollm.num_requests() == NUM_BE, 10.0, "20 requests in the engine")
        first_s = [time_to_first_token(rt_stream) for _ in range(5)]
        assert not all(answer.is_final.is_set() for answer in background), "the background was over too soon"
        for answer in background:
            assert answer.is_final.wait(120.0)
        assert [len(answer.token_ids) for answer in background] == [BE_MAX_TOKENS] * NUM_BE
    assert max(first_s) < RT_TTFT_S


def time_to_first_token(stream: Stream) -> float:
    """Send a real-time request, wait for its end, and return when its first token came, as a client sees it."""
    start_s = time.monotonic()
    answer = stream.send({"text_input": "The sea is", "max_tokens": 8, "stream": True}, "bros_rt")
    while not answer.responses:
        assert time.monotonic() - start_s < 30.0, answer.errors
        time.sleep(0.001)
    first_s = time.monotonic() - start_s
    assert answer.is_final.wait(30.0)
    return first_s
