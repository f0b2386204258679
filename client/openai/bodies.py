"""The bodies of /v1/chat/completions and /v1/completions: every field we honour, with its range and what we do with it.

`docs/openai.md` and the OpenAPI document are made of these two classes and of `REFUSED`. A null counts as left out. A
field that stands in neither is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import Meta

from client.openai.errors import ApiError
from client.openai.response_format import ResponseFormat
from client.openai.tools import MAX_TOOLS, Tool, ToolChoice
from client.wire import MAX_S

MAX_CHOICES = 128  # of one request, n × prompts: each is a request of its own to the engine
MAX_METADATA = 16  # pairs; as OpenAI has it
MAX_TOP_LOG_PROBS = 20
_MAX_TOKENS = 10_000_000  # the engine's own bound on whole numbers

Tier = Literal["auto", "default", "flex", "scale", "priority", "fast"]
_Tokens = Annotated[int, Meta(ge=1, le=_MAX_TOKENS)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Milliseconds = Annotated[float, Meta(gt=0, le=MAX_S * 1000)]
_Label = Annotated[str, Meta(max_length=512)]
_Word = Annotated[str, Meta(min_length=1, max_length=256)]
_Metadata = Annotated[dict[str, str], Meta(max_length=MAX_METADATA)]
_TokenIds = Annotated[list[Annotated[int, Meta(ge=0, le=2**31 - 1)]], Meta(min_length=1)]
_NO_EFFECT = "a label of yours; has no effect on the answer"


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What else a stream carries."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What both endpoints take."""

    model: Annotated[str | None, Meta(description="`bros` (default), `bros_rt`, `bros_be`; another is a 404")] = None
    stream: Annotated[bool | None, Meta(description="server-sent events, a piece of text each")] = None
    stream_options: Annotated[
        StreamOptions | None,
        Meta(description="`include_usage`, `continuous_usage_stats`; `include_obfuscation` only false"),
    ] = None
    service_tier: Annotated[
        Tier | None,
        Meta(description="`flex`: best-effort; `priority`, `fast`, `scale`: real-time; else the default class"),
    ] = None
    n: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None,
        Meta(description="one request to the engine for each choice; their seeds are one apart"),
    ] = None
    max_tokens: Annotated[
        _Tokens | None,
        Meta(description="output tokens at most; without it 16 for a completion, and `default_max_tokens` in a chat"),
    ] = None
    min_tokens: Annotated[
        Annotated[int, Meta(ge=0, le=_MAX_TOKENS)] | None,
        Meta(description="output tokens before an end token or a stop word may end the answer"),
    ] = None
    ignore_eos: Annotated[bool | None, Meta(description="do not stop at the model's end token")] = None
    stop: Annotated[
        _Word | Annotated[list[_Word], Meta(max_length=16)] | None,
        Meta(description="a string or up to 16; the answer ends before it"),
    ] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=2)] | None, Meta(description="0 is greedy; 1 where it is left out")
    ] = None
    top_p: Annotated[Annotated[float, Meta(ge=0, le=1)] | None, Meta(description="0 is greedy")] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=-1, le=_MAX_TOKENS)] | None, Meta(description="0 or -1 keeps all tokens")
    ] = None
    min_p: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None, Meta(description="drops tokens below this share of the likeliest")
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None, Meta(description="same seed, same tokens")
    ] = None
    presence_penalty: Annotated[_Penalty | None, Meta(description="given to the sampler")] = None
    frequency_penalty: Annotated[_Penalty | None, Meta(description="given to the sampler")] = None
    repetition_penalty: Annotated[
        Annotated[float, Meta(gt=0, le=100)] | None, Meta(description="given to the sampler")
    ] = None
    ttft_slo_ms: Annotated[_Milliseconds | None, Meta(description="real-time: time to first token to meet")] = None
    tpot_slo_ms: Annotated[_Milliseconds | None, Meta(description="real-time: mean time per further token")] = None
    itl_slo_ms: Annotated[_Milliseconds | None, Meta(description="real-time: longest gap between two tokens")] = None
    deadline_ms: Annotated[_Milliseconds | None, Meta(description="best-effort: finish by, from arrival")] = None
    cache_salt: Annotated[
        Annotated[str, Meta(max_length=128)] | None,
        Meta(description="up to 128 characters; only requests of the same salt share KV"),
    ] = None
    user: Annotated[_Label | None, Meta(description=_NO_EFFECT)] = None
    safety_identifier: Annotated[_Label | None, Meta(description=_NO_EFFECT)] = None
    prompt_cache_key: Annotated[_Label | None, Meta(description=_NO_EFFECT)] = None
    metadata: Annotated[_Metadata | None, Meta(description=_NO_EFFECT)] = None


class ChatBody(Body, kw_only=True, forbid_unknown_fields=True):
    """The body of /v1/chat/completions."""

    messages: Annotated[
        Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=4096)],
        Meta(description="roles system, developer, user, assistant, tool; content a string or text parts"),
    ]
    max_completion_tokens: Annotated[_Tokens | None, Meta(description="the newer name of `max_tokens`")] = None
    logprobs: Annotated[
        bool | None, Meta(description="of the tokens drawn, each named `token_id:N`, as vLLM can name them")
    ] = None
    top_logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_TOP_LOG_PROBS)] | None,
        Meta(description="as many of the likeliest tokens at each position, up to 20; with `logprobs`"),
    ] = None
    response_format: Annotated[
        ResponseFormat | None,
        Meta(description="`text`, `json_object`, `json_schema` (see [Structured output](#structured-output))"),
    ] = None
    tools: Annotated[
        Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None,
        Meta(description="functions, where the model's chat template shows them (see [Tools](#tools))"),
    ] = None
    tool_choice: Annotated[
        ToolChoice | None, Meta(description="`none`, `auto` (default), `required`, or a function by name")
    ] = None
    parallel_tool_calls: Annotated[bool | None, Meta(description="false keeps the first call only")] = None


class CompletionBody(Body, kw_only=True, forbid_unknown_fields=True):
    """The body of /v1/completions."""

    prompt: Annotated[
        str | Annotated[list[str | Annotated[int, Meta(ge=0, le=2**31 - 1)] | _TokenIds], Meta(min_length=1)],
        Meta(description="a text, token ids, or a list of up to 128 of either"),
    ]
    echo: Annotated[bool | None, Meta(description="puts a prompt of text in front of its answer")] = None
    logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_TOP_LOG_PROBS)] | None,
        Meta(description="of the tokens drawn, and as many of the likeliest at their positions, up to 20"),
    ] = None
    best_of: Annotated[Annotated[int, Meta(ge=1)] | None, Meta(description="only the value of `n`")] = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A field of OpenAI's that we cannot honour. `harmless` are the values that ask for nothing."""

    harmless: tuple[object, ...]
    why: str


_OLD = "the older name; use `tools`"
_SHARED_REFUSED = {
    "logit_bias": Refused(({},), "the sampler takes no bias"),
}
REFUSED: Mapping[type[msgspec.Struct], Mapping[str, Refused]] = {
    ChatBody: {
        **_SHARED_REFUSED,
        "functions": Refused(([],), _OLD),
        "function_call": Refused(("none", "auto"), _OLD),
        "modalities": Refused((["text"],), "text is all there is"),
        "audio": Refused((), "text is all there is"),
        "prediction": Refused((), "predicted outputs are not served"),
        "reasoning_effort": Refused((), "the engine has no such switch"),
        "verbosity": Refused((), "the engine has no such switch"),
        "store": Refused((False,), "answers are not kept"),
        "web_search_options": Refused((), "there is no search here"),
    },
    CompletionBody: {
        **_SHARED_REFUSED,
        "suffix": Refused(("",), "the models do not fill in the middle"),
    },
}

_TIERS: tuple[object, ...] = get_args(Tier)
B = TypeVar("B", bound=msgspec.Struct)


def parse(body_type: type[B], body: Mapping[str, object]) -> B:
    """Return `body` as an object of `body_type`. Raises ApiError, which names the field."""
    if not isinstance(body, Mapping):
        raise ApiError("the body is not a JSON object")
    given = {name: value for name, value in body.items() if value is not None}
    for name, refused in REFUSED.get(body_type, {}).items():
        if name in given and given.pop(name) not in refused.harmless:
            raise ApiError(f"{name}: this value is not supported: {refused.why}", param=name, code="unsupported_value")
    if unknown := [name for name in given if name not in body_type.__struct_fields__]:
        raise ApiError(f"unknown field {unknown[0][:100]!r}", param=unknown[0][:100], code="unknown_parameter")
    if (tier := given.get("service_tier", "auto")) not in _TIERS:
        shown = repr(tier[:60]) if isinstance(tier, str) else type(tier).__name__
        words = f"service_tier: {shown} is none of {', '.join(map(str, _TIERS))}"
        raise ApiError(words, param="service_tier")
    try:
        return msgspec.convert(given, body_type)
    except (msgspec.ValidationError, OverflowError) as error:
        raise _wrong(str(error)) from error


def field_docs(body_type: type[Body]) -> dict[str, str]:
    """Return what we do with each field that we honour, by its name."""
    hints = get_type_hints(body_type, include_extras=True)
    return {name: str(get_args(hints[name])[-1].description) for name in body_type.__struct_fields__}


def _wrong(words: str) -> ApiError:
    """Msgspec says `Expected `float` <= 2.0 - at `$.temperature``: turn it round, so that the field stands first."""
    what, _, place = words.partition(" - at ")
    if place:
        path = place.strip("`").removeprefix("$").removeprefix(".")
        return ApiError(f"{path}: {what}", param=path.split("[")[0].split(".")[0] or None)
    missing = what.removeprefix("Object missing required field ").strip("`") if "missing required" in what else None
    return ApiError(f"{missing}: missing" if missing else what, param=missing)
