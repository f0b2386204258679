"""What a request asks of the engine, whichever endpoint it came by. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from client.generation import Chunk, Generation, Options, Prompt
from client.openai.bodies import MAX_CHOICES, Body
from client.openai.errors import ApiError, not_found
from client.openai.tools import Offer
from client.wire import MODEL, MODELS

Json = dict[str, Any]
_SAME_NAMES = (
    "min_tokens",
    "ignore_eos",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "cache_salt",
)
_MILLISECONDS = ("ttft_slo_ms", "tpot_slo_ms", "itl_slo_ms", "deadline_ms")
MAX_LOG_PROBS = 262_144  # of a whole answer, the alternatives among them
MAX_LINE_LOG_PROBS = 65_536  # of the answer to a line of a batch: 64 of them are open at once
MAX_SENT_BYTES = 4 * 1024 * 1024  # to the engine, of all choices of one request
_NO_TOP_P = 2.0**-150  # the largest that is 0 in 32 bits, which the engine gets
_USUAL_TEMPERATURE = 1.0  # OpenAI's; the engine's own is 0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of an endpoint: `n` choices for each of `prompts`. `offer`: the tools that a choice may call."""

    model: str
    prompts: Sequence[Prompt]
    options: Options
    n: int = 1
    seed: int | None = None
    tier: str | None = None
    is_streamed: bool = False
    includes_usage: bool = False
    continues_usage: bool = False
    offer: Offer | None = None

    @property
    def num_choices(self) -> int:
        return self.n * len(self.prompts)

    @property
    def wants_log_probs(self) -> bool:
        return self.options.get("log_probs", False)

    @property
    def num_log_probs(self) -> int:
        """The most log-probabilities that an answer holds; 0 where its length is left to the engine."""
        num_each = 1 + self.options.get("top_log_probs", 0)
        return self.wants_log_probs * num_each * self.num_choices * self.options.get("max_tokens", 0)

    def prompt_of(self, choice: int) -> Prompt:
        """Return the prompt of a choice."""
        return self.prompts[choice // self.n]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What tells the two endpoints apart: names, how a body is read, and what a choice looks like."""

    path: str
    id_prefix: str
    whole_name: str
    piece_name: str
    parse: Callable[[Json], Asked]
    choice: Callable[[Asked, int, Generation], Json]
    opening: Callable[[Asked, int], Json | None]  # the first piece of a choice, before it has text
    piece: Callable[[Asked, int, Chunk], Json]


def asked_of(body: Body, prompts: Sequence[Prompt], own: Options) -> Asked:
    """Return what `body` asks for. `own`: the engine's options that only one endpoint names so."""
    if body.model is not None and body.model not in MODELS:
        raise not_found("model", body.model, param="model", code="model_not_found")
    if body.stream_options is not None and not body.stream:
        raise ApiError("stream_options: only with stream", param="stream_options")
    n = body.n or 1
    if n * len(prompts) > MAX_CHOICES:
        raise ApiError(f"n: {n} for each of {len(prompts)} prompts exceed {MAX_CHOICES} choices", param="n")
    wants = body.stream_options
    return Asked(
        model=body.model or MODEL,
        prompts=prompts,
        options=_options(body, own),
        n=n,
        seed=None if body.seed is None else body.seed % 2**64,
        tier=body.service_tier,
        is_streamed=bool(body.stream),
        includes_usage=wants is not None and bool(wants.include_usage or wants.continuous_usage_stats),
        continues_usage=wants is not None and bool(wants.continuous_usage_stats),
    )


def _options(body: Body, own: Options) -> Options:
    options: Json = {name: value for name in _SAME_NAMES if (value := getattr(body, name)) is not None}
    for name in _MILLISECONDS:
        if (milliseconds := getattr(body, name)) is not None:
            options[name.removesuffix("_ms") + "_s"] = milliseconds / 1e3
    if (max_tokens := own.get("max_tokens")) is not None and (body.min_tokens or 0) > max_tokens:
        raise ApiError(f"min_tokens: {body.min_tokens} exceeds max_tokens {max_tokens}", param="min_tokens")
    if body.stop:
        options["stop"] = [body.stop] if isinstance(body.stop, str) else body.stop
    return cast(Options, options | own | _randomness(body))


def _randomness(body: Body) -> Json:
    """OpenAI's `top_p` 0 is the likeliest token; to the engine it would say "not set", as would what rounds to it."""
    temperature = _USUAL_TEMPERATURE if body.temperature is None else body.temperature
    if body.top_p is not None and body.top_p <= _NO_TOP_P:
        return {"temperature": 0.0}
    return {"temperature": temperature} | ({} if body.top_p is None else {"top_p": body.top_p})


def require_sendable(asked: Asked, num_bytes: int, max_log_probs: int = MAX_LOG_PROBS) -> None:
    """Raise ApiError where the choices of a body, each of which brings the prompt along, come to too many bytes.

    So it does where a whole answer would hold too many log-probabilities.
    """
    if not asked.is_streamed and asked.num_log_probs > max_log_probs:
        kind = "of a line of a batch" if max_log_probs == MAX_LINE_LOG_PROBS else "that is not streamed"
        words = f"logprobs: {asked.num_log_probs} exceed {max_log_probs}, the most in an answer {kind}"
        raise ApiError(words, param="logprobs")
    if asked.n > 1 and asked.n * num_bytes > MAX_SENT_BYTES:
        words = f"n: {asked.n} choices for a body of {num_bytes} bytes exceed {MAX_SENT_BYTES} bytes in all"
        raise ApiError(words, param="n")
