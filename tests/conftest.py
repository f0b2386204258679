"""What all tests share: two servers, started when first asked for, and the same generated cases in every run."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.backend.executors.vllm.places import vllm_python
from tests.triton.servers import Server, serving

ROOT = Path(__file__).resolve().parent.parent
FAST_METRICS = "service.metrics_flush_s=0.05"
SMOLLM = "smollm"  # the fixture that is dear: two gigabytes and some seconds

VLLM_ARGS = {"dtype": "float32", "max_num_batched_tokens": 512, "block_size": 32, "num_gpu_blocks_override": 769}
# Options of `bros-serve`, beside the engine's: two threads would spin for each other on a busy machine.
OPTIONS = {
    "torch": ("--threads", "1", "--kv-tokens", "24576"),
    "vllm": ("--set", f"vllm.engine_args={json.dumps(VLLM_ARGS)}", "--start-timeout-s", "900"),
}

# A shell's background jobs ignore SIGINT, and so would all that the tests start and then interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")


def is_worker(config: pytest.Config) -> bool:
    """Return whether this is one of several processes that run the tests at once (`make test WORKERS=2`)."""
    return hasattr(config, "workerinput")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `make test-vllm` put vLLM under the tests of the real model."""
    parser.addoption("--executor", choices=list(OPTIONS), default="torch", help="what runs SmolLM2 (default: torch)")


def pytest_configure(config: pytest.Config) -> None:
    """Leave torch one thread in each worker: those of several would spin for each other's cores. Forget proxies."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    if is_worker(config):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no worker is left with it at the end: the files that need servers."""
    if not is_worker(config):
        return
    need_servers = {scope_of(item.nodeid) for item in items if item.get_closest_marker("triton")}
    items.sort(key=lambda item: (scope_of(item.nodeid) != SMOLLM, scope_of(item.nodeid) not in need_servers))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Hand each worker whole files, and all files that ask the real model's server to one."""
    from xdist.scheduler import LoadFileScheduling  # not where TensorRT-LLM's tests run

    class ByServerOrFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    return ByServerOrFile(config, log)


def scope_of(nodeid: str) -> str:
    """Return the name of what one worker runs."""
    file = nodeid.split("::")[0]
    return SMOLLM if _asks_the_real_model(file) else file


@cache
def _asks_the_real_model(file: str) -> bool:
    return re.search(rf"\b{SMOLLM}: Server|on_a_real_model", (ROOT / file).read_text()) is not None


@pytest.fixture(scope="session")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model is made up: it sleeps 8 ms a step and up, so that a busy machine slows it down little."""
    log = tmp_path_factory.mktemp("sim") / "log"
    with serving(log, "--executor", "sim", "--openai-port", "0", "--set", FAST_METRICS) as server:
        yield server


@pytest.fixture(scope="session")
def smollm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with SmolLM2-135M on the torch engine, or on the one that `--executor` names."""
    executor = request.config.getoption("--executor")
    options = ["--executor", executor, *OPTIONS[executor], "--openai-port", "0", "--set", FAST_METRICS]
    if executor == "vllm":
        options += ["--set", f"vllm.python={vllm_python()}"]
    with serving(tmp_path_factory.mktemp(executor) / "log", *options) as server:
        yield server
