"""/v1/chat/completions: a body to what it asks, and what the engine made of it to an answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import msgspec

from client.generation import Chunk, Generation, Message, Messages, Options
from client.openai.asked import Asked, Endpoint, Json, asked_of
from client.openai.bodies import ChatBody, parse
from client.openai.errors import ApiError
from client.openai.log_probs import chat_log_probs
from client.openai.objects import require_short
from client.openai.response_format import schema_of
from client.openai.tools import Offer, Reader, calls_for_template, offer_of

MAX_SCHEMA_BYTES = 72 * 1024  # 64 KiB of schema, as the engine has it, in its wrapping
MAX_TOOLS_BYTES = 256 * 1024
CALLED = "tool_calls"  # the finish reason
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_TEMPLATE_FIELDS = ("name", "reasoning_content", "reasoning", "tool_call_id")  # which a chat template may read: texts
_EMPTY_FIELDS = ("refusal", "audio", "annotations", "function_call", "tool_calls")  # in answers that are sent back


def parse_chat(body: Mapping[str, object]) -> Asked:
    """Return what a body asks for. Raises ApiError."""
    checked = parse(ChatBody, body)
    messages = [_message(index, message) for index, message in enumerate(checked.messages)]
    if None not in (checked.max_tokens, checked.max_completion_tokens):
        raise ApiError("max_tokens: max_completion_tokens is given too", param="max_tokens")
    require_short("tools", checked.tools, MAX_TOOLS_BYTES)
    require_short("response_format", checked.response_format, MAX_SCHEMA_BYTES)
    offer = offer_of(checked.tools, checked.tool_choice, checked.parallel_tool_calls is not False)
    return replace(
        asked_of(checked, [Messages(msgspec.json.encode(messages).decode())], _own_options(checked, offer)), offer=offer
    )


def _own_options(body: ChatBody, offer: Offer | None) -> Options:
    options = Options()
    if max_tokens := body.max_completion_tokens or body.max_tokens:
        options["max_tokens"] = max_tokens
    if body.logprobs:
        options["log_probs"] = True
    if body.top_logprobs:
        if not body.logprobs:
            raise ApiError("top_logprobs: only with logprobs", param="top_logprobs")
        options["top_log_probs"] = body.top_logprobs
    if (schema := schema_of(body.response_format)) is not None:
        options["json_schema"] = schema
    if offer is not None:
        options["tools"] = offer.tools
        if offer.schema is not None and schema is not None:
            raise ApiError("tool_choice: a call has a form of its own beside response_format", param="tool_choice")
        if offer.schema is not None:
            options["json_schema"] = offer.schema
    return options


def _message(index: int, message: Mapping[str, Any]) -> Message:
    place = f"messages[{index}]"
    given = {name: value for name, value in message.items() if value is not None}
    role = given.pop("role", None)
    if not isinstance(role, str) or role not in ROLES:
        raise ApiError(f"{place}.role: {_show(role)} is none of {', '.join(ROLES)}", param="messages")
    calls = given.pop("tool_calls", None) if role == "assistant" else None
    text = _text(f"{place}.content", given.pop("content", "" if calls else None))
    for name in _EMPTY_FIELDS:
        if given.get(name) in ([], {}):
            del given[name]
    for name, value in given.items():
        if name not in _TEMPLATE_FIELDS:
            raise ApiError(f"{place}: {_show(name)} is not supported", param="messages", code="unknown_parameter")
        if not isinstance(value, str):
            raise ApiError(f"{place}.{name}: expected a string", param="messages")
    called = {"tool_calls": calls_for_template(f"{place}.tool_calls", calls)} if calls else {}
    return cast(Message, given | {"role": ROLES[role], "content": text} | called)


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
    message: Json = {"role": "assistant", "content": generation.text, "refusal": None}
    finish_reason: str = generation.finish_reason
    if asked.offer is not None:
        reader = Reader(asked.offer)
        shown = reader.push(generation.text)
        rest, calls = reader.end()
        if calls:
            message |= {"content": shown + rest or None, "tool_calls": calls}
            finish_reason = CALLED
    return {
        "index": index,
        "message": message,
        "logprobs": chat_log_probs(asked, generation),
        "finish_reason": finish_reason,
    }


def calls_piece(index: int, calls: list[Json]) -> Json:
    """Return the piece of a choice that holds all its calls."""
    delta = {"tool_calls": [{"index": number, **call} for number, call in enumerate(calls)]}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _opening(_: Asked, index: int) -> Json:
    delta = {"role": "assistant", "content": "", "refusal": None}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _piece(asked: Asked, index: int, chunk: Chunk) -> Json:
    return {
        "index": index,
        "delta": {"content": chunk.text} if chunk.text else {},
        "logprobs": chat_log_probs(asked, chunk),
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
