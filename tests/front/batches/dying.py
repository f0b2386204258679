"""A process that runs batches in children and lets them die: at the n-th step to the disk, or from outside at a moment.

Prints a JSON line per folder: how often a child died, and how the batch ended.

    python -m tests.front.batches.dying steps DIR           dies at step 1, 2, …, each in a folder of its own
    python -m tests.front.batches.dying moments DIR SEED…   dies at moments that a seed draws, until the batch has ended

Children are forks: a death costs milliseconds, and this process has no thread of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import select
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from client.openai.errors import ApiError
from front.batches.folder import open_folder
from front.batches.objects import Batch, StoredFile, new_batch_id, new_file_id
from front.batches.service import open_batches
from front.batches.settings import WINDOW_S, BatchSettings
from front.batches.store import Cut
from tests.front.batches.house import chat_line, to_bytes

OWNER = "me"
NUM_LINES = 12
REFUSED = "r3"  # the custom_id of the line that the engine refuses
_MAX_DEATHS = 60
_CUT = Cut(10)
_SETTINGS = BatchSettings(max_open_requests=4, first_wait_s=0.0, disk_wait_s=0.0)
_STEPS = ("write", "fsync", "replace", "ftruncate")


async def answer(url: str, body: bytes, left_ms: float | None) -> dict[str, Any]:
    """Stand for `Engine.answer`: takes a moment, names who asked, and refuses one."""
    assert url == "/v1/chat/completions"
    assert left_ms is not None
    name = json.loads(body)["messages"][0]["content"]
    await asyncio.sleep(0.001)
    if name == f"say {REFUSED}":
        raise ApiError("temperature: no", "temperature")
    return {"id": name, "choices": [{"message": {"content": name}}], "usage": {"completion_tokens": 1}}


def prepare(root: Path) -> None:
    """Make a folder with a batch that has not begun."""
    content = to_bytes([chat_line(f"r{number}") for number in range(NUM_LINES)])
    with open_folder(root) as (folder, store):
        part = folder.parts / "part"
        part.write_bytes(content)
        file = StoredFile(
            id=new_file_id(), owner=OWNER, purpose="batch", filename="in", num_bytes=len(content), created_s=0
        )
        folder.keep(part, file.id)
        store.add_file(file)
        store.add_batch(make_batch(file.id))


def make_batch(input_id: str) -> Batch:
    """Return a batch that never expires."""
    ids = {"input_id": input_id, "output_id": new_file_id(), "errors_id": new_file_id()}
    endpoint = "/v1/chat/completions"
    return Batch(id=new_batch_id(), owner=OWNER, endpoint=endpoint, created_s=0, expires_s=10**6 * WINDOW_S, **ids)


async def run_to_the_end(root: Path) -> None:
    """Go on with the folder's batches until they have ended."""
    async with open_batches(root, answer, _SETTINGS) as batches:
        await batches.join()


def child(root: Path, arm: Callable[[], None] = lambda: None) -> int:
    """Fork a process that runs the folder's batches; return its id."""
    if pid := os.fork():
        return pid
    try:
        arm()
        asyncio.run(run_to_the_end(root))
        os._exit(0)
    finally:
        os._exit(1)


def die_at_step(number: int) -> Callable[[], None]:
    """Return what makes a process kill itself right before its `number`-th step to the disk; a commit is one too."""
    steps = itertools.count(1)

    def step() -> None:
        if next(steps) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def arm() -> None:
        for name in _STEPS:
            setattr(os, name, _after(step, getattr(os, name)))
        Path.unlink = _after(step, Path.unlink)  # type: ignore[method-assign]
        connect = sqlite3.connect
        sqlite3.connect = lambda *args, **kwargs: _traced(connect(*args, **kwargs), step)  # type: ignore[assignment]

    return arm


def _after(step: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    def stepped(*args: Any, **kwargs: Any) -> Any:
        step()
        result = function(*args, **kwargs)
        step()
        return result

    return stepped


def _traced(database: sqlite3.Connection, step: Callable[[], None]) -> sqlite3.Connection:
    database.set_trace_callback(lambda _: step())
    return database


def die_at_steps(base: Path) -> None:
    """Die at step 1, 2, … of a first run, until a run has fewer steps; the second run ends each batch."""
    for number in itertools.count(1):
        root = base / str(number)
        prepare(root)
        has_died = os.waitstatus_to_exitcode(os.waitpid(child(root, die_at_step(number)), 0)[1]) != 0
        run_again(root)
        report(root, int(has_died))
        if not has_died:
            return


def die_at_moments(base: Path, seed: int) -> None:
    """Die at moments that `seed` draws, until the batch has ended."""
    root, chance = base / str(seed), random.Random(seed)
    prepare(root)
    for num_deaths in range(_MAX_DEATHS):
        pid = child(root)
        if _wait(pid, chance.uniform(0.0, 0.08)) == 0:
            return report(root, num_deaths)
    run_again(root)
    return report(root, _MAX_DEATHS)


def _wait(pid: int, timeout_s: float) -> int:
    """Return the exit code of a child, which is killed when it has not ended in time."""
    descriptor = os.pidfd_open(pid)
    try:
        if not select.select([descriptor], [], [], timeout_s)[0]:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(descriptor)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_again(root: Path) -> None:
    """Let a process that nobody kills end the batch."""
    code = os.waitstatus_to_exitcode(os.waitpid(child(root), 0)[1])
    assert code == 0, f"{root}: the run after the death ended with {code}"


def report(root: Path, num_deaths: int) -> None:
    """Print how the batch of a folder ended."""
    with open_folder(root) as (folder, store):
        (batch,) = store.batches(OWNER, _CUT) or []
        files = store.files(OWNER, _CUT) or []
        texts = {file.id: folder.content(file.id).read_text() for file in files}
        left = sorted(path.name for path in folder.files.iterdir() if path.name not in texts)
    line = {
        "num_deaths": num_deaths,
        "status": batch.status.value,
        "counts": msgspec.to_builtins(batch.counts),
        "output": texts.get(batch.output_id, ""),
        "errors": texts.get(batch.errors_id, ""),
        "sizes_fit": all(file.num_bytes == len(texts[file.id].encode()) for file in files),
        "left": left,
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    what, where, *seeds = sys.argv[1:]
    if what == "steps":
        die_at_steps(Path(where))
    for seed in seeds:
        die_at_moments(Path(where), int(seed))
