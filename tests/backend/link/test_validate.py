"""What a client sends becomes a checked request, or one clear refusal."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.config import ServiceSettings
from backend.core.errors import InvalidRequestError
from backend.core.request import PriorityClass
from backend.link.validate import Defaults, validate, wants_snapshot
from backend.text.messages import parse_messages, parse_tools
from backend.text.sim_tokenizer import SimTokenizer
from backend.wire import names as wire
from backend.wire.protocol import Generation
from tests.backend.bad_requests import BAD_REQUESTS, BadRequest, tensor


def defaults(model: str = "bros", **service: Any) -> Defaults:
    return Defaults(model, wire.MODELS[model], ServiceSettings(**{"allow_inspect": True, **service}))


def check(
    inputs: dict[str, Any] | None = None,
    parameters: dict[str, Any] | None = None,
    timeout_us: int = 0,
    model: str = "bros",
    **service: Any,
) -> Generation:
    """Validate a request with a prompt, unless `inputs` say otherwise."""
    values = {"text_input": "hi"} if inputs is None or not {"messages", "input_ids"} & set(inputs) else {}
    tensors = {name: tensor(name, value) for name, value in {**values, **(inputs or {})}.items()}
    return validate(tensors, parameters or {}, timeout_us, defaults(model, **service))


def take(bad: BadRequest) -> None:
    """Do what the stub does with a request that comes in, and the engine with its messages."""
    if not wants_snapshot(bad.parameters, ServiceSettings(allow_inspect=True)):
        generation = validate(bad.tensors(), bad.parameters, 0, defaults(bad.model))
        if generation.messages is not None:
            tools = () if generation.tools is None else parse_tools(generation.tools)
            SimTokenizer(32_000, 2).render_chat(parse_messages(generation.messages), tools)


def test_there_are_over_a_hundred_bad_requests_of_different_names() -> None:
    assert len({bad.name for bad in BAD_REQUESTS}) == len(BAD_REQUESTS) > 100


@pytest.mark.parametrize("bad", BAD_REQUESTS, ids=lambda bad: bad.name)
def test_a_bad_request_is_refused_with_a_message_that_says_why(bad: BadRequest) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        take(bad)
    assert bad.message in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_a_bare_prompt_takes_every_default() -> None:
    assert check() == Generation(priority_class="be", text="hi")


@pytest.mark.parametrize(
    ("inputs", "parameters", "expected"),
    [
        ({}, {}, "be"),
        ({"priority_class": "rt"}, {}, "rt"),
        ({"priority_class": "1"}, {}, "rt"),
        ({"priority_class": " RT "}, {}, "rt"),
        ({"priority_class": "2"}, {}, "be"),
        ({}, {"priority_class": "rt"}, "rt"),
        ({}, {"priority_class": 1}, "rt"),
        ({}, {"priority": 1}, "rt"),
        ({}, {"priority": "1"}, "rt"),
        ({}, {"priority": 2}, "be"),
        ({}, {"x-priority-class": "rt"}, "rt"),
        ({"priority_class": "be"}, {"priority_class": "rt", "priority": 1}, "be"),
        ({}, {"priority_class": "be", "priority": 1}, "be"),
        ({}, {"priority": 2, "x-priority-class": "rt"}, "be"),
    ],
)
def test_class_is_resolved_in_the_documented_order(
    inputs: dict[str, Any], parameters: dict[str, Any], expected: str
) -> None:
    assert check(inputs, parameters).priority_class == expected


def test_the_default_class_comes_from_the_configuration() -> None:
    assert check(default_class=PriorityClass.REAL_TIME).priority_class == "rt"


@pytest.mark.parametrize(("model", "expected"), [("bros_rt", "rt"), ("bros_be", "be")])
def test_a_model_with_a_class_gives_it_to_every_request(model: str, expected: str) -> None:
    assert check(model=model).priority_class == expected
    assert check({"priority_class": expected}, model=model).priority_class == expected


def test_strings_for_numbers_are_taken_as_genai_perf_sends_them() -> None:
    sent = json.dumps({"max_tokens": "12", "temperature": "0.5", "top_k": "3", "seed": "7", "ignore_eos": "true"})
    sampling = check({"sampling_parameters": sent}).sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k, sampling.seed) == (12, 0.5, 3, 7)
    assert sampling.ignore_eos


@pytest.mark.parametrize("sent", [{"return_log_probs": 0}, {"return_log_probs": False}, {"return_log_probs": 1}])
def test_log_probabilities_are_asked_for_as_any_boolean_is(sent: dict[str, object]) -> None:
    assert check(sent).wants_log_probs == bool(sent["return_log_probs"])


def test_vllm_names_and_harmless_values_are_taken() -> None:
    sent = {
        "n": 1,
        "best_of": 1,
        "stop": "END",
        "stop_token_ids": [5],
        "logprobs": 1,
        "top_k": -1,
        "use_beam_search": False,
    }
    generation = check({"sampling_parameters": json.dumps(sent)})
    assert generation.stop_words == ("END",)
    assert generation.sampling.stop_token_ids == (5,)
    assert generation.sampling.top_k == 0
    assert generation.wants_log_probs


def test_an_input_wins_over_a_parameter() -> None:
    generation = check({"max_tokens": 1}, {"max_tokens": 2, "top_k": 2})
    assert (generation.sampling.max_tokens, generation.sampling.top_k) == (1, 2)


@pytest.mark.parametrize(
    ("name", "value", "key", "other"),
    [
        ("max_tokens", 2, "max_tokens", 5),
        ("max_tokens", 2, "max_tokens", "5"),
        ("min_length", 1, "min_tokens", 2),
        ("temperature", 1.5, "temperature", 0.0),
        ("temperature", 0.0, "temperature", 1),
        ("top_k", 1, "top_k", -1),
        ("top_p", 0.9, "top_p", 0.8),
        ("seed", 1, "seed", 2**63),
        ("random_seed", 1, "seed", 0),
        ("stop_words", ["x"], "stop", "y"),
        ("stop_words", ["x"], "stop", []),
        ("stop_words", ["x", "y"], "stop", ["x"]),
        ("ignore_eos", False, "ignore_eos", True),
    ],
)
def test_a_field_that_contradicts_sampling_parameters_is_refused(
    name: str, value: object, key: str, other: object
) -> None:
    nested = {"sampling_parameters": json.dumps({key: other})}
    asked = [check] if name == "stop_words" else [check, lambda inputs: check(nested, {name: inputs[name]})]
    for ask in asked:
        with pytest.raises(InvalidRequestError) as refusal:
            ask({name: value, **nested})
        assert re.match(rf"{name}: .+ contradicts sampling_parameters\.{key}: ", str(refusal.value))


@pytest.mark.parametrize(
    ("name", "value", "key", "other"),
    [
        ("max_tokens", 5, "max_tokens", "5"),
        ("max_tokens", 5, "max_tokens", 5.0),
        ("max_tokens", 5, "max_tokens", None),
        ("temperature", 0.7, "temperature", 0.7),  # as FP32 it is 0.699999988
        ("temperature", 1.0, "temperature", 1),
        ("top_k", 0, "top_k", -1),
        ("seed", 2**64 - 1, "seed", 2**64 - 1),
        ("stop_words", ["x"], "stop", "x"),
        ("stop_words", ["x", "y"], "stop", ["x", "y"]),
        ("stop_words", [""], "stop", []),
        ("ignore_eos", True, "ignore_eos", "true"),
        ("return_log_probs", False, "logprobs", 1),
        ("return_log_probs", True, "logprobs", 5),  # which Triton's OpenAI front end sends
        ("return_log_probs", True, "logprobs", None),
    ],
)
def test_a_field_that_equals_sampling_parameters_is_taken(name: str, value: object, key: str, other: object) -> None:
    nested = json.dumps({key: other})
    assert check({name: value, "sampling_parameters": nested}) == check({name: value})


def test_a_wrong_value_in_sampling_parameters_is_refused_whatever_stands_beside_it() -> None:
    with pytest.raises(InvalidRequestError, match=r"^sampling_parameters\.top_k: expected a whole number, got 'x'$"):
        check({"top_k": 1, "sampling_parameters": '{"top_k": "x"}'})


@pytest.mark.parametrize("field", [spec for spec in wire.INPUTS if spec.alias_of], ids=lambda spec: spec.name)
def test_an_alias_says_the_same_as_its_field(field: wire.Field) -> None:
    value = True if field.dtype == "BOOL" else 7
    assert field.alias_of is not None
    assert check({field.name: value}) == check({field.alias_of: value})


def test_every_input_has_an_effect_or_is_accepted_for_its_name_alone() -> None:
    without_effect = {"return_finish_reason"}
    values = {"priority_class": "rt", "messages": '[{"role": "user", "content": "x"}]', "input_ids": [9]}
    values |= {"sampling_parameters": '{"max_tokens": 3}', "stop_words": ["x"], "exclude_input_in_output": False}
    values |= {"json_schema": "{}", "tools": "[]"}
    by_type = {"BOOL": True, "INT32": 7, "UINT64": 7, "FP32": 0.5, "STRING": "other"}
    beside = {"tools": {"messages": values["messages"]}, "num_top_log_probs": {"return_log_probs": True}}
    same = {
        name
        for name, spec in wire.input_names().items()
        if check({name: values.get(name, by_type[spec.dtype]), **beside.get(name, {})}) == check(beside.get(name))
    }
    assert same == without_effect


def test_an_answer_of_one_piece_has_fewer_alternatives_than_a_stream() -> None:
    many = {"return_log_probs": True, "num_top_log_probs": 20, "max_tokens": 820}
    with pytest.raises(InvalidRequestError, match=r"num_top_log_probs: 20 for each of 820 .* exceed 16384, the most"):
        check(many)
    assert check({**many, "stream": True}).sampling.num_top_log_probs == 20
    assert check({**many, "max_tokens": 819}).sampling.max_tokens == 819
    assert check({**many, "num_top_log_probs": 0, "max_tokens": 100_000}).wants_log_probs


def test_the_default_of_max_tokens_counts_for_alternatives() -> None:
    with pytest.raises(InvalidRequestError, match="for each of 1000 tokens"):
        check({"return_log_probs": True, "num_top_log_probs": 20}, default_max_tokens=1000)


def test_times_are_seconds_inside() -> None:
    generation = check({"ttft_slo_ms": 250.0, "tpot_slo_ms": 50.0, "itl_slo_ms": 125.0, "deadline_ms": 2000.0})
    assert (generation.ttft_slo_s, generation.tpot_slo_s, generation.itl_slo_s) == (0.25, 0.05, 0.125)
    assert generation.deadline_s == 2.0


def test_a_salt_is_text_of_bounded_length() -> None:
    assert (check().cache_salt, check({"cache_salt": "x" * 128}).cache_salt) == ("", "x" * 128)
    assert check({"cache_salt": "\N{GRINNING FACE}" * 128}).cache_salt == "\N{GRINNING FACE}" * 128
    for long in ("x" * 129, "\u00e9" * 129, "x" * 1000):
        with pytest.raises(InvalidRequestError, match="cache_salt"):
            check({"cache_salt": long})


def test_tritons_own_timeout_wins_over_the_parameter() -> None:
    assert check(timeout_us=1_500_000, parameters={"timeout": 9}).timeout_s == 1.5
    assert check(parameters={"timeout": "2500000"}).timeout_s == 2.5
    assert check().timeout_s is None


@pytest.mark.parametrize(
    "parameters", [{"bad_words": ""}, {"beam_width": 1}, {"length_penalty": 1.0}, {"pad_id": 2}], ids=str
)
def test_what_tensorrt_llms_clients_send_as_a_default_changes_nothing(parameters: dict[str, Any]) -> None:
    assert check(parameters=parameters) == check()


def test_an_empty_stop_word_alone_means_none() -> None:
    assert check({"stop_words": [""]}).stop_words == ()
    assert check(parameters={"stop_words": ""}).stop_words == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('["a", "b\\n"]', ("a", "b\n")),
        ("[]", ()),
        ("[", ("[",)),
        ("[1]", ("[1]",)),
        ('["a", 1]', ('["a", 1]',)),
        ('{"a": "b"}', ('{"a": "b"}',)),
    ],
)
def test_a_parameter_holds_several_stop_words_as_a_json_list(text: str, words: tuple[str, ...]) -> None:
    assert check(parameters={"stop_words": text}).stop_words == words


def test_a_json_list_of_stop_words_is_bounded_and_no_way_for_vllms_stop() -> None:
    with pytest.raises(InvalidRequestError, match=r"^stop_words: 17 exceed max_stop_words 16$"):
        check(parameters={"stop_words": json.dumps(["x"] * 17)})
    with pytest.raises(InvalidRequestError, match=r"^stop_words: \d+ characters exceed"):
        check(parameters={"stop_words": json.dumps(["x" * 1_000_000])})
    assert check({"sampling_parameters": json.dumps({"stop": '["a"]'})}).stop_words == ('["a"]',)


def test_a_top_p_of_zero_is_not_set() -> None:
    """As in TensorRT-LLM: top_k alone chooses; without one, the likeliest token."""
    by_top_k = check({"top_p": 0.0, "top_k": 5, "temperature": 0.5}).sampling
    assert (by_top_k.top_p, by_top_k.top_k, by_top_k.temperature) == (1.0, 5, 0.5)
    greedy = check({"top_p": 0.0, "temperature": 0.5}).sampling
    assert (greedy.top_p, greedy.temperature) == (1.0, 0.0)


def test_every_string_is_bounded_before_it_is_decoded() -> None:
    """Whatever input takes a string refuses one that is longer than any limit, with bytes that are no text."""
    giant = b"\xff" * 2_000_000
    for name in (field.name for field in wire.INPUTS if field.dtype == "STRING"):
        with pytest.raises(InvalidRequestError, match=rf"{name}.* 2000000 bytes exceed"):
            check({name: giant} if name != "text_input" else {"text_input": giant})


def test_names_that_others_add_are_ignored() -> None:
    others = {"id": "a7", "triton_enable_empty_final_response": True, "x-request-id": "b", "X-Forwarded-For": "c"}
    assert check(parameters=others) == check()


def test_a_scalar_of_any_rank_is_taken() -> None:
    values = {"text_input": np.array([[b"hi"]], dtype=np.object_), "max_tokens": np.array(5, dtype=np.int32)}
    assert validate(values, {}, 0, defaults()).sampling.max_tokens == 5


def test_only_the_snapshot_that_names_requests_can_be_switched_off() -> None:
    assert wants_snapshot({"inspect": "engine"}, ServiceSettings(allow_inspect=True))
    with pytest.raises(InvalidRequestError, match="switched off"):
        wants_snapshot({"inspect": "engine"}, ServiceSettings(allow_inspect=False))
    assert wants_snapshot({"inspect": "counts"}, ServiceSettings(allow_inspect=False))
    with pytest.raises(InvalidRequestError, match="'all' is neither 'engine' nor 'counts'"):
        wants_snapshot({"inspect": "all"}, ServiceSettings(allow_inspect=True))
    assert not wants_snapshot({}, ServiceSettings())


_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers(), max_size=2)
)
_NAMES = st.sampled_from([*wire.input_names(), *wire.PARAMETERS, "n", "stop", "logprobs", "other"])


@given(
    parameters=st.dictionaries(_NAMES.filter(lambda name: name != "text_input"), _SCALARS, max_size=4),
    nested=st.dictionaries(_NAMES, _SCALARS, max_size=4) | _SCALARS,
    timeout_us=st.integers(0, 2**63),
)
def test_whatever_comes_is_taken_or_refused_and_never_breaks(
    parameters: dict[str, Any], nested: Any, timeout_us: int
) -> None:
    inputs = {"text_input": "hi", "sampling_parameters": json.dumps(nested)}
    tensors = {name: tensor(name, value) for name, value in inputs.items()}
    with suppress(InvalidRequestError):
        assert validate(tensors, parameters, timeout_us, defaults()).text == "hi"


@pytest.mark.parametrize(
    ("inputs", "parameters"),
    [
        ({"min_tokens": 2, "min_length": 3}, {}),
        ({"min_length": 3, "min_tokens": 2}, {}),
        ({"stream": True}, {"streaming": False}),
        ({"streaming": True}, {"stream": "false"}),
        ({}, {"seed": 1, "random_seed": 2}),
    ],
)
def test_two_names_of_a_parameter_that_contradict_are_refused(
    inputs: dict[str, Any], parameters: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        check(inputs, parameters)
    assert "contradicts" in str(refusal.value)
    assert all(name in str(refusal.value) for name in {*inputs, *parameters})


def test_two_names_of_a_parameter_may_say_the_same() -> None:
    generation = check({"stream": True, "random_seed": 7}, {"streaming": "true", "seed": "7"})
    assert generation.is_streamed
    assert generation.sampling.seed == 7


@pytest.mark.parametrize("word", ["1_0", "0x10", "nan", "1e999", ""])
def test_a_word_that_is_no_finite_number_is_refused(word: str) -> None:
    with pytest.raises(InvalidRequestError, match="temperature: expected a finite number, got"):
        check(parameters={"temperature": word})
