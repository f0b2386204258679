"""Phase `triton_limits`: what Triton 2.51 may not survive, tried on purpose. The launcher must bring it back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

from tests.campaign.canary import canary
from tests.campaign.course import RECOVERY_S, Course
from tests.campaign.ledger import code_of
from tests.campaign.messages import grpc_bytes, http_bytes
from tests.campaign.request_paths import GrpcPath, ask_http
from tests.campaign.values import nested

_TIMEOUT_S = 20.0
_HEADER = (("triton_grpc_error", "true"),)
_NUM_PATHS, _NUM_AT_ONCE = 4, 32  # connections, and streams on all of them
SURVIVES = "survives"
_GONE_S = 3.0  # in which a server that dies of a request has died


async def triton_limits(course: Course) -> None:
    """Try each of `ATTACKS`; note whether the server survived, and how long it was away."""
    outcomes = {}
    for words, attack in ATTACKS.items():
        if not course.goes_on:
            break
        before = [process.pid for process in course.house.processes("triton")]
        await attack(course)
        outcomes[words] = await _outcome(course, before, words)
        if words not in MAY_END_THE_SERVER and outcomes[words] != SURVIVES:
            course.fault("the server does not survive", f"{words}: {outcomes[words]}")
        course.done()
    course.facts["outcomes"] = outcomes


async def _outcome(course: Course, before: list[int], words: str) -> str:
    give_up_s = started_s = time.monotonic()
    give_up_s += _GONE_S
    while time.monotonic() < give_up_s:
        if [process.pid for process in course.house.processes("triton")] != before:
            await course.settle(f"after {words}")
            return f"the server ends; served again after {time.monotonic() - started_s:.1f} s"
        await asyncio.sleep(0.1)
    if await canary(course.house):
        await course.settle(f"after {words}")
        return f"not served at once, again within {RECOVERY_S:g} s"
    return SURVIVES


async def _deep_json(course: Course) -> None:
    body = f'{{"text_input": {nested(200_000)}}}'.encode()
    await ask_http(course.house.http_port, http_bytes("POST", "/v2/models/bros/generate", body), _TIMEOUT_S)


async def _large_form(course: Course) -> None:
    body = b"text_input=" + b"x" * 6_000_000
    head = "Content-Type: application/x-www-form-urlencoded"
    await ask_http(course.house.http_port, http_bytes("POST", "/v2/models/bros/generate", body, head), _TIMEOUT_S)


async def _large_head(course: Course) -> None:
    data = http_bytes("POST", "/v2/models/bros/generate", b"{}", f"X-Long: {'x' * 4_000_000}")
    await ask_http(course.house.http_port, data, _TIMEOUT_S)


async def _errors(course: Course, metadata: tuple[tuple[str, str], ...]) -> None:
    """Open streams that end in an error of ours; with no header each must get it."""
    request_paths = [GrpcPath(course.house.grpc_url) for _ in range(_NUM_PATHS)]
    numbers = iter(range(course.facts["num_errors"]))
    ends: Counter[str] = Counter()

    async def keep_asking(request_path: GrpcPath) -> None:
        for number in numbers:
            data = grpc_bytes("bros_rt", f"error-{number}", {"text_input": ""})
            reply = await request_path.ask(data, _TIMEOUT_S, metadata=metadata)
            ends[code_of(reply.words) or reply.end.value] += 1

    await asyncio.gather(*(keep_asking(request_paths[index % _NUM_PATHS]) for index in range(_NUM_AT_ONCE)))
    for request_path in request_paths:
        await request_path.close()
    if not metadata and ends.keys() != {"INVALID_REQUEST"}:
        course.fault("an error did not come", str(dict(ends)))


async def _errors_with_header(course: Course) -> None:
    await _errors(course, _HEADER)


async def _errors_without_header(course: Course) -> None:
    await _errors(course, ())


ATTACKS: Mapping[str, Callable[[Course], Awaitable[None]]] = {
    "JSON nested 200,000 deep": _deep_json,
    "a form-encoded body of 6 MB": _large_form,
    "a header of 4 MB": _large_head,
    "gRPC streams that end in errors, without `triton_grpc_error`": _errors_without_header,
    "gRPC streams that end in errors, with `triton_grpc_error`": _errors_with_header,
}
MAY_END_THE_SERVER = {"JSON nested 200,000 deep", "gRPC streams that end in errors, with `triton_grpc_error`"}
