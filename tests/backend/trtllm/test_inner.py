"""Inner mode on fakes of both KV managers: who runs, who gives way, and that nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest

from backend.clock import VirtualClock
from backend.request import Request
from tests.backend.factories import be, rt
from tests.backend.trtllm.driver import Rig, make_rig
from tests.backend.trtllm.fake_executor import make_executor, token_of

MANAGERS = ("v1", "v2")


def rig(monkeypatch: pytest.MonkeyPatch, manager: str = "v2", **knobs: Any) -> Rig:
    clock = VirtualClock()
    return make_rig(monkeypatch, make_executor(manager, clock=clock, **knobs), clock)


def mixed(num_rt: int = 10, num_be: int = 40) -> list[Request]:
    return [be(num_prompt=400, max_tokens=100) for _ in range(num_be)] + [
        rt(num_prompt=200, max_tokens=20, arrival_s=0.5 + 0.3 * index) for index in range(num_rt)
    ]


@pytest.mark.parametrize("manager", MANAGERS)
@pytest.mark.parametrize("has_overlap", [False, True])
@pytest.mark.parametrize("num_blocks", [80, 1000])
def test_every_request_gets_its_tokens_and_one_end(
    monkeypatch: pytest.MonkeyPatch, manager: str, has_overlap: bool, num_blocks: int
) -> None:
    world = rig(monkeypatch, manager, has_overlap=has_overlap, num_blocks=num_blocks)
    requests = mixed()
    mirror = world.executor.scheduler.mirror

    transcript = world.play(requests, after_iteration=mirror.check_invariants)

    for index, request in enumerate(world.llm.submitted):
        asked = request.params.bros_ticket.request
        expected = [token_of(index, position) for position in range(asked.sampling.max_tokens)]
        assert transcript.token_ids[asked.request_id] == expected
        assert transcript.ends[asked.request_id] == "length"
    assert len(world.llm.submitted) == len(requests)
    assert world.executor.scheduler.error is None
    world.executor.assert_nothing_leaked()
