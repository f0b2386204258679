"""Phase `wire`: whatever a client may send gets an answer or a typed error, and everybody else is served meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.campaign.course import Course
from tests.campaign.grammar import make_case
from tests.campaign.ledger import code_of, fault_of, kind_of
from tests.campaign.messages import Case
from tests.campaign.request_paths import End, GrpcPath, Reply, ask_http

HUNDRED = 100  # cases between two canaries
MAX_TRIED_AGAIN = 8  # of a hundred, alone, to tell who did it from who suffered it
_NUM_AT_ONCE = 20
_TIMEOUT_S = 20.0
_LEAVE_S = 0.3  # where the server must wait for more


async def wire(course: Course) -> None:
    """Send the cases of the seed, a hundred at a time."""
    counts: Counter[str] = Counter()
    request_path = GrpcPath(course.house.grpc_url)
    try:
        while course.goes_on:
            num = min(HUNDRED, course.num - course.num_done)
            cases = [make_case(course.seed, number) for number in range(course.num_done, course.num_done + num)]
            suspects = await _send_all(course, request_path, cases, counts)
            await course.check_canary(f"after cases {cases[0].number} to {cases[-1].number}")
            await _try_again(course, suspects)
            course.done(num)
    finally:
        await request_path.close()
    course.facts["cases"] = dict(sorted(counts.items()))


async def send(port: int, request_path: GrpcPath, case: Case) -> Reply:
    """Send one case and return what came back."""
    timeout_s = _TIMEOUT_S if case.is_whole else _LEAVE_S
    if case.request_path == "grpc":
        return await request_path.ask(case.data, timeout_s)
    return await ask_http(port, case.data, timeout_s)


def wrong_with(case: Case, reply: Reply) -> str | None:
    """Return the fault in a reply to a case: to half a request silence, or an end of the connection, is right."""
    if not case.is_whole and reply.end in (End.HUNG, End.BROKEN):
        return None
    return fault_of(reply)


async def _send_all(
    course: Course, request_path: GrpcPath, cases: list[Case], counts: Counter[str]
) -> list[tuple[Case, Reply]]:
    places = asyncio.Semaphore(_NUM_AT_ONCE)

    async def send_one(case: Case) -> Reply:
        async with places:
            return await send(course.house.http_port, request_path, case)

    replies = await asyncio.gather(*map(send_one, cases))
    counts.update(f"{case.request_path} {_outcome(reply)}" for case, reply in zip(cases, replies, strict=True))
    return [(case, reply) for case, reply in zip(cases, replies, strict=True) if wrong_with(case, reply)]


def _outcome(reply: Reply) -> str:
    code = code_of(reply.words) if reply.end is End.REFUSED else None
    return (code or reply.end.value).lower()


async def _try_again(course: Course, suspects: list[tuple[Case, Reply]]) -> None:
    """Send suspects again, alone: who fails again did it, the others suffered it."""
    for case, reply in suspects[:MAX_TRIED_AGAIN]:
        request_path = GrpcPath(course.house.grpc_url)
        again = await send(course.house.http_port, request_path, case)
        await request_path.close()
        words = wrong_with(case, again)
        kind = (
            f"{case.request_path}, alone: {words}"
            if words
            else f"{case.request_path}, beside others: {wrong_with(case, reply)}"
        )
        replay = f"python -m tests.campaign --replay {case.number} --seed {course.seed}"
        course.fault(kind_of(kind), f"{replay}   # {case.words[:150]}: {(words or reply.words)[:150]}")
        if words:
            await course.check_canary(f"after case {case.number} alone")
    for case, reply in suspects[MAX_TRIED_AGAIN:]:
        course.fault(kind_of(f"{case.request_path}, beside others: {wrong_with(case, reply)}"), f"case {case.number}")
