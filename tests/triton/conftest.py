"""The servers that most tests share: one on the simulated executor, one with the real small model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.triton.servers import Server, serving

FAST_METRICS = "service.metrics_flush_s=0.05"


@pytest.fixture(scope="session")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model is made up: fast, and steps take 8 ms and up."""
    log = tmp_path_factory.mktemp("sim") / "log"
    with serving(log, "--executor", "sim", "--set", FAST_METRICS) as server:
        yield server


@pytest.fixture(scope="session")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with SmolLM2-135M on the torch engine."""
    log = tmp_path_factory.mktemp("torch") / "log"
    with serving(log, "--threads", "2", "--kv-tokens", "24576", "--set", FAST_METRICS) as server:
        yield server
