"""Phases `visitors`, `slow`, `overload`, `soak`: many clients, clients that leave, clients that do not read."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import ExitStack
from typing import Any

from tests.campaign.course import Course
from tests.campaign.killing import kill, stop_and_continue
from tests.campaign.load import Load, Sender
from tests.campaign.messages import generate_bytes
from tests.campaign.request_paths import End

_NUM_AT_ONCE = 60
_FLUSH_S = 1.0  # in which metrics have come
_CANARY_EVERY = 500  # visitors
_LONG = 400  # tokens that no visitor stays for
_PATIENCE_S = 90.0  # of best-effort requests beside as many real-time ones
_BURST = 1_000  # requests at once: ten times the server's limit (`OVERLOAD_OPTIONS`)
_SLOW_S = 10.0
_KILL_EVERY_S = 65.0  # an engine that lived for a minute has not failed "in a row"
_LOOK_EVERY_S = 5.0
ROOM_OPTIONS = ("--set", "sim.num_blocks=20000")  # for all that slow readers ask for: they hold no slots from others
OVERLOAD_OPTIONS = (
    *(
        "--set",
        "sim.max_seqs_per_step=16",
        "--set",
        "scheduler.max_waiting_rt=40",
        "--set",
        "scheduler.max_waiting_be=40",
    ),
)


async def warm_up(course: Course) -> dict[str, dict[str, float]]:
    """Let a crowd come and go, so that pools have their size; return what the processes hold then."""
    client = Sender(course)
    await asyncio.gather(*(client.send(course.chance, index, max_tokens=20) for index in range(120)))
    await client.close()
    await course.check_canary("after the warm-up")
    await course.check_idle()
    await asyncio.sleep(_FLUSH_S)
    return course.house.gauges()


async def visitors(course: Course) -> None:
    """Clients that vanish: before their first token, in the middle of a stream, at once."""
    before, counted = await warm_up(course), course.counted()
    places, client = asyncio.Semaphore(_NUM_AT_ONCE), Sender(course)

    async def visit(index: int) -> None:
        async with places:
            leave_after = course.chance.choice((0, 0, 1, 1, 2, 3))
            await client.send(course.chance, index, _PATIENCE_S, leave_after=leave_after, max_tokens=_LONG)

    while course.goes_on:
        num = min(_CANARY_EVERY, course.num - course.num_done)
        await asyncio.gather(*map(visit, range(num)))
        await course.check_canary(f"after {course.num_done + num} visitors")
        course.done(num)
    await client.close()
    await course.check_idle()
    await course.check_counted(counted)
    await course.check_gauges(before)


async def slow(course: Course) -> None:
    """Clients that ask for much and read nothing, beside a load that must not notice."""
    before, counted = await warm_up(course), course.counted()
    with ExitStack() as stack:
        for index in range(course.num):
            stack.enter_context(_deaf_reader(course, index))
        counted = counted[0], counted[1] - course.num  # they are in no ledger
        course.done(course.num)
        async with Load(course, num_streams=8) as load:
            until_s = min(course.until_s, time.monotonic() + _SLOW_S)
            while time.monotonic() < until_s:
                await course.check_canary("beside slow readers")
                await load.see_answers(5)
        course.facts["gauges_beside_slow_readers"] = course.house.gauges()
    await course.check_idle()
    await course.check_counted(counted)
    await course.check_gauges(before)


def _deaf_reader(course: Course, index: int) -> socket.socket:
    """Return a connection with a small buffer on which a long stream was asked for, and nothing is read."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
    client.connect(("127.0.0.1", course.house.http_port))
    fields = {"input_ids": [7] * 100, "max_tokens": 3_900, "stream": True, "ignore_eos": True}
    client.sendall(generate_bytes(("bros_rt", "bros_be")[index % 2], fields))
    return client


async def overload(course: Course) -> None:
    """Ten times the server's limit of requests at once: each is served, or refused with the time to come back."""
    before, counted = await warm_up(course), course.counted()
    client = Sender(course)
    while course.goes_on:
        num = min(_BURST, course.num - course.num_done)
        sent = (client.send(course.chance, index, _PATIENCE_S, max_tokens=20) for index in range(num))
        await asyncio.gather(*sent)
        await course.settle(f"after a burst of {num}")
        course.done(num)
    await client.close()
    replies = [entry.reply for entry in course.ledger.entries if entry.reply is not None]
    for reply in replies:
        if "OVERLOADED" in reply.words and "retry_after_ms=" not in reply.words:
            course.fault("OVERLOADED without advice", reply.words)
    if not any(reply.end is End.ANSWERED for reply in replies):
        course.fault("nobody was served", f"{len(replies)} requests")
    await course.check_idle()
    await course.check_counted(counted)
    await course.check_gauges(before)


async def soak(course: Course) -> None:
    """A mixed load for `num` seconds: visitors, stops, an engine killed every minute; canaries throughout."""
    before = await warm_up(course)
    started_s = kill_s = time.monotonic()
    kill_s += min(_KILL_EVERY_S, course.num / 2)
    client, looks = Sender(course), []
    async with Load(course, num_streams=16):
        while (elapsed_s := time.monotonic() - started_s) < course.num and time.monotonic() < course.until_s:
            await _mischief(course, client)
            if time.monotonic() >= kill_s:
                await kill(course, "engine")
                kill_s = time.monotonic() + _KILL_EVERY_S
            looks.append({"at_s": round(elapsed_s), **_memory(course)})
            course.done(min(round(elapsed_s), course.num) - course.num_done)
            await asyncio.sleep(min(_LOOK_EVERY_S, max(0.0, course.num - elapsed_s)))
        course.done(min(round(time.monotonic() - started_s), course.num) - course.num_done)
    await client.close()
    course.facts["looks"] = looks[:: max(1, len(looks) // 30)]
    await course.check_idle()
    await course.check_gauges(before)


async def _mischief(course: Course, client: Sender) -> None:
    what = course.chance.choice(("visitors", "engine", "stub", "triton", "nothing"))
    if what == "visitors":
        await asyncio.gather(
            *(client.send(course.chance, index, leave_after=1, max_tokens=_LONG) for index in range(20))
        )
    elif what != "nothing":
        await stop_and_continue(course, what)
    await course.check_canary(f"in the soak, {what}")


def _memory(course: Course) -> dict[str, Any]:
    return {role: gauge["memory_mib"] for role, gauge in course.house.gauges().items()}
