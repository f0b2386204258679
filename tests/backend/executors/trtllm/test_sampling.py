from __future__ import annotations

from dataclasses import fields

from backend.core.request import SamplingParams
from backend.executors.trtllm.sampling import sampling_arguments
from tests.backend.executors.trtllm.fake_executor import FakeSamplingParams

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
    ignore_eos=True,
    wants_log_probs=True,
)
REFUSED = {"json_schema", "num_top_log_probs"}  # on the way in: a request has none


def test_every_field_has_its_counterpart() -> None:
    assert sampling_arguments(EVERY_FIELD) == {
        "max_tokens": 7,
        "min_tokens": 2,
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "seed": 42,
        "stop_token_ids": [3, 9],
        "ignore_eos": True,
        "logprobs": 1,
        "include_stop_str_in_output": True,
        "detokenize": False,
    }
    asked = [field for field in fields(SamplingParams) if field.init]
    changed = {field.name for field in asked if getattr(EVERY_FIELD, field.name) != field.default}
    assert changed == {field.name for field in asked} - REFUSED, (
        "a new field of SamplingParams needs its counterpart here"
    )


def test_temperature_zero_is_greedy_whatever_the_version_thinks_of_it() -> None:
    arguments = sampling_arguments(SamplingParams(temperature=0.0, seed=5))
    assert arguments["top_k"] == 1
    assert not {"temperature", "seed", "top_p"} & arguments.keys()


def test_plain_sampling_does_not_read_as_greedy() -> None:
    arguments = sampling_arguments(SamplingParams(temperature=1.0))
    assert (arguments["top_k"], arguments["top_p"]) == (0, 1.0)


def test_neutral_penalties_are_not_said() -> None:
    assert not any("penalty" in name for name in sampling_arguments(SamplingParams(temperature=1.0)))


def test_tensorrt_llm_knows_every_argument() -> None:
    arguments = sampling_arguments(EVERY_FIELD)
    made = FakeSamplingParams(**arguments)
    assert {name: getattr(made, name) for name in arguments} == arguments
