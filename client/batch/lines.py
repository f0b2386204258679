"""OpenAI's batch file format: lines of requests in, lines of results out. No I/O, and nothing of who answers.

    in   {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": […], …}}
    out  {"id": "batch_req_17", "custom_id": "a", "response": {"status_code": 200, "body": {…}, …}, "error": null}

The number in `id` is the line of the input (from 0), `line_crc32` a checksum of its text. Both serve to resume a batch,
and to detect a result of another batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec

from client.errors import InvalidRequestError
from client.openai.errors import ApiError

RESULT_ID = "batch_req_"  # a result's id without its number
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
OK = 200
_LINE_ENDS = "\x85\u2028\u2029"  # that JSON leaves as they are
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # how reading a line of JSON fails


_Name = Annotated[str, msgspec.Meta(min_length=1)]


class _Named(msgspec.Struct):
    custom_id: _Name


class _Written(msgspec.Struct):
    """OpenAI publishes no schema of a line; its last one left further fields free, so they have no effect."""

    custom_id: _Name
    url: str
    body: msgspec.Raw
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the input: which endpoint it asks, and what (`body`: JSON that nobody has read yet).

    A line that cannot be read has an index only.
    """

    index: int
    crc32: int
    custom_id: str | None
    url: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What a line came to: a response with a status of its own, or, where there was none, an error."""

    num_output: int = 0
    response: Mapping[str, object] | None = None
    error: Mapping[str, object] | None = None

    @property
    def is_failure(self) -> bool:
        return self.response is None or self.response["status_code"] != OK


class LineError(InvalidRequestError):
    """A line of the input cannot be sent as it is written; `custom_id` is None where it has none."""

    def __init__(self, message: str, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.custom_id = custom_id


def parse_line(index: int, text: bytes) -> Line:
    """Return what line `index` of the input asks. Raises LineError."""
    try:
        written = msgspec.json.decode(text, type=_Written)
    except UNREADABLE as error:
        raise LineError(f"line {index}: {error}", custom_id_of(text)) from error
    if written.method != "POST":
        raise LineError(f"line {index}: method: {written.method[:60]!r} is not POST", written.custom_id)
    if written.url not in (CHAT, COMPLETIONS):
        words = f"line {index}: url: {written.url[:60]!r} is neither {CHAT} nor {COMPLETIONS}"
        raise LineError(words, written.custom_id)
    body = bytes(written.body)
    if not body.startswith(b"{"):
        raise LineError(f"line {index}: body: expected an object", written.custom_id)
    return Line(index, checksum(text), written.custom_id, written.url, body)


def custom_id_of(text: bytes) -> str | None:
    """Return the `custom_id` of a line that may hold nothing else that can be used; None where it has none."""
    try:
        return msgspec.json.decode(text, type=_Named).custom_id
    except UNREADABLE:
        return None


def checksum(text: bytes) -> int:
    """Return the checksum of a line, or of a custom_id; never 0, which stands for a line without a result."""
    return zlib.crc32(text.strip()) | 1


def responded(body: Mapping[str, object], request_id: str | None, status: int = OK, num_output: int = 0) -> Reply:
    """Return the reply that an endpoint gave."""
    return Reply(num_output, {"status_code": status, "request_id": request_id, "body": body})


def refused(error: ApiError) -> Reply:
    """Return the reply to a request that an endpoint refused, or failed to answer."""
    return responded(error.body, None, error.status)


def lost(code: str, message: str) -> Reply:
    """Return the reply to a request that no endpoint answered."""
    return Reply(error={"code": code, "message": message})


def result_line(line: Line, reply: Reply) -> bytes:
    """Return the line of output for a line of the input."""
    record = {
        "id": f"{RESULT_ID}{line.index}",
        "custom_id": line.custom_id,
        "response": reply.response,
        "error": reply.error,
        "line_crc32": line.crc32,
    }
    text = msgspec.json.encode(record)
    for char in _LINE_ENDS:  # stands in a string; where lines are told by Unicode, it would end this one
        text = text.replace(char.encode(), f"\\u{ord(char):04x}".encode())
    return text + b"\n"
