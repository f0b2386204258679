"""Files and batches without a port: openai-python asks the application itself, and a fake stands for the engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI
from openai import AsyncOpenAI
from openai.types import Batch

from client import AsyncFakeTransport, FakeServer
from client.batch.lines import CHAT
from front.app import make_app
from front.batches.service import open_batches
from front.batches.settings import BatchSettings
from front.settings import Settings

PATIENCE_S = 60.0
QUICK = BatchSettings(first_wait_s=0.0, disk_wait_s=0.0)
ENDED = {"completed", "failed", "expired", "cancelled"}


@asynccontextmanager
async def application(
    root: Path, server: FakeServer | None = None, settings: BatchSettings = QUICK, keys: Path | None = None
) -> AsyncIterator[FastAPI]:
    """Give the application whose files and batches lie in `root`."""
    transport = AsyncFakeTransport(server or FakeServer())
    app = make_app(Settings(api_key_file=keys), connect=lambda _: transport)
    async with (
        asyncio.timeout(PATIENCE_S),
        app.router.lifespan_context(app),
        open_batches(root, app.state.engine.answer, settings) as app.state.batches,
    ):
        yield app


def asking(app: FastAPI, address: str = "127.0.0.1") -> httpx2.AsyncClient:
    """Return a client of an application, whose requests come from `address`."""
    transport = httpx2.ASGITransport(app, client=(address, 123))
    return httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1")


@asynccontextmanager
async def serving(
    root: Path, server: FakeServer | None = None, settings: BatchSettings = QUICK, keys: Path | None = None
) -> AsyncIterator[httpx2.AsyncClient]:
    """Give a client of such an application."""
    async with application(root, server, settings, keys) as app, asking(app) as http:
        yield http


def openai_of(http: httpx2.AsyncClient, key: str = "any") -> AsyncOpenAI:
    """Return openai-python on that client."""
    return AsyncOpenAI(http_client=http, base_url="http://127.0.0.1/v1", api_key=key, max_retries=0)


async def ended(client: AsyncOpenAI, batch: Batch) -> Batch:
    """Return a batch once it has ended."""
    while batch.status not in ENDED:
        batch = await client.batches.retrieve(batch.id)
    return batch


async def begin(client: AsyncOpenAI, lines: Sequence[str], endpoint: Any = CHAT, **options: Any) -> Batch:
    """Upload lines and begin a batch of them."""
    file = await client.files.create(file=("in.jsonl", to_bytes(lines)), purpose="batch")
    return await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **options)


async def results(client: AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """Return the lines of an output or an error file."""
    assert file_id is not None
    content = await client.files.content(file_id)
    return [json.loads(line) for line in content.text.splitlines()]


def chat_line(custom_id: str, **body: object) -> str:
    """Return a line whose answer is `say <custom_id> say `."""
    asked = {"messages": [{"role": "user", "content": f"say {custom_id}"}], "max_tokens": 3} | body
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": asked})


def to_bytes(lines: Sequence[str]) -> bytes:
    """Return the file that holds the lines."""
    return "".join(f"{line}\n" for line in lines).encode()
