"""What the gRPC transport does not send, since Triton 2.51 does not bear it: a header, and a cancel after an error."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from client import AsyncClient, Client
from client.errors import InvalidRequestError

_TIME_TO_CANCEL_S = 0.2
REFUSAL = "INVALID_REQUEST: the prompt is empty"


class Refusing(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Notes the headers of each call and answers with an error, as Triton does without that header."""

    def __init__(self) -> None:
        self.headers: list[str] = []
        self.was_cancelled: list[bool] = []  # between the error and the end of the call

    def ModelStreamInfer(self, _: object, context: grpc.ServicerContext) -> Iterator[object]:
        self.headers += [name for name, _ in context.invocation_metadata()]
        has_ended = threading.Event()
        context.add_callback(has_ended.set)
        yield service_pb2.ModelStreamInferResponse(error_message=REFUSAL)
        self.was_cancelled.append(has_ended.wait(_TIME_TO_CANCEL_S))


@pytest.fixture
def refusing() -> Iterator[tuple[Refusing, str]]:
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        servicer = Refusing()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield servicer, f"grpc://127.0.0.1:{port}"
        server.stop(None).wait()


def assert_harmless(headers: list[str]) -> None:
    assert "user-agent" in headers
    assert not [name for name in headers if "triton" in name]


def test_the_client_asks_for_no_error_mode_and_still_types_errors(refusing: tuple[Refusing, str]) -> None:
    servicer, url = refusing
    with Client(url) as client, pytest.raises(InvalidRequestError, match=REFUSAL):
        client.generate("")
    assert_harmless(servicer.headers)
    assert servicer.was_cancelled == [False]


def test_nor_does_the_async_client(refusing: tuple[Refusing, str]) -> None:
    servicer, url = refusing

    async def run() -> None:
        async with AsyncClient(url) as client:
            with pytest.raises(InvalidRequestError, match=REFUSAL):
                await client.generate("")

    asyncio.run(run())
    assert_harmless(servicer.headers)
    assert servicer.was_cancelled == [False]
