"""/v1/completions: a body to what it asks, and what the engine made of it to an answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from client.generation import Chunk, Generation, Options, Prompt
from client.openai.asked import Asked, Endpoint, Json, asked_of
from client.openai.bodies import CompletionBody, parse
from client.openai.errors import ApiError
from client.openai.log_probs import completion_log_probs

DEFAULT_MAX_TOKENS = 16  # OpenAI's, of this endpoint alone


def parse_completion(body: Mapping[str, object]) -> Asked:
    """Return what a body asks for. Raises ApiError."""
    checked = parse(CompletionBody, body)
    prompts = _prompts(checked.prompt)
    if checked.best_of is not None and checked.best_of != (checked.n or 1):
        raise ApiError(f"best_of: only the value of n, {checked.n or 1}", param="best_of", code="unsupported_value")
    if checked.echo and not all(isinstance(prompt, str) for prompt in prompts):
        raise ApiError("echo: only with prompts of text", param="echo", code="unsupported_value")
    if checked.echo and checked.logprobs is not None:
        raise ApiError("echo: a prompt has no log-probabilities here", param="echo", code="unsupported_value")
    own = Options(max_tokens=checked.max_tokens or DEFAULT_MAX_TOKENS)
    if checked.logprobs is not None:
        own["log_probs"] = True
    if checked.logprobs:
        own["top_log_probs"] = checked.logprobs
    if checked.echo:
        own["echo"] = True
    return asked_of(checked, prompts, own)


def _prompts(prompt: object) -> list[Prompt]:
    """Return the prompts: one text or one list of token ids, or several of either."""
    if isinstance(prompt, str):
        return [prompt]
    assert isinstance(prompt, list)
    kinds = {type(item) for item in prompt}
    if kinds == {int}:
        return [prompt]
    if len(kinds) > 1:
        raise ApiError("prompt: texts, token ids and lists of token ids do not mix", param="prompt")
    return prompt


def _choice(asked: Asked, index: int, generation: Generation) -> Json:
    return {
        "index": index,
        "text": generation.text,
        "logprobs": completion_log_probs(asked, generation),
        "finish_reason": generation.finish_reason,
    }


def _piece(asked: Asked, index: int, chunk: Chunk) -> Json:
    return {
        "index": index,
        "text": chunk.text,
        "logprobs": completion_log_probs(asked, chunk),
        "finish_reason": chunk.finish_reason,
    }


COMPLETIONS = Endpoint(
    path="/v1/completions",
    id_prefix="cmpl-",
    whole_name="text_completion",
    piece_name="text_completion",
    parse=parse_completion,
    choice=_choice,
    opening=lambda _asked, _index: None,
    piece=_piece,
)
