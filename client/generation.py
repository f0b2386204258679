"""What a caller asks and gets, and its translation to and from the names on the wire. No I/O.

prompt, options ──encode──► Call ──Transport──► Outputs, Outputs, … ──decode──► Chunk, Chunk, … ──join──► Generation
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict, cast
from uuid import uuid4

from client.wire import MODEL

Scalar = str | int | float | bool
Value = Scalar | Sequence[Scalar]
Outputs = Mapping[str, Sequence[Scalar]]  # one response: output name -> its elements

PriorityClass = Literal["rt", "be"]
FinishReason = Literal["stop", "length", "cancelled"]
TopLogProbs = list[tuple[int, float]]  # token ids and their log-probabilities, likeliest first


class Message(TypedDict):
    """One turn of a chat; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Messages:
    """Chat messages that are JSON already: several requests may send the same ones."""

    json: str


Prompt = str | Sequence[int] | Sequence[Message] | Messages
"""Text, token ids, or chat messages (put through the model's chat template by the server)."""


class Options(TypedDict, total=False):
    """Options of a request; the server has a default for each omitted one.

    Times are seconds. The SLOs are for class `rt`; `deadline_s` (finish by, counted from arrival) is for `be`.
    Requests of different `cache_salt` share no KV, so that their times say nothing of each other's prompts.
    `timeout_s` is the time limit for the whole answer; after it the request is cancelled. An answer with `json_schema`
    is JSON that conforms to it, unless `max_tokens` cut it. `echo` puts the prompt in front of the answer's text.
    `tools`, in OpenAI's form, come with messages; the answer's text holds the calls as the model writes them.
    """

    priority_class: PriorityClass
    ttft_slo_s: float
    tpot_slo_s: float
    itl_slo_s: float
    deadline_s: float
    cache_salt: str
    timeout_s: float
    max_tokens: int
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    stop: Sequence[str]
    echo: bool
    ignore_eos: bool
    log_probs: bool
    top_log_probs: int
    json_schema: Mapping[str, object]
    tools: Sequence[Mapping[str, object]]
    request_id: str


@dataclass(frozen=True, slots=True)
class Call:
    """One request in wire terms: values of `wire.INPUTS`, and request parameters. `timeout_s` None: no limit."""

    model: str
    request_id: str
    inputs: Mapping[str, Value] = field(default_factory=dict)
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Metrics:
    """What the server measured about one request. Seconds; None where there was no such moment (one token: no TPOT).

    has_hopeless_slo: its SLO was below what the server could do with nothing else to do.
    """

    ttft_s: float | None
    tpot_s: float | None
    queue_s: float | None
    num_preemptions: int
    num_input_tokens: int
    num_output_tokens: int
    num_cached_tokens: int = 0
    has_hopeless_slo: bool = False


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. `finish_reason` and `metrics` are set on the last one, `log_probs` when asked for.

    `top_log_probs`, when asked for: for each token the likeliest ones at its position, with theirs.
    """

    text: str
    token_ids: list[int]
    log_probs: list[float] | None = None
    finish_reason: FinishReason | None = None
    metrics: Metrics | None = None
    top_log_probs: list[TopLogProbs] | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole answer."""

    request_id: str
    text: str
    token_ids: list[int]
    log_probs: list[float] | None
    finish_reason: FinishReason
    metrics: Metrics | None
    top_log_probs: list[TopLogProbs] | None = None


_IN_MS = {
    "ttft_slo_s": "ttft_slo_ms",
    "tpot_slo_s": "tpot_slo_ms",
    "itl_slo_s": "itl_slo_ms",
    "deadline_s": "deadline_ms",
}
_RENAMED = {"stop": "stop_words", "log_probs": "return_log_probs", "top_log_probs": "num_top_log_probs"}
_AS_JSON = {"json_schema", "tools"}
_NOT_SENT = {"timeout_s", "request_id"}


def encode(prompt: Prompt, options: Options, model: str = MODEL, stream: bool = True) -> Call:
    """Return the call for a prompt; `stream` False asks for the whole answer in one response."""
    inputs: dict[str, Value] = dict([_encode_prompt(prompt)])
    for name, value in options.items():
        if name in _IN_MS:
            inputs[_IN_MS[name]] = cast(float, value) * 1e3
        elif name == "echo":
            inputs["exclude_input_in_output"] = not value
        elif name in _AS_JSON:
            inputs[name] = json.dumps(value, ensure_ascii=False)
        elif name not in _NOT_SENT:
            inputs[_RENAMED.get(name, name)] = cast(Value, value)
    inputs |= {"stream": stream, "return_metrics": True}
    return Call(model, options.get("request_id") or uuid4().hex, inputs, timeout_s=options.get("timeout_s"))


def decode(outputs: Outputs) -> Chunk:
    """Return the chunk that one response holds."""
    reason = outputs.get("finish_reason")
    return Chunk(
        text="".join(cast("Sequence[str]", outputs.get("text_output", ()))),
        token_ids=list(cast("Sequence[int]", outputs.get("output_ids", ()))),
        log_probs=list(cast("Sequence[float]", outputs["log_probs"])) if "log_probs" in outputs else None,
        finish_reason=cast(FinishReason, reason[0]) if reason and reason[0] else None,
        metrics=_decode_metrics(outputs) if "num_preemptions" in outputs else None,
        top_log_probs=_decode_top(outputs),
    )


def join(request_id: str, chunks: Iterable[Chunk]) -> Generation:
    """Put chunks, the last of which has a `finish_reason`, together."""
    parts = list(chunks)
    last = parts[-1]
    assert last.finish_reason is not None, f"request {request_id!r}: its last chunk has no finish_reason"
    log_probs = [log_prob for part in parts for log_prob in part.log_probs or ()]
    top = [each for part in parts for each in part.top_log_probs or ()]
    return Generation(
        request_id=request_id,
        text="".join(part.text for part in parts),
        token_ids=[token_id for part in parts for token_id in part.token_ids],
        log_probs=log_probs if any(part.log_probs is not None for part in parts) else None,
        finish_reason=last.finish_reason,
        metrics=last.metrics,
        top_log_probs=top or None,
    )


def _encode_prompt(prompt: Prompt) -> tuple[str, Value]:
    if isinstance(prompt, str):
        return "text_input", prompt
    if isinstance(prompt, Messages):
        return "messages", prompt.json
    if prompt and isinstance(prompt[0], Mapping):
        return "messages", json.dumps(prompt, ensure_ascii=False)
    return "input_ids", cast("Sequence[int]", prompt)


def _decode_top(outputs: Outputs) -> list[TopLogProbs] | None:
    """Each token has as many."""
    pairs = list(zip(outputs.get("top_ids", ()), outputs.get("top_log_probs", ()), strict=True))
    size, rest = divmod(len(pairs), max(1, len(outputs.get("output_ids", ()))))
    if not size or rest:
        return None
    return [cast(TopLogProbs, pairs[start : start + size]) for start in range(0, len(pairs), size)]


def _decode_metrics(outputs: Outputs) -> Metrics:
    def seconds(name: str) -> float | None:
        return float(outputs[name][0]) / 1e3 if name in outputs else None

    def count(name: str) -> int:
        return int(outputs[name][0])

    return Metrics(
        ttft_s=seconds("ttft_ms"),
        tpot_s=seconds("tpot_ms"),
        queue_s=seconds("queue_ms"),
        num_preemptions=count("num_preemptions"),
        num_input_tokens=count("num_input_tokens"),
        num_output_tokens=count("num_output_tokens"),
        num_cached_tokens=count("num_cached_tokens") if "num_cached_tokens" in outputs else 0,
        has_hopeless_slo=bool(outputs["hopeless_slo"][0]) if "hopeless_slo" in outputs else False,
    )
