"""What `make test-trtllm` runs: a small model on TensorRT-LLM through Triton, on a GPU. It has not run yet anywhere.

BROS_TRTLLM_MODEL names the directory of a checkpoint for TensorRT-LLM's PyTorch backend (a small Llama or Qwen).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.triton.servers import Server, serving, wait_until
from tests.triton.streams import Answer, Stream

MODEL_VARIABLE = "BROS_TRTLLM_MODEL"
MAX_TOKENS = 24
NUM_BE, BE_MAX_TOKENS = 48, 200
TTFT_SLO_S, TPOT_SLO_S = 0.5, 0.1
PROMPTS = [
    f"{topic} is" for topic in ("The sea", "A violin", "Snow", "The moon", "Tea", "A lighthouse", "Basalt", "Rye")
]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.triton,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not os.environ.get(MODEL_VARIABLE), reason=f"{MODEL_VARIABLE} is not set: no checkpoint for TensorRT-LLM"
    ),
]


@pytest.fixture(scope="module", params=["inner", "outer"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log: Path = tmp_path_factory.mktemp(f"trtllm-{request.param}") / "log"
    with served(os.environ[MODEL_VARIABLE], request.param, log) as found:
        yield found


@contextmanager
def served(model: str, mode: str, log: Path) -> Iterator[Server]:
    """Serve with a pool so small that the background below fills it."""
    arguments = '{"max_batch_size": 64, "max_seq_len": 2048, "kv_cache_config": {"max_tokens": 16384}}'
    options = [f"trtllm.model={model}", f"trtllm.mode={mode}", f"trtllm.llm_args={arguments}"]
    words = [word for option in options for word in ("--set", option)]
    with serving(log, "--executor", "trtllm", "--start-timeout-s", "1800", *words) as found:
        yield found


def ask(stream: Stream, prompt: str) -> Answer:
    """Send a greedy real-time request."""
    body = {"text_input": prompt, "max_tokens": MAX_TOKENS, "temperature": 0.0, "ignore_eos": True, "stream": True}
    return stream.send(body, "bros_rt")


def answers(stream: Stream) -> list[list[int]]:
    """Return the tokens of all prompts, asked one after the other."""
    found = []
    for prompt in PROMPTS:
        answer = ask(stream, prompt)
        assert answer.is_final.wait(60.0)
        assert not answer.errors
        found.append(answer.token_ids)
    return found


def start_background(stream: Stream) -> list[Answer]:
    """Start more best-effort work than the KV pool holds."""
    prompts = [[1000 + (7 * index + position) % 5000 for position in range(600)] for index in range(NUM_BE)]
    body = {"max_tokens": BE_MAX_TOKENS, "ignore_eos": True}
    return [stream.send({"input_ids": prompt, **body}, "bros_be") for prompt in prompts]


def test_every_answer_has_its_tokens_and_repeats(server: Server) -> None:
    with Stream(server.grpc_url) as stream:
        first, second = answers(stream), answers(stream)
    assert [len(token_ids) for token_ids in first] == [MAX_TOKENS] * len(PROMPTS)
    assert first == second


def test_answers_under_load_are_those_given_alone(server: Server) -> None:
    """Sixteen-bit kernels may round differently in another batch. Greedy decoding then parts at a near tie. So most
    answers must be equal, and all must begin alike."""
    with Stream(server.grpc_url) as be_stream, Stream(server.grpc_url) as rt_stream:
        alone = answers(rt_stream)
        background = start_background(be_stream)
        loaded = answers(rt_stream)
        assert all(answer.is_final.wait(600.0) for answer in background)
    assert [len(answer.token_ids) for answer in background] == [BE_MAX_TOKENS] * NUM_BE
    assert sum(one == other for one, other in zip(alone, loaded, strict=True)) >= len(PROMPTS) - 2
    assert [token_ids[:4] for token_ids in alone] == [token_ids[:4] for token_ids in loaded]


def test_real_time_keeps_its_objectives_beside_a_backlog(server: Server) -> None:
    with Stream(server.grpc_url) as be_stream, Stream(server.grpc_url) as rt_stream:
        background = start_background(be_stream)
        time.sleep(1.0)  # let the backlog fill the pool
        num_met = 0
        for prompt in PROMPTS:
            start_s = time.monotonic()
            answer = ask(rt_stream, prompt)
            while not answer.responses:
                assert time.monotonic() - start_s < 60.0, answer.errors
                time.sleep(0.001)
            first_s = time.monotonic()
            assert answer.is_final.wait(60.0)
            tpot_s = (time.monotonic() - first_s) / (MAX_TOKENS - 1)
            num_met += first_s - start_s <= TTFT_SLO_S and tpot_s <= TPOT_SLO_S
        assert not all(answer.is_final.is_set() for answer in background), "the backlog was over too soon"
        assert all(answer.is_final.wait(600.0) for answer in background)
    assert num_met >= len(PROMPTS) - 1


def test_a_closed_stream_leaves_no_request_in_the_engine(server: Server) -> None:
    states = [f'bros_requests{{class="be",state="{state}"}}' for state in ("waiting", "running", "preempted")]
    with Stream(server.grpc_url) as stream:
        start_background(stream)
        wait_until(lambda: any(map(server.metric, states)), "best-effort requests are counted", 60.0)
    wait_until(lambda: not any(map(server.metric, states)), "best-effort requests leave", 60.0)


def test_the_mode_is_a_metric(server: Server, request: pytest.FixtureRequest) -> None:
    is_inner = request.node.callspec.params["server"] == "inner"
    wait_until(lambda: server.metric("bros_engine_honours_plans") == float(is_inner), "the mode is reported")
