"""Runs every choice of a request of OpenAI's API at once, as a request of its own to the engine each."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from client.client import AsyncClient
from client.errors import ClientError
from client.generation import Generation
from client.openai.asked import Json
from client.openai.errors import from_client
from client.openai.job import Job, require_end

T = TypeVar("T")


async def complete(client: AsyncClient, job: Job) -> Json:
    """Return the whole answer. When a choice fails, or this is cancelled, all choices are. Raises ApiError."""
    if job.asked.num_choices == 1:
        return job.answer([await _generation(client, job, 0)])
    tasks = [asyncio.create_task(_generation(client, job, choice)) for choice in range(job.asked.num_choices)]
    try:
        return job.answer(await asyncio.gather(*tasks))
    finally:
        await cancel(tasks)


async def cancel(tasks: list[asyncio.Task[T]]) -> None:
    """Cancel tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _generation(client: AsyncClient, job: Job, choice: int) -> Generation:
    try:
        generation = await client.generate(job.asked.prompt_of(choice), **job.options(choice))
    except ClientError as error:
        raise from_client(error) from error
    require_end(generation)
    return generation
