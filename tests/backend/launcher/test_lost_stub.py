"""A server that waits for the end of a child that lives is told from one that does not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from backend.launcher import lost_stub
from tests.triton.servers import wait_until

WAITS = "import subprocess, sys; child = subprocess.Popen(['sleep', '60']); {}"


@pytest.fixture(params=["child.wait()", "sys.stdin.read()"], ids=["waits for it", "does something else"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[psutil.Process, psutil.Process, bool]]:
    """A process with a child; the third value is whether it waits for the child's end."""
    with subprocess.Popen([sys.executable, "-c", WAITS.format(request.param)], stdin=subprocess.PIPE) as process:
        parent = psutil.Process(process.pid)
        wait_until(lambda: bool(parent.children()), "a child")
        (child,) = parent.children()
        yield parent, child, request.param == "child.wait()"
        child.kill()
        process.kill()


def test_a_process_that_waits_for_a_child_is_seen(server: tuple[psutil.Process, psutil.Process, bool]) -> None:
    parent, child, waits = server
    if waits:
        wait_until(lambda: bool(lost_stub.awaited(parent.pid, {child.pid})), "its call")
    assert lost_stub.awaited(parent.pid, {child.pid}) == ({child.pid} if waits else set())
    assert lost_stub.awaited(parent.pid, {child.pid + 1}) == set()
    assert lost_stub.awaited(child.pid, {child.pid}) == set()


def looked(monkeypatch: pytest.MonkeyPatch, looks: list[set[int]]) -> str | None:
    """Return the model of the stub found, where each look sees the server wait for those stubs."""
    left = list(looks)
    monkeypatch.setattr(lost_stub, "PERIOD_S", 0.0)
    monkeypatch.setattr(lost_stub, "stubs_of", lambda _: {1: "bros", 2: "bros_be"})
    monkeypatch.setattr(lost_stub, "awaited", lambda *_: left.pop(0))
    return asyncio.run(lost_stub.first_lost_stub(7, lambda: not left))


def test_a_stub_is_lost_when_all_of_some_looks_in_a_row_see_the_server_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    almost = [{1, 2}] * (lost_stub.NUM_LOOKS - 1)
    assert looked(monkeypatch, [*almost, {2}]) == "bros_be"
    assert looked(monkeypatch, [*almost, set(), *almost]) is None
    assert looked(monkeypatch, []) is None
