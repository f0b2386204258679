"""A server that is not ours: the client stops at a bound, with one error of its own."""

from __future__ import annotations

import asyncio
import itertools
import zlib
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest
from tritonclient.grpc import service_pb2

from client import Client
from client.client import AsyncClient
from client.errors import OverloadedError, UnavailableError, parse_error
from client.generation import decode
from client.prometheus import scrape
from client.transports.grpc import decode_response
from client.transports.http import AsyncHttpTransport, HttpTransport

PIECE = b"a" * 1024 * 1024
ENDLESS = {
    "line": b"data: " + PIECE,
    "comments": b":\n" * 500_000,
    "empty lines": b"\n" * 1_000_000,
    "piece": PIECE,
}


class Endless(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """Gives a piece again and again, and counts."""

    def __init__(self, piece: bytes) -> None:
        self._piece = piece
        self.num_given = 0

    def __iter__(self) -> Iterator[bytes]:
        for self.num_given in itertools.count(1):
            assert self.num_given < 200, "the client reads without end"
            yield self._piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


def server(stream: httpx2.SyncByteStream | bytes, status: int = 200, **headers: str) -> httpx2.MockTransport:
    def respond(_: httpx2.Request) -> httpx2.Response:
        body = {"content": stream} if isinstance(stream, bytes) else {"stream": stream}
        return httpx2.Response(status, headers=headers, **body)

    return httpx2.MockTransport(respond)


def ask(transport: httpx2.MockTransport) -> None:
    with Client(HttpTransport(http=httpx2.Client(base_url="http://test", transport=transport))) as client:
        client.generate("hello")


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_answer_ends_with_an_error(name: str, status: int) -> None:
    with pytest.raises(UnavailableError, match="its answer exceeds"):
        ask(server(Endless(ENDLESS[name]), status))


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_answer_ends_the_async_call_too(name: str, status: int) -> None:
    async def main() -> None:
        http = httpx2.AsyncClient(base_url="http://test", transport=server(Endless(ENDLESS[name]), status))
        async with AsyncClient(AsyncHttpTransport(http=http)) as client:
            await client.generate("hello")

    with pytest.raises(UnavailableError, match="its answer exceeds"):
        asyncio.run(main())


def test_a_compressed_answer_is_not_unpacked() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = packer.compress(b"data: " + PIECE) + packer.flush()
    for status in (200, 400):
        with pytest.raises(UnavailableError, match="its answer is compressed"):
            ask(server(packed, status, **{"content-encoding": "gzip"}))


@pytest.mark.parametrize(
    "data",
    [
        b"[",
        b"[" * 100_000,
        b"5",
        b'{"text_output": "\xff"}',
        b'{"text_output": 5}',
        b'{"text_output": ["a"], "top_ids": [1, 2], "top_log_probs": [1.0]}',
        b'{"num_preemptions": []}',
        b'{"num_preemptions": "many"}',
        b'{"num_preemptions": 1e400}',
    ],
    ids=lambda data: repr(data[:40]),
)
def test_an_answer_that_cannot_be_read_is_an_error_of_ours(data: bytes) -> None:
    with pytest.raises(UnavailableError, match="its answer cannot be read"):
        ask(server(b"data: " + data + b"\n\n"))


@pytest.mark.parametrize(
    ("datatype", "content"), [("NEWS", b"1"), ("BYTES", b"\x01"), ("INT32", None)], ids=["type", "length", "absent"]
)
def test_a_tensor_that_cannot_be_read_is_an_error_of_ours(datatype: str, content: bytes | None) -> None:
    response = service_pb2.ModelStreamInferResponse()
    response.infer_response.outputs.add(name="text_output", datatype=datatype, shape=[1])
    if content is not None:
        response.infer_response.raw_output_contents.append(content)
    with pytest.raises(UnavailableError, match="its answer cannot be read"):
        decode(decode_response(response))


def test_advice_of_any_length_is_read() -> None:
    error = parse_error("OVERLOADED: full; retry_after_ms=" + "9" * 5000)
    assert isinstance(error, OverloadedError)
    assert error.retry_after_s == 1.0


def test_endless_metrics_are_an_error() -> None:
    with (
        httpx2.Client(transport=server(Endless(b"# " + PIECE))) as http,
        pytest.raises(UnavailableError, match="its answer exceeds"),
    ):
        scrape(http, "http://test/metrics")
