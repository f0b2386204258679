"""Phases `engine`, `stub`, `triton`, `launcher`: a process is stopped, continued, then killed, under load, many times.

A stopped process that goes on loses nothing. A killed one costs its open requests an error, and no more. Within
RECOVERY_S both classes are served on both request paths again. Nothing is held without a holder.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tests.campaign.course import RECOVERY_S, Course, Run
from tests.campaign.house import left_behind
from tests.campaign.load import Load

STRIKES_PER_LIFE = {"engine": 3, "stub": 3, "triton": 2, "launcher": 1}  # a launcher gives up after 5 in a minute
LOST = {  # ends of requests that a killed process may cost
    "engine": ("engine_down",),
    "stub": ("engine_down", "broken", "refused by triton"),  # Triton is started again
    "triton": ("engine_down", "broken", "refused by triton"),
    "launcher": ("engine_down", "broken", "refused by triton"),
}
_LOAD_TIMEOUT_S = 15.0
_STOPPED_S = (0.1, 1.5)
_STUB_STOPPED_S = (0.1, 0.4)  # longer, and Triton 2.51 takes back unread memory, of which the stub dies
_NUM_ANSWERS = 20  # between two strikes
_SWEPT_S = 20.0  # in which a reaper must have swept


def killing(role: str) -> Run:
    """Return the phase that strikes the processes of `role`."""

    async def run(course: Course) -> None:
        while course.goes_on:
            if not course.house.is_up:
                await asyncio.to_thread(course.house.start)
            await _one_life(course, role)

    return run


async def _one_life(course: Course, role: str) -> None:
    num = min(STRIKES_PER_LIFE[role], course.num - course.num_done)
    async with Load(course, timeout_s=_LOAD_TIMEOUT_S) as load:
        for _ in range(num):
            await load.see_answers(_NUM_ANSWERS)
            await stop_and_continue(course, role)
            await load.see_answers(_NUM_ANSWERS)
            if role == "launcher":
                await _kill_launcher(course)
            else:
                await kill(course, role)
            course.done()
            if not course.goes_on:
                break
    await course.check_idle()
    await _end_life(course)


async def stop_and_continue(course: Course, role: str) -> None:
    """Stop a process of `role` for a moment; nothing may be lost."""
    if (process := _choose(course, role)) is None:
        return
    with suppress(psutil.NoSuchProcess):
        process.suspend()
        try:
            await asyncio.sleep(course.chance.uniform(*(_STUB_STOPPED_S if role == "stub" else _STOPPED_S)))
        finally:
            process.resume()
    await course.check_canary(f"after a {role} was stopped and continued")


async def kill(course: Course, role: str) -> None:
    """Kill a process of `role`, and wait until everything is served again."""
    servers = course.house.processes("triton")
    if (process := _choose(course, role)) is not None:
        with suppress(psutil.NoSuchProcess):
            process.kill()
        if role == "stub":  # another stub of its model may go on answering for a moment
            await _see_end(course, servers)
        await course.settle(f"after a {role} was killed")


async def _see_end(course: Course, servers: list[psutil.Process]) -> None:
    """Wait until the server of a killed stub has been ended; a fault where the launcher does not notice."""
    give_up_s = time.monotonic() + RECOVERY_S
    while any(server in course.house.processes("triton") for server in servers):
        if time.monotonic() > give_up_s:
            course.fault("a dead stub is not noticed", course.house.words()[-300:])
            return
        await asyncio.sleep(0.05)


async def _kill_launcher(course: Course) -> None:
    """Kill the launcher, every second time its reaper too: that one sweeps, or else the next launch."""
    run_directory, has_reaper = course.house.run_directory, course.num_done % 2 == 0
    for process in [] if has_reaper else course.house.processes("reaper"):
        process.kill()
    course.house.kill_launcher()
    if has_reaper:
        await _check_swept(course, run_directory, "the reaper of a killed launcher")
    await asyncio.to_thread(course.house.start)
    await _check_swept(course, run_directory, "the launch after a killed one")
    await course.settle("after another launch")


async def _end_life(course: Course) -> None:
    """Stop the server as its user would, and see that nothing of it stays."""
    try:
        await asyncio.to_thread(course.house.stop)
    except Exception as error:
        course.fault("does not stop", str(error))
    await _check_swept(course, course.house.run_directory, "a stopped launcher")


async def _check_swept(course: Course, run_directory: Path, who: str) -> None:
    give_up_s = time.monotonic() + _SWEPT_S
    while left := left_behind(run_directory):
        if time.monotonic() > give_up_s:
            course.fault(f"left behind by {who}", ", ".join(left)[:400])
            return
        await asyncio.sleep(0.1)


def _choose(course: Course, role: str) -> psutil.Process | None:
    processes = course.house.processes(role)
    if not processes:
        course.fault(f"no {role} runs", course.house.words()[-300:])
        return None
    return course.chance.choice(processes)
