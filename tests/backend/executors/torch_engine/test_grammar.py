"""Outputs that follow a schema: the same tokens under every schedule, and an error ends its own row only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from backend.core.errors import BrosError, InvalidRequestError, OverloadedError
from backend.core.executor import Executor
from backend.core.plan import StepBatch
from backend.core.request import PriorityClass, Request
from backend.executors.torch_engine import load
from backend.executors.torch_engine.sampler import Sampler
from backend.executors.torch_engine.settings import Dtype, TorchSettings
from backend.text.grammar import Grammars
from backend.text.tokenizer import load_tokenizer
from tests.backend.executors.torch_engine.models import VOCAB_SIZE, save_tiny_model
from tests.backend.executors.torch_engine.schedules import Runner, Schedule, make_request, random_prompts
from tests.backend.executors.torch_engine.test_exactness import SCHEDULES
from tests.backend.text.test_tokenizer import save_tokenizer

NUM_TOKENS = 24
EOS = 2
PROMPTS = list(random_prompts(8, 90, VOCAB_SIZE, seed=4))
SCHEMA = json.dumps({"enum": ["red", "green", "blue", 17, True, None]})


class OneToken:
    """Allows one token, or raises an error instead."""

    def __init__(self, token_id: int | BrosError) -> None:
        self.token_id = token_id

    def allowed(self, _output: Sequence[int]) -> NDArray[np.bool_]:
        if isinstance(self.token_id, BrosError):
            raise self.token_id
        return np.arange(8) == self.token_id


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(save_tokenizer(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def executor(directory: Path) -> Executor:
    settings = TorchSettings(
        model_path=str(directory), dtype=Dtype.FLOAT32, num_kv_tokens=8_000, host_kv_gib=0.01, num_threads=1
    )
    return load(settings, lambda _stage, _fraction: None)


@pytest.fixture(scope="module")
def grammars(directory: Path) -> Iterator[Grammars]:
    grammars = Grammars(load_tokenizer(str(directory)))
    yield grammars
    grammars.close()


def requests(grammars: Grammars) -> list[Request]:
    """Every other one follows the schema, half of those at random; the others are free."""
    made = []
    for index, prompt in enumerate(PROMPTS):
        schema = SCHEMA if index % 2 else None
        temperature = 0.0 if index % 4 < 2 else 1.0
        request = make_request(
            f"r{index}", prompt, max_tokens=NUM_TOKENS, json_schema=schema, temperature=temperature, seed=index
        )
        request.grammar = None if schema is None else grammars.grammar(schema, PriorityClass.REAL_TIME)
        made.append(request)
    return made


@pytest.fixture(scope="module")
def alone(executor: Executor, grammars: Grammars) -> list[list[int]]:
    return Runner(executor, Schedule()).run(requests(grammars))


def test_outputs_conform_and_vary(directory: Path, alone: list[list[int]]) -> None:
    tokenizer = load_tokenizer(str(directory))
    ended = [output[: output.index(EOS)] for output in alone[1::2] if EOS in output]
    texts = [b"".join(map(tokenizer.token_bytes, output)) for output in ended]
    assert all(json.loads(text) in json.loads(SCHEMA)["enum"] for text in texts)
    assert len(set(texts)) > 1


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_masked_tokens_are_the_same_under(
    schedule: Schedule, executor: Executor, grammars: Grammars, alone: list[list[int]]
) -> None:
    assert Runner(executor, schedule).run(requests(grammars)) == alone


def test_a_grammar_wins_over_the_likeliest_token() -> None:
    bound, free = (make_request(name, [0], json_schema=schema) for name, schema in (("bound", "{}"), ("free", None)))
    bound.grammar = OneToken(3)
    chosen = Sampler({7}).sample(torch.arange(10.0).repeat(2, 1), [bound, free])
    assert (chosen.token_ids, chosen.errors) == ([3, 9], {})


def test_a_grammar_that_the_model_has_no_token_for_is_an_error() -> None:
    request = make_request("r", [0], json_schema="{}")
    request.grammar = OneToken(7)
    errors = Sampler({7}).sample(torch.arange(5.0)[None], [request]).errors
    assert str(errors[0]) == "json_schema: no token of the model may come next"


@pytest.mark.parametrize("error", [InvalidRequestError("stuck"), OverloadedError("full", retry_after_s=0.1)], ids=str)
def test_a_grammar_that_fails_ends_its_own_request_only(executor: Executor, error: BrosError) -> None:
    stuck, free = make_request("stuck", [5, 6], json_schema="{}"), make_request("free", [5, 6, 7])
    stuck.grammar = OneToken(error)
    stuck.row, free.row = 0, 1
    slots = np.arange(2 * 8, dtype=np.int32).reshape(2, 8)
    result = executor.execute(StepBatch([stuck, free], [2, 3], slots))
    assert result.token_ids[0] is None
    assert result.token_ids[1] is not None
    assert result.errors == {0: error}


def test_a_request_without_a_grammar_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a row that asks for nothing was worked on")

    monkeypatch.setattr(Sampler, "_restrict", fail)
    rows = [make_request(f"r{i}", [0]) for i in range(3)]
    assert Sampler({7}).sample(torch.arange(5.0).repeat(3, 1), rows).token_ids == [4, 4, 4]
