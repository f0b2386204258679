"""Sampling parameters: one to one."""

from __future__ import annotations

from dataclasses import fields

from backend.core.request import SamplingParams
from backend.executors.vllm.sampling import sampling_arguments

EVERY_FIELD = SamplingParams(
    max_tokens=7,
    min_tokens=2,
    temperature=0.7,
    top_k=5,
    top_p=0.9,
    min_p=0.1,
    repetition_penalty=1.1,
    presence_penalty=0.2,
    frequency_penalty=0.3,
    seed=42,
    stop_token_ids=frozenset({9, 3}),
    wants_log_probs=True,
    num_top_log_probs=3,
    json_schema='{"type": "object"}',
)
OTHER_NAMES = {"stop_token_ids", "ignore_eos", "wants_log_probs", "num_top_log_probs", "json_schema"}


def test_every_field_has_its_counterpart() -> None:
    told = sampling_arguments(EVERY_FIELD, {2})
    same = {field.name for field in fields(SamplingParams) if field.init} - OTHER_NAMES
    assert {name: told[name] for name in same} == {name: getattr(EVERY_FIELD, name) for name in same}
    assert (told["stop_token_ids"], told["logprobs"]) == ([2, 3, 9], 3)
    assert told["structured_outputs"] == {"json": '{"type": "object"}'}


def test_an_end_of_text_that_is_ignored_is_no_stop_token() -> None:
    assert sampling_arguments(SamplingParams(ignore_eos=True), {2})["stop_token_ids"] == []


def test_a_greedy_request_has_no_seed() -> None:
    assert "seed" not in sampling_arguments(SamplingParams(seed=3), {2})
