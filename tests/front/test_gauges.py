"""/metrics of the front door: what a router of replicas weighs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from backend.wire.metrics import METRICS
from client import FakeServer
from front import gauges
from front.settings import Settings
from tests.front.door import Door
from tests.triton.servers import Server


def values_of(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE)}


def test_the_gauges_count_what_the_snapshot_holds() -> None:
    response = Door().get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    used = (16 + 16 + 8 + 4 + 16 + 16 + 5) / (8 * 16)
    expected = {gauges.WAITING: 4, gauges.RUNNING: 1, gauges.KV_USED: used}
    assert values_of(response.text) == pytest.approx(expected, rel=1e-5)


def test_they_ask_for_no_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text('{"key-of-mine": ["flex"]}')
    assert Door(settings=Settings(api_key_file=keys)).get("/metrics").status_code == 200


def test_an_engine_that_is_down_has_no_gauges() -> None:
    assert Door(FakeServer(is_down=True)).get("/metrics").status_code == 503


@pytest.mark.triton
def test_tritons_own_metrics_have_the_same_names_and_values_at_rest(sim: Server) -> None:
    import httpx2

    sim.generate("bros_rt", max_tokens=3)
    door = values_of(httpx2.get(sim.openai_url.removesuffix("v1") + "metrics").text)
    assert set(door) <= {metric.name for metric in METRICS}
    assert door == {gauges.WAITING: 0, gauges.RUNNING: 0, gauges.KV_USED: 0}
