"""Best-effort's minimum share on a real server whose batch slots real-time could fill without end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.triton.servers import serving, wait_until
from tests.triton.streams import Stream

pytestmark = [pytest.mark.triton, pytest.mark.slow]

MAX_SEQS = 4
NUM_RT, RT_TOKENS = 2 * MAX_SEQS, 2000  # 8 ms a step: two turns of 16 s at least
WATCHED_S = 10.0  # the share is kept over any time as long as this


@pytest.mark.parametrize(("share", "least", "most"), [(0.1, 100, 600), (0.0, 0, 8)])
def test_best_effort_goes_on_beside_real_time_that_fills_the_batch_slots(
    tmp_path: Path, share: float, least: int, most: int
) -> None:
    """A tenth of 1,200 steps of four tokens is 480 tokens; a busy machine makes fewer steps. Without a share: none."""
    options = ["--executor", "sim", "--set", f"sim.max_seqs_per_step={MAX_SEQS}"]
    options += ["--set", f"scheduler.be_min_share={share}"]
    with serving(tmp_path / "log", *options) as server, Stream(server.grpc_url) as stream:
        slo = {"ttft_slo_ms": 60_000.0, "tpot_slo_ms": 11.0}
        answers = [stream.send(_many(RT_TOKENS, **slo), "bros_rt") for _ in range(NUM_RT)]
        background = stream.send(_many(8000), "bros_be")
        wait_until(lambda: sum(bool(answer.responses) for answer in answers) >= MAX_SEQS, "real-time in all slots")
        num_before = len(background.token_ids)
        assert not background.is_final.wait(WATCHED_S), "the background was over too soon"
        num_served = len(background.token_ids) - num_before
        assert not all(answer.is_final.is_set() for answer in answers), "real-time was over too soon"
        assert not any(answer.errors for answer in (*answers, background))
        assert least <= num_served <= most, f"best-effort got {num_served} tokens in {WATCHED_S} s"


def _many(num_tokens: int, **more: float) -> dict[str, Any]:
    return {"input_ids": list(range(10, 20)), "max_tokens": num_tokens, "stream": True, **more}
