"""The request path without Triton: link, engine process, adapter, and a fake TensorRT-LLM that runs by itself."""

from __future__ import annotations

import queue
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from backend.config import ConfigFile, ExecutorKind
from backend.executors.trtllm.settings import TrtllmMode, TrtllmSettings
from backend.server import socket_server
from backend.text.sim_tokenizer import SimTokenizer
from backend.wire.protocol import Metrics
from tests.backend.executors.trtllm.driver import SINGLE_PROCESS
from tests.backend.executors.trtllm.fake_executor import RunningLlm, fake_modules, make_executor
from tests.backend.serving import WAIT_S, ask, linked, make_file, running


@pytest.fixture(params=["inner", "outer"])
def mode(request: pytest.FixtureRequest) -> TrtllmMode:
    return TrtllmMode(request.param)


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> RunningLlm:
    llm = RunningLlm(make_executor())
    for name, module in fake_modules(llm).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv(SINGLE_PROCESS, "0")  # so that it is put back as it was
    monkeypatch.setattr(socket_server, "make_tokenizer", lambda _: SimTokenizer(32_000, 2))  # "/model" has none
    return llm


@pytest.fixture
def file(llm: RunningLlm, mode: TrtllmMode, tmp_path: Path) -> Iterator[ConfigFile]:
    """An engine process's configuration, while that process runs."""
    on_sim = make_file(tmp_path)
    config = replace(on_sim.config, executor=ExecutorKind.TRTLLM, trtllm=TrtllmSettings("/model", mode))
    file = replace(on_sim, config=config)
    file.path.write_bytes(msgspec.json.encode(file.config))
    with running(file):
        yield file
    assert llm.is_shut_down


def test_both_classes_are_served_and_nothing_leaks(file: ConfigFile, llm: RunningLlm) -> None:
    with linked(file) as link:
        answers = [ask(link, priority_class=name, max_tokens=5) for name in ("be", "rt", "be")]
        assert [answer.end().finish_reason for answer in answers] == ["length"] * 3
    assert [len(answer.token_ids) for answer in answers] == [5] * 3
    llm.py_executor.assert_nothing_leaked()


def test_what_tensorrt_llm_refuses_reaches_the_client_and_nobody_else(file: ConfigFile, llm: RunningLlm) -> None:
    with linked(file) as link:
        llm.refuse = "no such adapter"
        assert "no such adapter" in ask(link).end().error_message
        llm.refuse = None
        assert ask(link).end().finish_reason == "length"


def test_the_mode_is_a_metric(file: ConfigFile, mode: TrtllmMode) -> None:
    samples: queue.SimpleQueue[float] = queue.SimpleQueue()

    def on_metrics(metrics: Metrics) -> None:
        for sample in metrics.samples:
            if sample.name == "bros_engine_honours_plans":
                samples.put(sample.value)

    with linked(file, on_metrics=on_metrics) as link:
        ask(link).end()
        assert samples.get(timeout=WAIT_S) == float(mode is TrtllmMode.INNER)
