"""Requests to be refused, each with one clear message; tried on `validate` and, over both protocols, on a server."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.wire import names as wire

DTYPES: dict[str, type[Any]] = {
    "STRING": np.object_,
    "INT32": np.int32,
    "UINT64": np.uint64,
    "FP32": np.float32,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class BadRequest:
    """`inputs` and `parameters` by name, and a part of the message that must come back.

    `is_json`: JSON can say it, so that it can go over the generate endpoint; `reaches_model`: Triton lets it through.
    """

    name: str
    message: str
    inputs: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    model: str = "bros"
    is_json: bool = True
    reaches_model: bool = True

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the inputs as Triton hands them to a model."""
        return {name: tensor(name, value) for name, value in self.inputs.items()}


def tensor(name: str, value: Any) -> NDArray[Any]:
    """Return `value` (one, or a list) as the tensor of input `name`."""
    values = value if isinstance(value, list) else [value]
    encoded = [item.encode() if isinstance(item, str) else item for item in values]
    with np.errstate(over="ignore"):
        return np.array(encoded, dtype=DTYPES[wire.input_names()[name].dtype])


def _prompt(**inputs: Any) -> dict[str, Any]:
    return {"text_input": "hi", **inputs}


def _sampling(**values: Any) -> dict[str, Any]:
    return _prompt(sampling_parameters=json.dumps(values))


def _out_of_range() -> list[BadRequest]:
    values: dict[str, list[Any]] = {
        "max_tokens": [0, -1, -(2**31), 2**31 - 1],
        "min_tokens": [-1, 2**31 - 1],
        "temperature": [-0.1, 1e6, 3e38],
        "num_top_log_probs": [-1, 21],
        "top_k": [-2, 2**31 - 1],
        "top_p": [-0.1, 1.1],
        "min_p": [-0.1, 1.5],
        "repetition_penalty": [-1.0, 0.0, 1000.0],
        "presence_penalty": [-2.5, 2.5],
        "frequency_penalty": [-2.5, 2.5],
        "ttft_slo_ms": [0.0, -5.0, 1e12],
        "tpot_slo_ms": [0.0, -5.0, 1e12],
        "itl_slo_ms": [0.0, -5.0],
        "deadline_ms": [0.0, -5.0, 1e12],
    }
    return [
        BadRequest(f"{name} {value}", f"{name}: ", _prompt(**{name: value}))
        for name, bad in values.items()
        for value in bad
    ]


def _not_finite() -> list[BadRequest]:
    names = [spec.name for spec in wire.INPUTS if spec.dtype == "FP32"]
    return [
        BadRequest(f"{name} {value}", "expected a finite number", _prompt(**{name: value}), is_json=False)
        for name in names
        for value in (float("nan"), float("inf"))
    ]


def _sampling_parameters() -> list[BadRequest]:
    wrong: dict[str, Any] = {
        "max_tokens": "many",
        "min_tokens": 1.5,
        "temperature": "hot",
        "top_k": [1],
        "ignore_eos": "maybe",
        "stop": 7,
        "stop_token_ids": 5,
        "logprobs": 5,
        "n": 2,
        "best_of": 3,
        "use_beam_search": True,
        "skip_special_tokens": False,
        "bad_words": ["x"],
    }
    rows = [
        BadRequest(f"sampling {key}", f"sampling_parameters.{key}: ", _sampling(**{key: value}))
        for key, value in wrong.items()
    ]
    return [
        *rows,
        BadRequest("sampling seed", "seed: -1 is not in", _sampling(seed=-1)),
        BadRequest("sampling stop_token_ids item", "stop_token_ids", _sampling(stop_token_ids=["x"])),
        BadRequest("sampling stop_token_ids negative", "stop_token_ids", _sampling(stop_token_ids=[-1])),
        BadRequest("sampling stop item", "sampling_parameters.stop: expected", _sampling(stop=["a", 1])),
        BadRequest(
            "sampling unknown key", "unknown key 'temprature'; did you mean 'temperature'", _sampling(temprature=1)
        ),
        BadRequest("sampling unknown word", "unknown key 'frobnicate'", _sampling(frobnicate=1)),
        BadRequest("sampling not an object", "expected a JSON object", _prompt(sampling_parameters="[1]")),
        BadRequest("sampling not JSON", "not valid JSON", _prompt(sampling_parameters="{max_tokens: 1}")),
        BadRequest("sampling empty", "not valid JSON", _prompt(sampling_parameters="")),
        BadRequest("sampling NaN", "not valid JSON", _prompt(sampling_parameters='{"temperature": NaN}')),
        BadRequest("sampling nested deep", "not valid JSON", _prompt(sampling_parameters="[" * 100_000)),
        BadRequest(
            "sampling huge number", "max_tokens", _prompt(sampling_parameters='{"max_tokens": 1' + "0" * 400 + "}")
        ),
        BadRequest("sampling endless number", "JSON", _prompt(sampling_parameters='{"seed": 1' + "0" * 10_000 + "}")),
        BadRequest("sampling giant", "100001 bytes exceed 100000", _prompt(sampling_parameters=" " * 100_001)),
        BadRequest("65 stop token ids", "65 exceed max_stop_token_ids 64", _sampling(stop_token_ids=[5] * 65)),
        BadRequest("sampling long key", "unknown key 'kkk", _sampling(**{"k" * 90_000: 1})),
        BadRequest("sampling long value", "sampling_parameters.n: 'xxx", _sampling(n="x" * 90_000)),
        BadRequest("sampling infinite", "finite", _prompt(sampling_parameters='{"temperature": 1e999}')),
        BadRequest("sampling invalid UTF-8", "invalid UTF-8", _prompt(sampling_parameters=b"\xff\xfe"), is_json=False),
    ]


def _nested(depth: int) -> str:
    return '[{"role": "user", "content": "hi", "extra": %s}]' % ("[" * depth + "]" * depth)


def _prompts() -> list[BadRequest]:
    chat = '[{"role": "user", "content": "hi"}]'
    exactly_one = "exactly one of text_input, messages and input_ids"
    return [
        BadRequest("no prompt", exactly_one, {"max_tokens": 1}),
        BadRequest("text and ids", exactly_one, _prompt(input_ids=[5])),
        BadRequest("text and messages", exactly_one, _prompt(messages=chat)),
        BadRequest("messages and ids", exactly_one, {"messages": chat, "input_ids": [5]}),
        BadRequest("all three prompts", exactly_one, _prompt(messages=chat, input_ids=[5])),
        BadRequest("empty text", "the prompt is empty", {"text_input": ""}),
        BadRequest("empty ids", "the prompt is empty", {"input_ids": []}),
        BadRequest("invalid UTF-8", "invalid UTF-8 at byte 3", {"text_input": b"abc\xff"}, is_json=False),
        BadRequest("cut UTF-8", "invalid UTF-8", {"text_input": "ä".encode()[:1]}, is_json=False),
        BadRequest("UTF-16", "invalid UTF-8", {"text_input": "hä".encode("utf-16")}, is_json=False),
        BadRequest("encoded surrogate", "invalid UTF-8", {"text_input": b"\xed\xa0\x80"}, is_json=False),
        BadRequest("giant text", "exceed max_prompt_bytes", {"text_input": "x" * 1_000_001}),
        BadRequest("giant messages", "exceed max_prompt_bytes", {"messages": json.dumps([{"role": "u" * 1_000_001}])}),
        BadRequest("giant ids", "1000001 token ids exceed max_prompt_bytes", {"input_ids": [70_000] * 1_000_001}),
        BadRequest("negative id", "-1 is no token id", {"input_ids": [5, -1]}),
        BadRequest("most negative id", "is no token id", {"input_ids": [-(2**31)]}),
        BadRequest("messages not JSON", "messages: not valid JSON", {"messages": "hello"}),
        BadRequest("messages an object", "non-empty JSON list", {"messages": '{"role": "user", "content": "x"}'}),
        BadRequest("messages empty", "non-empty JSON list", {"messages": "[]"}),
        BadRequest("messages of numbers", "messages[0]", {"messages": "[1]"}),
        BadRequest("message without content", "messages[0]", {"messages": '[{"role": "user"}]'}),
        BadRequest("message without role", "messages[1]", {"messages": chat[:-1] + ', {"content": "x"}]'}),
        BadRequest("message content null", "messages[0]", {"messages": '[{"role": "user", "content": null}]'}),
        BadRequest("message content a number", "messages[0]", {"messages": '[{"role": "user", "content": 5}]'}),
        BadRequest("message with half an emoji", "surrogate", {"messages": r'[{"role": "user", "content": "\ud83d"}]'}),
        BadRequest(
            "half an emoji in a key", "surrogate", {"messages": r'[{"role": "user", "content": "", "\udc00": 1}]'}
        ),
        *(BadRequest(f"message {depth} deep", "deep", {"messages": _nested(depth)}) for depth in (40, 987)),
        BadRequest("message without bottom", "too deep", {"messages": "[" * 300_000}),
        BadRequest("two texts", "expected one value, got 2", {"text_input": ["a", "b"]}, reaches_model=False),
    ]


def _schemas() -> list[BadRequest]:
    deep = '{"items": ' * 40 + "{}" + "}" * 40
    wrong = {
        "not JSON": ("{", "json_schema: not valid JSON"),
        "no object": ("[]", "json_schema: expected a JSON object"),
        "giant": (" " * 70_000, "json_schema: 70000"),
        "deep": (deep, "json_schema: lists and objects are nested more than 32 deep"),
        "bottomless": ("[" * 60_000, "json_schema: not valid JSON: nested too deep"),
        "long text": (json.dumps({"const": "x" * 600}), "json_schema: a name or text of 600 characters exceeds 512"),
    }
    return [
        *(BadRequest(f"schema {name}", words, _prompt(json_schema=text)) for name, (text, words) in wrong.items()),
        BadRequest("schema and min_tokens", "min_tokens: json_schema", _prompt(json_schema="{}", min_tokens=1)),
        BadRequest("schema and ignore_eos", "ignore_eos: json_schema", _prompt(json_schema="{}", ignore_eos=True)),
    ]


def _tools() -> list[BadRequest]:
    messages = '[{"role": "user", "content": "hi"}]'
    deep = '[{"function": {"name": "f", "parameters": %s}}]' % ("[" * 40 + "]" * 40)
    wrong = {
        "no list": ("{}", "tools: expected a non-empty JSON list"),
        "not JSON": ("[", "tools: not valid JSON"),
        "without a name": ('[{"function": {}}]', "tools[0]: expected an object with a function that has a name"),
        "deep": (deep, "tools: lists and objects are nested more than 32 deep"),
        "giant": (" " * 300_000, "tools: 300000"),
        "half an emoji": (r'[{"function": {"name": "\ud83d"}}]', "tools: a lone surrogate"),
        "unknown to the model": ('[{"function": {"name": "f"}}]', "tools: "),
    }
    return [
        *(BadRequest(f"tools {n}", words, {"messages": messages, "tools": text}) for n, (text, words) in wrong.items()),
        BadRequest("top without log-probabilities", "num_top_log_probs: only", _prompt(num_top_log_probs=1)),
        BadRequest("tools without messages", "tools: only with messages", _prompt(tools="[]")),
    ]


def _classes() -> list[BadRequest]:
    words = ["", "RTX", "realtime", "best-effort", "0", "3", "-1", "rt,be", "rt be", "null", "ｒｔ"]
    no_class = "is no class of service; allowed: rt (1), be (2)"
    return [
        *(BadRequest(f"class {word!r}", no_class, _prompt(priority_class=word)) for word in words),
        BadRequest("class invalid UTF-8", "invalid UTF-8", _prompt(priority_class=b"\xff"), is_json=False),
        BadRequest("class parameter", no_class, _prompt(), {"priority_class": "gold"}, is_json=False),
        BadRequest("class parameter number", no_class, _prompt(), {"priority_class": 3}, is_json=False),
        BadRequest("class parameter bool", "expected a string", _prompt(), {"priority_class": True}, is_json=False),
        BadRequest("class header", no_class, _prompt(), {"x-priority-class": "gold"}),
        BadRequest("priority 0", no_class, _prompt(), {"priority": 0}),
        BadRequest("priority 3", no_class, _prompt(), {"priority": 3}),
        BadRequest("priority word", no_class, _prompt(), {"priority": "high"}),
        BadRequest("priority bool", "expected a string", _prompt(), {"priority": True}),
        BadRequest("priority fraction", "expected a string", _prompt(), {"priority": 1.5}),
        BadRequest("be on bros_rt", "serves class 'rt' only", _prompt(priority_class="be"), model="bros_rt"),
        BadRequest("rt on bros_be", "serves class 'be' only", _prompt(priority_class="rt"), model="bros_be"),
        BadRequest("priority 1 on bros_be", "serves class 'be' only", _prompt(), {"priority": 1}, model="bros_be"),
    ]


def _parameters() -> list[BadRequest]:
    return [
        BadRequest("unknown parameter", "unknown parameter 'frobnicate'", _prompt(), {"frobnicate": 1}),
        BadRequest("giant parameter name", "unknown parameter 'nnn", _prompt(), {"n" * 1_000_000: 1}),
        BadRequest("257 parameters", "257 exceed 256", _prompt(), {f"x-{index}": "1" for index in range(257)}),
        BadRequest("giant class word", "1000000 characters exceed", _prompt(), {"x-priority-class": "r" * 1_000_000}),
        BadRequest("bad_words", "bad_words: 'x' is not supported here; allowed: ''", _prompt(), {"bad_words": "x"}),
        BadRequest("beam_width", "beam_width: 2 is not supported here; allowed: 1", _prompt(), {"beam_width": 2}),
        BadRequest("end_id", "unknown parameter 'end_id'", _prompt(), {"end_id": 2}),
        BadRequest("misspelt parameter", "did you mean 'max_tokens'", _prompt(), {"max_token": 1}),
        BadRequest("timeout 0", "timeout", _prompt(), {"timeout": 0}),
        BadRequest("timeout negative", "timeout", _prompt(), {"timeout": -1}),
        BadRequest("timeout word", "timeout: expected a whole number", _prompt(), {"timeout": "soon"}),
        BadRequest("timeout endless", "timeout", _prompt(), {"timeout": 2**62}),
        BadRequest("inspect unknown", "inspect: 'all' is neither 'engine' nor 'counts'", {}, {"inspect": "all"}),
        BadRequest("inspect a number", "1 is neither 'engine' nor 'counts'", {}, {"inspect": 1}),
        BadRequest("parameter max_tokens word", "max_tokens: expected", _prompt(), {"max_tokens": "x"}, is_json=False),
        BadRequest("parameter stream word", "stream: expected true", _prompt(), {"stream": "x"}, is_json=False),
        BadRequest("parameter input_ids", "expected a tensor", {}, {"input_ids": "1,2"}, is_json=False),
    ]


def _the_rest() -> list[BadRequest]:
    return [
        BadRequest("min over max", "exceeds max_tokens 4", _prompt(max_tokens=4, min_tokens=5)),
        BadRequest("empty stop word", "a stop word is empty", _prompt(stop_words=["", "x"])),
        BadRequest("giant stop word", "stop_words: 1000000 bytes exceed 1024", _prompt(stop_words=["x" * 1_000_000])),
        BadRequest("17 stop words", "17 exceed max_stop_words 16", _prompt(stop_words=["x"] * 17)),
        BadRequest("long stop word", "257 characters exceed", _prompt(stop_words=["x" * 257])),
        BadRequest(
            "stop word invalid UTF-8", "stop_words: invalid UTF-8", _prompt(stop_words=[b"\xff"]), is_json=False
        ),
    ]


BAD_REQUESTS = [
    *_prompts(),
    *_schemas(),
    *_tools(),
    *_classes(),
    *_parameters(),
    *_out_of_range(),
    *_not_finite(),
    *_sampling_parameters(),
    *_the_rest(),
]
