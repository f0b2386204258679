"""`kill -9` of the front door on the real stack: it comes back, its batch goes on, and nobody else notices."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import httpx2
import openai
import psutil
import pytest
from openai.types import Batch

from tests.front.batches.house import ENDED, chat_line, to_bytes
from tests.triton.servers import START_TIMEOUT_S, Server, serving, wait_until
from tests.triton.streams import Stream

pytestmark = pytest.mark.triton
NUM_LINES = 400  # several times what a batch has open at once
LONG = 1500  # tokens, at 8 ms each: longer than the front door takes to come back
SLOW = {"max_tokens": 24, "min_tokens": 24, "ignore_eos": True}


def child_of(server: Server, word: str) -> psutil.Process:
    """Return the process of a launch that runs the module `word`."""
    below = psutil.Process(server.pid).children(recursive=True)
    (found,) = [process for process in below if word in process.cmdline()]
    return found


def is_well(client: openai.OpenAI) -> bool:
    try:
        return bool(client.models.list().data)
    except openai.APIConnectionError:
        return False


def ended(client: openai.OpenAI, batch: Batch) -> Batch:
    """Return a batch once it has ended."""

    def has_ended() -> bool:
        nonlocal batch
        batch = client.batches.retrieve(batch.id)
        return batch.status in ENDED

    wait_until(has_ended, "the end of the batch", START_TIMEOUT_S)
    return batch


def num_completed(client: openai.OpenAI, batch: Batch) -> int:
    counts = client.batches.retrieve(batch.id).request_counts
    assert counts is not None
    return counts.completed


def test_a_killed_front_door_comes_back_and_its_batch_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = ("--executor", "sim", "--openai-port", "0")
    with (
        serving(log, *options) as server,
        openai.OpenAI(base_url=server.openai_url, api_key="none", max_retries=0) as client,
        Stream(server.grpc_url) as direct,
    ):
        others = direct.send({"text_input": "a b", "stream": True, "max_tokens": LONG, "ignore_eos": True}, "bros_rt")
        lines = [chat_line(f"r{number}", **SLOW) for number in range(NUM_LINES)]
        file = client.files.create(file=("in.jsonl", to_bytes(lines)), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        talk = client.completions.create(
            model="bros", prompt="a b", max_tokens=LONG, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(talk))
        wait_until(lambda: num_completed(client, batch) > 0, "the first line of the batch", START_TIMEOUT_S)
        engine, front = child_of(server, "backend.server.engine_process"), child_of(server, "front.main")
        front.kill()
        with pytest.raises((httpx2.HTTPError, openai.APIConnectionError)):
            list(talk)
        assert not others.is_final.is_set()
        wait_until(lambda: is_well(client), "the front door's return", START_TIMEOUT_S)
        batch = ended(client, batch)
        assert batch.status == "completed"
        assert batch.output_file_id is not None
        answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
        assert Counter(line["custom_id"] for line in answers) == {f"r{number}": 1 for number in range(NUM_LINES)}
        assert {line["response"]["body"]["usage"]["completion_tokens"] for line in answers} == {24}
        assert others.is_final.wait(START_TIMEOUT_S)
        assert (others.errors, len(others.token_ids)) == ([], LONG)
        assert child_of(server, "backend.server.engine_process") == engine
        wait_until(lambda: server.num_requests() == 0, "the end of what the killed process had sent")
    words = log.read_text()
    assert "bros-openai ended with code -9; starting it again" in words
    assert "bros-openai is ready again" in words
