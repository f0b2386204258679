"""The GPU tests' own code, rehearsed without a GPU: a real server on the fakes, and answers of SmolLM2-135M.

The fakes make tokens up by request, so answers to one prompt differ: comparing answers is rehearsed on SmolLM2.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.config import REPOSITORY_ROOT
from backend.text.model_files import resolve_model
from tests.backend.executors.trtllm import test_gpu
from tests.triton.servers import Server, wait_until

INSTALLATION = Path(__file__).parent / "installation"

pytestmark = [pytest.mark.triton, pytest.mark.slow]


@pytest.fixture(scope="module", params=["inner", "outer"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp(f"fake-{request.param}") / "log"
    model = resolve_model(None).path
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(INSTALLATION), str(REPOSITORY_ROOT))))
        with test_gpu.served(str(model), request.param, log) as found:
            yield found


def test_the_mode_is_a_metric(server: Server, request: pytest.FixtureRequest) -> None:
    is_inner = request.node.callspec.params["server"] == "inner"
    wait_until(lambda: server.metric("bros_engine_honours_plans") == float(is_inner), "the mode is reported")


def test_the_backlog_and_the_objectives_can_be_had(server: Server) -> None:
    test_gpu.test_real_time_keeps_its_objectives_beside_a_backlog(server)


def test_a_broken_off_backlog_is_seen_to_leave(server: Server) -> None:
    test_gpu.test_a_closed_stream_leaves_no_request_in_the_engine(server)


def test_greedy_answers_are_seen_to_repeat(smollm: Server) -> None:
    test_gpu.test_every_answer_has_its_tokens_and_repeats(smollm)
