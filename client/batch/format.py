"""OpenAI's batch file format: lines of requests in, lines of results out. No I/O.

    in   {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": […], …}}
    out  {"id": "batch_req_17", "custom_id": "a", "response": {"status_code": 200, "body": {…}, …}, "error": null}

The number in `id` is the line of the input (from 0), `line_crc32` a checksum of its text. Both serve to resume a batch,
and to detect a result of another batch. Endpoints: /v1/chat/completions and /v1/completions. A field that would change
the answer and that we cannot honour is refused, not ignored.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from client.errors import ClientError, InvalidRequestError
from client.generation import Generation, Message, Options, Prompt

RESULT_ID = "batch_req_"  # a result's id without its number
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

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
_HTTP_STATUS = 400
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # how reading a line of JSON fails


class _Named(msgspec.Struct):
    custom_id: str


class _Line(msgspec.Struct):
    custom_id: str
    url: str
    body: dict[str, Any]
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """One line of the input, ready to be sent."""

    index: int
    crc32: int
    custom_id: str
    url: str
    model: str
    prompt: Prompt
    options: Options


class LineError(InvalidRequestError):
    """A line of the input cannot be sent as it is written; `custom_id` is None where it has none."""

    def __init__(self, message: str, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.custom_id = custom_id


def parse(index: int, text: bytes) -> BatchRequest:
    """Return the request in line `index` of the input. Raises LineError."""
    try:
        line = msgspec.json.decode(text, type=_Line)
    except UNREADABLE as error:
        raise LineError(f"line {index}: {error}", custom_id_of(text)) from error
    try:
        prompt = _prompt(line.url, line.body)
        model = str(line.body.get("model", "bros"))
        return BatchRequest(index, checksum(text), line.custom_id, line.url, model, prompt, _options(line.body))
    except InvalidRequestError as error:
        raise LineError(f"line {index}: {error}", line.custom_id) from error


def custom_id_of(text: bytes) -> str | None:
    """Return the `custom_id` of a line that may hold nothing else that can be used; None where it has none."""
    try:
        return msgspec.json.decode(text, type=_Named).custom_id
    except UNREADABLE:
        return None


def checksum(text: bytes) -> int:
    """Return the checksum of a line, or of a custom_id; never 0, which stands for a line without a result."""
    return zlib.crc32(text.strip()) | 1


def answer(request: BatchRequest, generation: Generation, created_s: int) -> bytes:
    """Return the output line for an answer; `created_s` is a Unix time in seconds."""
    is_chat = request.url == CHAT
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
        }
    response = {"status_code": 200, "request_id": generation.request_id, "body": body}
    return _result(request.index, request.crc32, request.custom_id, response=response)


def refusal(index: int, crc32: int, custom_id: str | None, error: ClientError) -> bytes:
    """Return the errors line for a request that was refused (`response` with status 400) or lost (`error`)."""
    if isinstance(error, InvalidRequestError):
        body = {"error": {"message": str(error), "type": "invalid_request_error", "param": None, "code": None}}
        refused = {"status_code": _HTTP_STATUS, "request_id": None, "body": body}
        return _result(index, crc32, custom_id, response=refused)
    return _result(index, crc32, custom_id, error={"code": type(error).__name__, "message": str(error)})


def _result(
    index: int, crc32: int, custom_id: str | None, response: object | None = None, error: object | None = None
) -> bytes:
    record = {
        "id": f"{RESULT_ID}{index}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
        "line_crc32": crc32,
    }
    return msgspec.json.encode(record) + b"\n"


def _choice(is_chat: bool, generation: Generation) -> dict[str, object]:
    choice: dict[str, object] = {"index": 0, "finish_reason": generation.finish_reason, "logprobs": None}
    if is_chat:
        return choice | {"message": {"role": "assistant", "content": generation.text, "refusal": None}}
    return choice | {"text": generation.text}


def _prompt(url: str, body: Mapping[str, Any]) -> Prompt:
    if url == CHAT:
        return [_message(message) for message in _required(body, "messages", list)]
    if url == COMPLETIONS:
        prompt = _required(body, "prompt", (str, list))
        if isinstance(prompt, str) or all(isinstance(token_id, int) for token_id in prompt):
            return cast(Prompt, prompt)
        if len(prompt) == 1 and isinstance(prompt[0], str):
            return prompt[0]
        raise InvalidRequestError("prompt: one string or one list of token ids per line")
    raise InvalidRequestError(f"url: {url!r} is neither {CHAT} nor {COMPLETIONS}")


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
