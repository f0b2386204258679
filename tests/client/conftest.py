"""Clients under test: on the fake, and (`-m triton`) on a real server over gRPC and HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from client import AsyncFakeTransport, Client, FakeServer, FakeTransport
from client.transports import AsyncTransport, Transport, connect, connect_async
from tests.triton.servers import PATIENCE_S

TOKEN_S = 0.001  # of the fake, so that a timeout can be met
TRANSPORTS = (
    "fake",
    pytest.param("grpc", marks=pytest.mark.triton),
    pytest.param("http", marks=pytest.mark.triton),
)


class Endpoint:
    """A server to test against: makes transports of both kinds to it."""

    def __init__(self, url: str | None) -> None:
        self._url = url
        self.fake = FakeServer(token_s=TOKEN_S)

    def wait_until_idle(self, client: Client) -> None:
        """Return once no request is in the server."""
        deadline_s = time.monotonic() + PATIENCE_S
        while self._num_open(client):
            assert time.monotonic() < deadline_s, f"{self._num_open(client)} requests are still in the server"

    def _num_open(self, client: Client) -> int:
        if self._url is None:
            return len(self.fake.open_ids)
        return sum(now.num_running + now.num_waiting for now in client.inspect().requests_by_class.values())

    def transport(self) -> Transport:
        return connect(self._url) if self._url else FakeTransport(self.fake)

    def async_transport(self) -> AsyncTransport:
        return connect_async(self._url) if self._url else AsyncFakeTransport(self.fake)


@pytest.fixture
def server_name() -> str:
    """The fixture that is the real server: its tokens are made up anew for each request."""
    return "sim"


on_a_real_model = pytest.mark.parametrize("server_name", ["smollm"])  # where equal prompts need equal tokens


@pytest.fixture(params=TRANSPORTS)
def endpoint(request: pytest.FixtureRequest, server_name: str) -> Endpoint:
    if request.param == "fake":
        return Endpoint(None)
    server = request.getfixturevalue(server_name)
    return Endpoint(server.grpc_url if request.param == "grpc" else server.http_url)


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[Client]:
    with Client(endpoint.transport()) as client:
        yield client
