"""Translates Dynamo's requests: the fields kept, the fields refused by name, and the fields of an answer."""

from __future__ import annotations

from typing import Any

import pytest

from backend.config import ServiceSettings
from backend.core.errors import InvalidRequestError
from backend.core.request import PriorityClass
from backend.dynamo.translate import answer_of, generation_of
from backend.link.validate import Defaults
from backend.wire import names as wire
from backend.wire.protocol import Chunk, End, Generation, Sampling, Timings

DEFAULTS = Defaults("bros", wire.PER_REQUEST, ServiceSettings(default_class=PriorityClass.BEST_EFFORT))


def request(**sections: Any) -> dict[str, Any]:
    return {"token_ids": [5, 6, 7], "sampling_options": {}, "stop_conditions": {}, "output_options": {}, **sections}


def test_class_and_objectives_come_as_metadata() -> None:
    metadata = {"policy-class": "rt", "ttft-slo-ms": "250", "tpot-slo-ms": "50", "other": "x"}
    generation = generation_of(request(), metadata, DEFAULTS)
    assert (generation.priority_class, generation.ttft_slo_s, generation.tpot_slo_s) == ("rt", 0.25, 0.05)
    assert generation_of(request(), {}, DEFAULTS).priority_class == "be"
    assert generation_of(request(), {"deadline-ms": "9000"}, DEFAULTS).deadline_s == 9.0


def test_every_option_keeps_its_value() -> None:
    options = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "seed": -3, "n": 1, "logit_bias": None}
    options |= {"repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.3}
    stop = {"max_tokens": 9, "min_tokens": 2, "ignore_eos": True, "stop": ["x"]}
    stop |= {"stop_token_ids_hidden": [8, 9], "stop_token_ids": [9, 10]}
    generation = generation_of(request(sampling_options=options, stop_conditions=stop), {}, DEFAULTS)
    assert generation == Generation(
        priority_class="be",
        token_ids=(5, 6, 7),
        is_streamed=True,
        sampling=Sampling(
            max_tokens=9,
            min_tokens=2,
            temperature=0.5,
            top_k=7,
            top_p=0.9,
            min_p=0.1,
            repetition_penalty=1.1,
            presence_penalty=0.2,
            frequency_penalty=0.3,
            seed=-3 & (2**63 - 1),
            stop_token_ids=(9, 10, 8),
            ignore_eos=True,
        ),
    )


def test_a_top_p_of_zero_is_the_likeliest_token() -> None:
    """As at the front door; to the engine it would say "not set"."""
    options = {"temperature": 0.7, "top_p": 0.0, "top_k": 50}
    sampling = generation_of(request(sampling_options=options), {}, DEFAULTS).sampling
    assert (sampling.temperature, sampling.top_p) == (0.0, 1.0)


def test_a_request_that_moved_asks_for_no_more_tokens_than_it_may_have() -> None:
    generation = generation_of(request(stop_conditions={"max_tokens": 3, "min_tokens": 8}), {}, DEFAULTS)
    assert generation.sampling is not None
    assert (generation.sampling.min_tokens, generation.sampling.max_tokens) == (3, 3)
    with pytest.raises(InvalidRequestError, match="min_tokens"):
        generation_of(request(stop_conditions={"max_tokens": 3, "min_tokens": "8"}), {}, DEFAULTS)


def test_a_request_without_a_temperature_gets_openais() -> None:
    assert generation_of(request(), {}, DEFAULTS).sampling.temperature == 1.0
    greedy = request(sampling_options={"temperature": 0.0})
    assert generation_of(greedy, {}, DEFAULTS).sampling.temperature == 0.0


@pytest.mark.parametrize(
    ("sections", "metadata", "named"),
    [
        ({"sampling_options": {"n": 2}}, {}, r"n: 2"),
        ({"sampling_options": {"guided_decoding": {"json": "{}"}}}, {}, "guided_decoding"),
        ({"sampling_options": {"logit_bias": {"3": 1.0}}}, {}, "logit_bias"),
        ({"sampling_options": {"best_of": 2}}, {}, r"best_of: 2"),
        ({"output_options": {"logprobs": 21}}, {}, "num_top_log_probs: 21"),
        ({"routing": {"cache_salt": "a" * 129}}, {}, "cache_salt: 129 characters"),
        ({"output_options": {"prompt_logprobs": 1}}, {}, "prompt_logprobs"),
        ({"sampling_options": {"temperature": -1.0}}, {}, "temperature"),
        ({}, {"policy-class": "vip"}, "vip"),
        ({}, {"ttft-slo-ms": "soon"}, "soon"),
        ({}, {"tpot-slo-ms": "-4"}, "-4"),
    ],
)
def test_what_the_engine_lacks_is_refused_by_name(sections: Any, metadata: dict[str, str], named: str) -> None:
    with pytest.raises(InvalidRequestError, match=named):
        generation_of(request(**sections), metadata, DEFAULTS)


def test_a_salt_comes_as_the_router_has_it() -> None:
    assert generation_of(request(routing={"dp_rank": 0, "cache_salt": "mine"}), {}, DEFAULTS).cache_salt == "mine"
    assert generation_of(request(routing={"dp_rank": 0}), {}, DEFAULTS).cache_salt == ""


@pytest.mark.parametrize("num_top", [0, 2])
def test_alternatives_are_asked_for_by_their_number(num_top: int) -> None:
    generation = generation_of(request(output_options={"logprobs": num_top}), {}, DEFAULTS)
    assert (generation.wants_log_probs, generation.sampling.num_top_log_probs) == (True, num_top)
    assert not generation_of(request(), {}, DEFAULTS).wants_log_probs


def test_alternatives_stand_by_the_token_they_belong_to() -> None:
    chunk = Chunk(1, "ab", (3, 4), (-0.1, -2.0), top_ids=(3, 9, 8, 4), top_log_probs=(-0.1, -3.0, -0.5, -2.0))
    generation = generation_of(request(output_options={"logprobs": 2}), {}, DEFAULTS)
    tops = answer_of(chunk, generation, 2)["top_logprobs"]
    assert [[(top["rank"], top["token_id"], top["logprob"]) for top in each] for each in tops] == [
        [(1, 3, -0.1), (2, 9, -3.0)],
        [(1, 8, -0.5), (2, 4, -2.0)],
    ]


def test_only_the_last_chunk_says_how_it_ended_and_what_was_used() -> None:
    generation = generation_of(request(), {}, DEFAULTS)
    assert answer_of(Chunk(1, "ab", (3, 4), (-0.1, -0.2)), generation, 2) == {
        "token_ids": [3, 4],
        "index": 0,
        "log_probs": [-0.1, -0.2],
    }
    timings = Timings(0.0, 0.1, None, 0, 3, 2, num_cached_tokens=1)
    assert answer_of(Chunk(1, "", (), end=End("length", timings)), generation, 2) == {
        "token_ids": [],
        "index": 0,
        "finish_reason": "length",
        "completion_usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
    }
