"""The two request paths into a server, as bytes: each request ends as one `Reply`, whatever the server does."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import InferResult, service_pb2

_PREFIX = "/inference.GRPCInferenceService/"
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),  # a server that was killed is back in seconds
)
_REFUSALS = {"INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "ALREADY_EXISTS", "OUT_OF_RANGE"}
_READ_BYTES = 1 << 16


class End(StrEnum):
    """How a request ended. `hung`: at the client's timeout. `left`: by the client's choice."""

    ANSWERED = "answered"
    REFUSED = "refused"
    BROKEN = "broken"
    HUNG = "hung"
    LEFT = "left"


@dataclass(slots=True)
class Reply:
    """All that came back for one request. `num_ends` counts final marks and errors."""

    end: End = End.BROKEN
    words: str = ""
    status: int | None = None  # of HTTP
    token_ids: list[int] = field(default_factory=list)
    num_responses: int = 0
    num_ends: int = 0
    finish_reason: str | None = None


class GrpcPath:
    """One HTTP/2 connection; requests are serialised messages, so that broken ones can be sent."""

    def __init__(self, url: str) -> None:
        self._channel = grpc.aio.insecure_channel(url, _OPTIONS)
        self._stream = self._channel.unary_stream(
            f"{_PREFIX}ModelStreamInfer", None, service_pb2.ModelStreamInferResponse.FromString
        )

    async def ask(
        self, data: bytes, timeout_s: float, leave_after: int | None = None, metadata: tuple[tuple[str, str], ...] = ()
    ) -> Reply:
        """Send `data`; return how it ended. The client cancels after `leave_after` responses."""
        reply = Reply()
        call = self._stream(data, metadata=metadata)
        try:
            async with asyncio.timeout(timeout_s):
                await _read_stream(call, reply, leave_after)
        except TimeoutError:
            reply.end = End.HUNG
        except grpc.aio.AioRpcError as error:
            is_refusal = error.code().name in _REFUSALS
            reply.end, reply.words = (
                (End.REFUSED if is_refusal else End.BROKEN),
                f"{error.code().name}: {error.details()}",
            )
            reply.num_ends += 1
        finally:
            call.cancel()
        return reply

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()


async def _read_stream(call: Any, reply: Reply, leave_after: int | None) -> None:
    if leave_after == 0:
        reply.end = End.LEFT
        return
    async for message in call:
        _note_message(reply, message)
        if leave_after is not None and reply.num_responses >= leave_after:
            reply.end = End.LEFT
            return
    if reply.num_ends == 0:
        reply.end, reply.words = End.BROKEN, "the stream ended without a final response"


def _note_message(reply: Reply, message: Any) -> None:
    response = message.infer_response
    if message.error_message:
        reply.end, reply.words = End.REFUSED, message.error_message
        reply.num_ends += 1
        return
    reply.num_responses += 1
    result = InferResult(response)
    if (token_ids := result.as_numpy("output_ids")) is not None:
        reply.token_ids += token_ids.reshape(-1).tolist()
    if (reason := result.as_numpy("finish_reason")) is not None:
        reply.finish_reason = reason.reshape(-1)[0].decode()
    if response.parameters["triton_final_response"].bool_param:
        reply.end = End.ANSWERED
        reply.num_ends += 1


async def ask_http(port: int, data: bytes, timeout_s: float, leave_after: int | None = None) -> Reply:
    """Send the bytes of one HTTP request on a connection of its own; return how it ended.

    The client resets the connection after `leave_after` events; 0: once it has sent.
    """
    reply, received = Reply(), bytearray()
    writer = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(data)
            await writer.drain()
            await _receive(reader, received, leave_after)
            if leave_after is not None and received.count(b"data:") >= leave_after:
                reply.end = End.LEFT
            else:
                _note_answer(reply, received)
    except TimeoutError:
        reply.end, reply.words = End.HUNG, f"{len(received)} bytes came: {bytes(received[-200:])!r}"
    except (OSError, http.client.HTTPException) as error:
        reply.end, reply.words = End.BROKEN, f"{type(error).__name__}: {error}"
    finally:
        if writer is not None:
            writer.transport.abort()
    return reply


async def _receive(reader: asyncio.StreamReader, received: bytearray, leave_after: int | None) -> None:
    """Append received bytes to `received`, until the server closes the connection or `leave_after` events are there."""
    while leave_after is None or received.count(b"data:") < leave_after:
        piece = await reader.read(_READ_BYTES)
        if not piece:
            break
        received += piece


class _Received:
    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data

    def makefile(self, *_: object) -> io.BytesIO:
        return io.BytesIO(self._data)


def parse_answer(received: bytes | bytearray) -> tuple[int, str]:
    """Return status and body of all that came on a connection. Raises http.client.HTTPException."""
    response = http.client.HTTPResponse(_Received(received))  # type: ignore[arg-type]  # all it needs is makefile
    response.begin()
    return response.status, response.read().decode(errors="replace")


def _note_answer(reply: Reply, received: bytearray) -> None:
    status, body = parse_answer(received)
    reply.status = status
    if body.startswith("data:"):
        for line in body.splitlines():
            if line.startswith("data:"):
                _note_outputs(reply, json.loads(line.removeprefix("data:")))
    elif body.startswith("{"):
        _note_outputs(reply, json.loads(body))
    else:
        reply.words = body[:200]
        reply.num_ends += 1
    if status >= 400:
        reply.end = End.REFUSED
    elif reply.num_ends == 0:
        reply.words = "the body ended without a final response"
    elif not reply.words:
        reply.end = End.ANSWERED


def _note_outputs(reply: Reply, outputs: Mapping[str, Any]) -> None:
    if "error" in outputs:
        reply.end, reply.words = End.REFUSED, str(outputs["error"])
        reply.num_ends += 1
        return
    reply.num_responses += 1
    token_ids = outputs.get("output_ids", [])
    reply.token_ids += token_ids if isinstance(token_ids, list) else [token_ids]
    if "finish_reason" in outputs or "output_ids" not in outputs:
        reply.finish_reason = outputs.get("finish_reason")
        reply.num_ends += 1
