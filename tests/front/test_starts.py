"""Requests that come together are begun one by one, real-time first."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from front.protocol import BoundedProtocol


class Wire(asyncio.Transport):
    """A connection that sends nowhere."""

    def __init__(self, address: str) -> None:
        super().__init__({"peername": (address, 1), "sockname": ("127.0.0.1", 2)})

    def write(self, data: Any) -> None:
        """Drop it."""

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        """Do nothing."""

    def resume_reading(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Door:
    """Takes requests in, and notes the turn of the event loop in which each is begun. Inside an event loop."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, str]] = []
        self.turn = 0
        self._config = uvicorn.Config(self._answer, http=BoundedProtocol, lifespan="off", interface="asgi3")
        self._config.load()
        self._state = ServerState()

    async def turns(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)
            self.turn += 1

    def take(self, path: str, address: str = "10.0.0.1", tier: str = "flex") -> BoundedProtocol:
        protocol = BoundedProtocol(config=self._config, server_state=self._state, app_state={})
        protocol.connection_made(Wire(address))
        body = f'{{"service_tier": "{tier}"}}'
        protocol.data_received(f"POST {path} HTTP/1.1\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        return protocol

    @property
    def order(self) -> list[str]:
        return [path for _, path in self.begun]

    async def _answer(self, scope: Any, _: Any, send: Any) -> None:
        self.begun.append((self.turn, scope["path"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def test_of_many_requests_at_once_each_turn_of_the_event_loop_begins_one() -> None:
    async def main() -> list[int]:
        door = Door()
        for number in range(50):
            door.take(f"/{number}")
        await door.turns(60)
        return [turn for turn, _ in door.begun]

    turns = asyncio.run(main())
    assert len(turns) == 50
    assert len(set(turns)) == 50


def test_real_time_and_other_addresses_do_not_wait_behind_a_burst() -> None:
    async def main() -> list[str]:
        door = Door()
        for number in range(50):
            door.take(f"/{number}")
        door.take("/other", address="10.0.0.2")
        door.take("/urgent", tier="priority")
        await door.turns(60)
        return door.order

    order = asyncio.run(main())
    assert len(order) == 52
    assert {"/other", "/urgent"} <= set(order[:4])


def test_a_client_that_left_before_its_turn_costs_nothing() -> None:
    async def main() -> list[str]:
        door = Door()
        protocols = [door.take(f"/{number}") for number in range(10)]
        for protocol in protocols[5:]:
            protocol.connection_lost(None)
        await door.turns(20)
        return door.order

    assert asyncio.run(main()) == [f"/{number}" for number in range(5)]
