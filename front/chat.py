"""/v1/chat/completions: a body to what it asks, and what the engine made of it to an answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from client.generation import Chunk, Generation, Message, Options
from front.asked import Asked, Endpoint, Json, asked_of
from front.bodies import ChatBody, parse
from front.errors import ApiError
from front.log_probs import chat_log_probs
from front.response_format import schema_of

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TEMPLATE_FIELDS = ("name", "reasoning_content", "reasoning")  # which a chat template may read: texts
_EMPTY_FIELDS = ("refusal", "audio", "annotations", "function_call", "tool_calls")  # in answers that are sent back


def parse_chat(body: Mapping[str, object]) -> Asked:
    """Return what a body asks for. Raises ApiError."""
    checked = parse(ChatBody, body)
    messages = [_message(index, message) for index, message in enumerate(checked.messages)]
    if None not in (checked.max_tokens, checked.max_completion_tokens):
        raise ApiError("max_tokens: max_completion_tokens is given too", param="max_tokens")
    return asked_of(checked, [messages], _own_options(checked))


def _own_options(body: ChatBody) -> Options:
    options = Options()
    if max_tokens := body.max_completion_tokens or body.max_tokens:
        options["max_tokens"] = max_tokens
    if body.logprobs:
        options["log_probs"] = True
    if (schema := schema_of(body.response_format)) is not None:
        options["json_schema"] = schema
    return options


def _message(index: int, message: Mapping[str, Any]) -> Message:
    place = f"messages[{index}]"
    given = {name: value for name, value in message.items() if value is not None}
    role = given.pop("role", None)
    if role not in ROLES:
        raise ApiError(f"{place}.role: {_show(role)} is none of {', '.join(ROLES)}", param="messages")
    text = _text(f"{place}.content", given.pop("content", None))
    for name in _EMPTY_FIELDS:
        if given.get(name) in ([], {}):
            del given[name]
    for name, value in given.items():
        if name not in _TEMPLATE_FIELDS:
            raise ApiError(f"{place}: {_show(name)} is not supported", param="messages", code="unknown_parameter")
        if not isinstance(value, str):
            raise ApiError(f"{place}.{name}: expected a string", param="messages")
    return cast(Message, given | {"role": ROLES[role], "content": text})


def _text(place: str, content: object) -> str:
    """Return the text of a content: a string, or parts that are all text and are joined as they are."""
    if isinstance(content, list):
        return "".join(_part(f"{place}[{index}]", part) for index, part in enumerate(content))
    if not isinstance(content, str):
        raise ApiError(f"{place}: expected a string or a list of text parts", param="messages")
    return content


def _part(place: str, part: object) -> str:
    if isinstance(part, dict) and part.get("type") != "text":
        raise ApiError(f"{place}.type: {_show(part.get('type'))} is not text", param="messages")
    if not isinstance(part, dict) or not isinstance(part.get("text"), str) or set(part) != {"type", "text"}:
        raise ApiError(f"{place}: expected type and text alone", param="messages")
    return str(part["text"])


def _show(value: object) -> str:
    return repr(value[:60] if isinstance(value, str) else type(value).__name__)


def _choice(asked: Asked, index: int, generation: Generation) -> Json:
    return {
        "index": index,
        "message": {"role": "assistant", "content": generation.text, "refusal": None},
        "logprobs": chat_log_probs(asked, generation.token_ids, generation.log_probs),
        "finish_reason": generation.finish_reason,
    }


def _opening(_: Asked, index: int) -> Json:
    delta = {"role": "assistant", "content": "", "refusal": None}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _piece(asked: Asked, index: int, chunk: Chunk) -> Json:
    return {
        "index": index,
        "delta": {"content": chunk.text} if chunk.text else {},
        "logprobs": chat_log_probs(asked, chunk.token_ids, chunk.log_probs),
        "finish_reason": chunk.finish_reason,
    }


CHAT = Endpoint(
    path="/v1/chat/completions",
    id_prefix="chatcmpl-",
    whole_name="chat.completion",
    piece_name="chat.completion.chunk",
    parse=parse_chat,
    choice=_choice,
    opening=_opening,
    piece=_piece,
)
