"""In float32 every schedule yields the tokens of the library's own `generate`, on a tiny random model.

Requests share blocks in every schedule (see `Runner`). The slow tests do it with 50 prompts of 1 to 2,000 tokens.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from backend.core.executor import Executor
from backend.executors.torch_engine import load
from backend.executors.torch_engine.settings import Dtype, TorchSettings
from tests.backend.executors.torch_engine.models import VOCAB_SIZE, reference_tokens, save_tiny_model
from tests.backend.executors.torch_engine.schedules import Runner, Schedule, make_request, random_prompts

NUM_TOKENS = 12
PROMPTS = list(random_prompts(16, 150, VOCAB_SIZE))
LONG_PROMPTS = list(random_prompts(50, 2000, VOCAB_SIZE, seed=1))

SCHEDULES = {
    "alone": Schedule(),
    "all at once": Schedule(batch=16),
    "chunks of 1": Schedule(chunk=1, batch=16),
    "chunks of 7": Schedule(chunk=7, batch=5),
    "chunks of 64": Schedule(chunk=64, batch=16),
    "preempted, copied back": Schedule(chunk=64, batch=16, preempt_every=3, copies_back=True),
    "preempted, recomputed": Schedule(chunk=64, batch=16, preempt_every=3),
    **{f"fuzz {seed}": Schedule(batch=16, is_random=True, seed=seed) for seed in range(3)},
    **{
        f"fuzz {seed}, preempted": Schedule(
            batch=16, preempt_every=2, copies_back=seed % 2 == 0, is_random=True, seed=seed
        )
        for seed in range(3, 7)
    },
}


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def expected(model_directory: Path) -> list[list[int]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    return [reference_tokens(model, prompt, NUM_TOKENS) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def executor(model_directory: Path) -> Executor:
    settings = TorchSettings(
        model_path=str(model_directory),
        dtype=Dtype.FLOAT32,
        num_kv_tokens=40_000,
        host_kv_gib=0.04,
        max_tokens_per_step=16_384,
        num_threads=1,
    )
    return load(settings, lambda _stage, _fraction: None)


def test_reference_tokens_vary(expected: list[list[int]]) -> None:
    assert len({tuple(tokens) for tokens in expected}) == len(expected)
    assert all(len(set(tokens)) > 3 for tokens in expected)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_tokens_equal_the_library_under(schedule: Schedule, executor: Executor, expected: list[list[int]]) -> None:
    requests = [
        make_request(f"r{i}", prompt, max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS) for i, prompt in enumerate(PROMPTS)
    ]
    assert Runner(executor, schedule).run(requests) == expected


@pytest.fixture(scope="module")
def long_expected(model_directory: Path) -> list[list[int]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    return [reference_tokens(model, prompt, NUM_TOKENS) for prompt in LONG_PROMPTS]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_tokens_of_fifty_prompts_up_to_2000_equal_the_library_under(
    schedule: Schedule, executor: Executor, long_expected: list[list[int]]
) -> None:
    requests = [
        make_request(f"r{i}", prompt, max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS)
        for i, prompt in enumerate(LONG_PROMPTS)
    ]
    schedule = dataclasses.replace(
        schedule,
        batch=1 if schedule.batch == 1 else 32,
        preempt_every=schedule.preempt_every and 40,  # a repeated computation must get further each time
    )
    assert Runner(executor, schedule).run(requests) == long_expected
