"""Dynamo's router goes by what the engines' prefix caches hold. Needs `make serve-many` once."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import numpy as np
import psutil
import pytest

from tests.backend.dynamo.running import Many, needs_dynamo, serving
from tests.triton.servers import wait_until

pytestmark = needs_dynamo
NUM_PROMPTS, NUM_TOKENS = 10, 320


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Many]:
    config: Path = tmp_path_factory.mktemp("events") / "engine.json"
    config.write_text(json.dumps({"executor": "sim", "scheduler": {"prefix_caching": True}}))
    with serving("--replicas", "2", "--config", str(config), "--predict-s", "0") as many:
        yield many


def prompts(seed: int) -> list[list[int]]:
    prompts: list[list[int]] = np.random.default_rng(seed).integers(1000, 30_000, (NUM_PROMPTS, NUM_TOKENS)).tolist()
    return prompts


def num_cached(many: Many, prompt: list[int], **fields: str) -> int:
    """Return how many tokens of a prompt its engine had cached."""
    body = {"model": "bros", "prompt": prompt, "max_tokens": 2, "ignore_eos": True, **fields}
    answer = httpx.post(f"{many.url}/v1/completions", json=body, timeout=30.0)
    assert answer.status_code == 200, answer.text
    details: dict[str, int] = answer.json()["usage"]["prompt_tokens_details"]
    return details["cached_tokens"]


def engine_pids(many: Many) -> list[int]:
    """The engines; a worker starts its own, in a session of its own."""
    found = [psutil.Process(pid).children(recursive=True) for pid in many.worker_pids]
    alive = [child for each in found for child in each if child.status() != psutil.STATUS_ZOMBIE]
    return [child.pid for child in alive if "backend.server.engine_process" in child.cmdline()]


def overlaps(many: Many) -> list[int]:
    """Return how many tokens of each prompt the router took to be cached where it sent it, by its log."""
    log = re.sub(r"\x1b\[[0-9;]*m", "", (many.directory / "frontend.log").read_text())
    return [16 * int(found) for found in re.findall(r"route request completed.*? overlap_blocks=(\d+)", log)]


def test_a_prompt_goes_where_its_beginning_is(many: Many) -> None:
    """By chance all would do so once in 2**10 times."""
    first = [num_cached(many, prompt) for prompt in prompts(0)]
    again = [num_cached(many, [*prompt, 5]) for prompt in prompts(0)]
    assert (first, again) == ([0] * NUM_PROMPTS, [NUM_TOKENS] * NUM_PROMPTS)


def test_a_salt_keeps_prompts_apart_and_finds_its_own(many: Many) -> None:
    prompt = prompts(1)[0]
    assert num_cached(many, [*prompt, 5]) == 0
    assert [num_cached(many, [*prompt, 5], cache_salt=salt) for salt in ("a", "b", "a", "b")] == [
        0,
        0,
        NUM_TOKENS,
        NUM_TOKENS,
    ]


def test_an_engine_that_dies_is_known_to_hold_nothing(many: Many) -> None:
    """Its worker lives, and the engine that comes next begins anew; the other's prompts are where they were."""
    for prompt in prompts(2):
        num_cached(many, prompt)
    victim = engine_pids(many)[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(set(engine_pids(many)) - {victim}) == 2, "another engine", 30.0)
    cached = [num_cached(many, [*prompt, 5]) for prompt in prompts(2)]
    assert set(cached) == {0, NUM_TOKENS}
    assert overlaps(many)[-NUM_PROMPTS:] == cached
