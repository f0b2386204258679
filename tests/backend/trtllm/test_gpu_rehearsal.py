"""The GPU tests' own code, rehearsed without a GPU: objectives on a made-up model, answers on SmolLM2-135M."""

from __future__ import annotations

import pytest

from tests.backend.trtllm import test_gpu
from tests.triton.servers import Server

pytestmark = pytest.mark.triton


def test_the_backlog_and_the_objectives_can_be_had(sim: Server) -> None:
    test_gpu.test_real_time_keeps_its_objectives_beside_a_backlog(sim)


def test_a_broken_off_backlog_is_seen_to_leave(sim: Server) -> None:
    test_gpu.test_a_closed_stream_leaves_no_request_in_the_engine(sim)


@pytest.mark.slow
def test_greedy_answers_are_seen_to_repeat(smollm: Server) -> None:
    test_gpu.test_every_answer_has_its_tokens_and_repeats(smollm)
