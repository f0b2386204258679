"""What all tests share: two servers, started when first asked for, and the same generated cases in every run."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.triton.servers import Server, serving

FAST_METRICS = "service.metrics_flush_s=0.05"

# A shell's background jobs ignore SIGINT, and so would all that the tests start and then interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")


@pytest.fixture(scope="session")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model is made up: it sleeps 8 ms a step and up, so that a busy machine slows it down little."""
    log = tmp_path_factory.mktemp("sim") / "log"
    with serving(log, "--executor", "sim", "--set", FAST_METRICS) as server:
        yield server


@pytest.fixture(scope="session")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with SmolLM2-135M on the torch engine; two threads would spin for each other on a busy machine."""
    log = tmp_path_factory.mktemp("torch") / "log"
    with serving(log, "--threads", "1", "--kv-tokens", "24576", "--set", FAST_METRICS) as server:
        yield server
