"""Translates a line of a batch into a request, and the answer into OpenAI's words. No I/O.

Endpoints: /v1/chat/completions and /v1/completions. A field that would change the answer and that we cannot honour is
refused, not ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from client.batch.lines import CHAT, Line, LineError, Reply, lost, parse_line, refused, responded
from client.errors import ClientError, InvalidRequestError
from client.generation import Generation, Message, Options, Prompt

_OPTIONS = {  # field of a body -> option
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "min_tokens": "min_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "ignore_eos": "ignore_eos",
}
_IGNORED = {"model", "user", "metadata", "service_tier", "store", "safety_identifier", "prompt_cache_key"}
_NEUTRAL: dict[str, tuple[object, ...]] = {  # fields that are fine as long as they ask for nothing
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "echo": (False,),
    "logit_bias": ({},),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "tools": ([],),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
}


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """One line of the input, ready to be sent."""

    line: Line
    model: str
    prompt: Prompt
    options: Options


def parse(index: int, text: bytes) -> BatchRequest:
    """Return the request in line `index` of the input. Raises LineError."""
    return request_of(parse_line(index, text))


def request_of(line: Line) -> BatchRequest:
    """Return the request that a line asks for. Raises LineError."""
    try:
        prompt = _prompt(line.url, line.body)
        return BatchRequest(line, str(line.body.get("model", "bros")), prompt, _options(line.body))
    except InvalidRequestError as error:
        raise LineError(f"line {line.index}: {error}", line.custom_id) from error


def answer(request: BatchRequest, generation: Generation, created_s: int) -> Reply:
    """Return the reply that an answer is; `created_s` is a Unix time in seconds."""
    is_chat = request.line.url == CHAT
    body: dict[str, object] = {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{generation.request_id}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": created_s,
        "model": request.model,
        "choices": [_choice(is_chat, generation)],
    }
    if generation.metrics is not None:
        num_input, num_output = generation.metrics.num_input_tokens, generation.metrics.num_output_tokens
        body["usage"] = {
            "prompt_tokens": num_input,
            "completion_tokens": num_output,
            "total_tokens": num_input + num_output,
            "prompt_tokens_details": {"cached_tokens": generation.metrics.num_cached_tokens},
        }
    return responded(body, generation.request_id, num_output=len(generation.token_ids))


def refusal(error: ClientError) -> Reply:
    """Return the reply to a request that was refused (`response` with status 400) or lost (`error`)."""
    return refused(str(error)) if isinstance(error, InvalidRequestError) else lost(type(error).__name__, str(error))


def _choice(is_chat: bool, generation: Generation) -> dict[str, object]:
    choice: dict[str, object] = {"index": 0, "finish_reason": generation.finish_reason, "logprobs": None}
    if is_chat:
        return choice | {"message": {"role": "assistant", "content": generation.text, "refusal": None}}
    return choice | {"text": generation.text}


def _prompt(url: str, body: Mapping[str, Any]) -> Prompt:
    if url == CHAT:
        return [_message(message) for message in _required(body, "messages", list)]
    prompt = _required(body, "prompt", (str, list))
    if isinstance(prompt, str) or all(isinstance(token_id, int) for token_id in prompt):
        return cast(Prompt, prompt)
    if len(prompt) == 1 and isinstance(prompt[0], str):
        return prompt[0]
    raise InvalidRequestError("prompt: one string or one list of token ids per line")


def _message(message: object) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InvalidRequestError(f"messages: {message!r} has no role")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_text_part(part) for part in content)
    if not isinstance(content, str):
        raise InvalidRequestError(f"messages: content {content!r} is not text")
    return Message(role=message["role"], content=content)


def _text_part(part: object) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return cast(str, part["text"])
    raise InvalidRequestError(f"messages: content part {part!r} is not text")


def _options(body: Mapping[str, Any]) -> Options:
    options: dict[str, object] = {}
    for name, value in body.items():
        if value is None or name in _IGNORED or name in ("messages", "prompt"):
            continue
        if name in _OPTIONS:
            options[_OPTIONS[name]] = value
        elif name == "stop":
            options["stop"] = [value] if isinstance(value, str) else value
        else:
            _refuse_unless(name, value, _NEUTRAL.get(name, ()))
    return cast(Options, options)


def _refuse_unless(name: str, value: object, neutral: Sequence[object]) -> None:
    if value not in neutral:
        raise InvalidRequestError(f"{name}: {value!r} is not supported")


def _required(body: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    value = body.get(name)
    if not isinstance(value, kind) or not value:
        raise InvalidRequestError(f"{name}: missing, empty or of the wrong type")
    return value
