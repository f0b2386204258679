"""Load: streams of both classes on both request paths, each a request after the other, all of them in the ledger."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

from tests.campaign.course import Course
from tests.campaign.ledger import Entry
from tests.campaign.messages import generate_bytes, grpc_bytes
from tests.campaign.request_paths import End, GrpcPath, Reply, ask_http

TIMEOUT_S = 20.0  # of one request: far beyond any that is served
_PAUSE_S = 0.3  # after an error
_numbers = itertools.count(1)


class Load:
    """Keeps `num_streams` going inside its `async with` block; at its end every request has ended."""

    def __init__(self, course: Course, num_streams: int = 24, timeout_s: float = TIMEOUT_S) -> None:
        self._course = course
        self._num_streams = num_streams
        self._timeout_s = timeout_s
        self._is_over = False
        self._num_answered = 0
        self._tasks: list[asyncio.Task[None]] = []
        self.client = Sender(course)

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._keep(index)) for index in range(self._num_streams)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)
        await self.client.close()

    async def see_answers(self, num: int, timeout_s: float = 30.0) -> None:
        """Wait until `num` more requests were answered; a fault where that takes too long."""
        aim = self._num_answered + num
        try:
            async with asyncio.timeout(timeout_s):
                while self._num_answered < aim:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            self._course.fault("load is not answered", f"{self._num_answered - aim + num} of {num} in {timeout_s:g} s")

    async def _keep(self, index: int) -> None:
        chance = random.Random(f"{self._course.seed}/{index}")
        while not self._is_over:
            reply = await self.client.send(chance, index, self._timeout_s)
            if reply.end is End.ANSWERED:
                self._num_answered += 1
            else:
                await asyncio.sleep(_PAUSE_S)


class Sender:
    """Sends good requests and writes them down."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._paths: dict[str, GrpcPath] = {}

    async def send(
        self,
        chance: random.Random,
        index: int,
        timeout_s: float = TIMEOUT_S,
        leave_after: int | None = None,
        max_tokens: int | None = None,
        num_prompt: int | None = None,
    ) -> Reply:
        """Send one request. `index` stands for its class and its request path; see `Reply`."""
        entry = Entry(
            client_id=f"{self._course.name}-{next(_numbers)}",
            request_path=("grpc", "http")[index // 2 % 2],
            priority_class=("rt", "be")[index % 2],
            num_prompt=num_prompt or chance.randint(1, 200),
            max_tokens=max_tokens or chance.randint(2, 60),
        )
        self._course.ledger.open(entry)
        fields = self._fields(chance, entry, is_streamed=leave_after is not None or chance.random() < 0.7)
        model = chance.choice(("bros", f"bros_{entry.priority_class}"))
        entry.reply = await self._ask(entry, model, fields, timeout_s, leave_after)
        return entry.reply

    def _fields(self, chance: random.Random, entry: Entry, is_streamed: bool) -> dict[str, Any]:
        prompt = [chance.randrange(3, 30_000)] * entry.num_prompt
        more = {"max_tokens": entry.max_tokens, "stream": is_streamed, "ignore_eos": True}
        return {"input_ids": prompt, "priority_class": entry.priority_class, **more}

    async def _ask(
        self, entry: Entry, model: str, fields: dict[str, Any], timeout_s: float, leave_after: int | None
    ) -> Reply:
        house = self._course.house
        if entry.request_path == "grpc":
            request_path = self._paths.setdefault(house.grpc_url, GrpcPath(house.grpc_url))
            return await request_path.ask(grpc_bytes(model, entry.client_id, fields), timeout_s, leave_after)
        endpoint = "generate_stream" if fields["stream"] else "generate"
        data = generate_bytes(model, {**fields, "id": entry.client_id}, endpoint)
        return await ask_http(house.http_port, data, timeout_s, leave_after)

    async def close(self) -> None:
        """Close the connections."""
        for request_path in self._paths.values():
            await request_path.close()
