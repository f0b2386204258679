"""gRPC: one `ModelStreamInfer` call per request, all on one HTTP/2 connection.

Each request has a call of its own, so that it can be cancelled alone: Triton cancels calls, not requests. A call with
one message is made as a unary-stream call. On the wire it is the same, and gRPC needs no thread besides the caller's.
With 32 streams that saves a third of the client's processor time per response. Errors have no status code; our code is
in front of their message. With the header that asks for status codes, server 2.51 may end with SIGSEGV.

An error is the last message of a call, and its end follows. A call that is cancelled between the two stays in server
2.51 with its request, and the server cannot end by itself. 416 refused prompts of 900 kB took 125 MB. So the end is
waited for.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

import grpc
import grpc.aio
from grpc.experimental import ChannelOptions
from tritonclient.grpc import service_pb2

from client import wire
from client.errors import ClientError, InvalidRequestError, parse_error, readable
from client.generation import Call, Outputs, Scalar
from client.transports import MAX_MESSAGE_BYTES
from client.transports.loopback import channel_options

_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of our own: clients do not share one by accident
    (ChannelOptions.SingleThreadedUnaryStream, 1),  # whoever waits for a response reads it
)
_METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
_CODECS = (service_pb2.ModelInferRequest.SerializeToString, service_pb2.ModelStreamInferResponse.FromString)
_FORMATS = {"BOOL": "?", "INT32": "i", "UINT32": "I", "INT64": "q", "UINT64": "Q", "FP32": "f", "FP64": "d"}
_PARAMETER_FIELDS = {str: "string_param", bool: "bool_param", int: "int64_param", float: "double_param"}


class GrpcTransport:
    """Transport over gRPC, for threads."""

    def __init__(self, url: str = wire.DEFAULT_GRPC_URL) -> None:
        self._channel = make_channel(url)
        self._infer = self._channel.unary_stream(_METHOD, *_CODECS)

    def stream(self, call: Call) -> Generator[Outputs, None, None]:
        """See `Transport.stream`."""
        responses = self._infer(encode_request(call), timeout=call.timeout_s)
        try:
            for response in responses:
                if response.error_message:
                    with contextlib.suppress(grpc.RpcError):  # the error counts, whatever becomes of the call
                        for _ in responses:
                            pass
                yield decode_response(response)
        except grpc.RpcError as error:
            raise _client_error(error) from error
        finally:
            responses.cancel()

    def close(self) -> None:
        """See `Transport.close`."""
        self._channel.close()


class AsyncGrpcTransport:
    """Transport over gRPC, for one event loop."""

    def __init__(self, url: str = wire.DEFAULT_GRPC_URL) -> None:
        scheme, _, address = url.rpartition("://")
        options = (*_CHANNEL_OPTIONS, *channel_options(address))
        self._channel = (
            grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(), options)
            if scheme == "grpcs"
            else grpc.aio.insecure_channel(address, options)
        )
        self._infer = self._channel.unary_stream(_METHOD, *_CODECS)

    async def stream(self, call: Call) -> AsyncGenerator[Outputs, None]:
        """See `AsyncTransport.stream`."""
        responses = self._infer(encode_request(call), timeout=call.timeout_s)
        try:
            async for response in responses:
                if response.error_message:
                    with contextlib.suppress(grpc.RpcError):  # the error counts, whatever becomes of the call
                        async for _ in responses:
                            pass
                yield decode_response(response)
        except grpc.RpcError as error:
            raise _client_error(error) from error
        finally:
            responses.cancel()

    async def close(self) -> None:
        """See `AsyncTransport.close`."""
        await self._channel.close()


def make_channel(url: str) -> grpc.Channel:
    """Return a connection, for threads, to `[grpc[s]://]host:port`."""
    scheme, _, address = url.rpartition("://")
    options = (*_CHANNEL_OPTIONS, *channel_options(address))
    if scheme == "grpcs":
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(), options)
    return grpc.insecure_channel(address, options)


def encode_request(call: Call) -> service_pb2.ModelInferRequest:
    """Return the protobuf message for a call."""
    request = service_pb2.ModelInferRequest(model_name=call.model, id=call.request_id)
    for name, value in call.inputs.items():
        spec = wire.INPUTS[name]
        elements: Sequence[Scalar] = [value] if isinstance(value, Scalar) else value
        request.inputs.add(name=name, datatype=spec.datatype, shape=[len(elements)])
        request.raw_input_contents.append(_pack(name, spec.datatype, elements))
    for name, parameter in call.parameters.items():
        setattr(request.parameters[name], _PARAMETER_FIELDS[type(parameter)], parameter)
    return request


def decode_response(response: service_pb2.ModelStreamInferResponse) -> Outputs:
    """Return the outputs of one response; raise what it reports."""
    if response.error_message:
        raise parse_error(response.error_message)
    infer = response.infer_response
    with readable():
        contents = zip(infer.outputs, infer.raw_output_contents, strict=True)
        return {tensor.name: _unpack(tensor.datatype, content) for tensor, content in contents}


def _pack(name: str, datatype: str, elements: Sequence[Scalar]) -> bytes:
    if datatype == "BYTES":
        encoded = [str(element).encode() for element in elements]
        return b"".join(struct.pack("<I", len(data)) + data for data in encoded)
    try:
        return struct.pack(f"<{len(elements)}{_FORMATS[datatype]}", *elements)
    except (struct.error, OverflowError) as error:
        raise InvalidRequestError(f"INVALID_REQUEST: {name}: {elements!r} does not fit {datatype}: {error}") from error


def _unpack(datatype: str, content: bytes) -> list[Any]:
    if datatype != "BYTES":
        code = _FORMATS[datatype]
        return list(struct.unpack(f"<{len(content) // struct.calcsize(code)}{code}", content))
    elements, start = [], 0
    while start < len(content):
        (length,) = struct.unpack_from("<I", content, start)
        start += 4 + length
        elements.append(content[start - length : start].decode(errors="replace"))
    return elements


def _client_error(error: grpc.RpcError) -> ClientError:
    details, status = "", "UNKNOWN"
    with contextlib.suppress(AttributeError):  # an RpcError of a stream is a Call, but its type does not say so
        details, status = error.details() or "", error.code().name
    return parse_error(details, status)
