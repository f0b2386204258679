"""The front door without a port: requests go to the application itself, and a fake stands for the server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI

from client import AsyncFakeTransport, FakeServer
from client.openai.chat import CHAT
from client.openai.completions import COMPLETIONS
from front.app import make_app
from front.serving import options_of
from front.settings import Settings

CHAT_PATH, COMPLETIONS_PATH = CHAT.path, COMPLETIONS.path


@asynccontextmanager
async def opened(
    server: FakeServer, settings: Settings | None = None
) -> AsyncIterator[tuple[FastAPI, httpx2.AsyncClient]]:
    """Give the application in front of `server`, and a client of it."""
    app = make_app(settings or Settings(), connect=lambda _: AsyncFakeTransport(server))
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http,
    ):
        yield app, http


@contextmanager
def listening(server: FakeServer, settings: Settings | None = None) -> Iterator[str]:
    """Serve the application on a free port, in front of `server`; give its URL."""
    settings = replace(settings or Settings(), port=0, drain_timeout_s=1.0)
    app = make_app(settings, connect=lambda _: AsyncFakeTransport(server))
    door = uvicorn.Server(uvicorn.Config(app, **options_of(settings)))
    thread = threading.Thread(target=door.run)
    thread.start()
    try:
        while not door.started:
            assert thread.is_alive(), "the front door did not start"
        yield f"http://127.0.0.1:{door.servers[0].sockets[0].getsockname()[1]}"
    finally:
        door.should_exit = True
        thread.join()


class Door:
    """Sends one request at a time, each to an application of its own in front of `server`."""

    def __init__(self, server: FakeServer | None = None, settings: Settings | None = None) -> None:
        self.server = server or FakeServer()
        self.settings = settings

    def send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        async def main() -> httpx2.Response:
            async with opened(self.server, self.settings) as (_, http):
                return await http.request(method, path, **options)

        return asyncio.run(main())

    def get(self, path: str, **headers: str) -> httpx2.Response:
        return self.send("GET", path, headers=headers)

    def post(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> httpx2.Response:
        return self.send("POST", path, json=body, headers=headers)

    def chat(self, headers: dict[str, str] | None = None, **fields: Any) -> httpx2.Response:
        return self.post(CHAT_PATH, {"messages": [{"role": "user", "content": "one two three"}], **fields}, headers)

    def complete(self, headers: dict[str, str] | None = None, **fields: Any) -> httpx2.Response:
        return self.post(COMPLETIONS_PATH, {"prompt": "one two three", **fields}, headers)

    @property
    def inputs(self) -> dict[str, Any]:
        """The last request to the server."""
        return dict(self.server.calls[-1].inputs)


def usage_of(num_prompt: int, num_output: int, num_cached: int = 0) -> dict[str, Any]:
    """Return OpenAI's `usage` of these numbers of tokens."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_output,
        "total_tokens": num_prompt + num_output,
        "prompt_tokens_details": {"cached_tokens": num_cached},
    }


def error_of(response: httpx2.Response) -> dict[str, Any]:
    """Return the error of a response, which must have OpenAI's four fields and no other."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return dict(body["error"])


def events_of(response: httpx2.Response) -> list[dict[str, Any]]:
    """Return the events of a stream, which must end in [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [block.removeprefix("data: ") for block in response.text.split("\n\n") if block]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
