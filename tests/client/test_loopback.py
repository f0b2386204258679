"""Whatever proxy the environment names, connections to loopback take none, and all others take it."""

from __future__ import annotations

import asyncio
import socketserver
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from client import AsyncClient, Client
from client.cli import main
from client.errors import InvalidRequestError, UnavailableError
from client.health import ask_readiness
from client.transports.loopback import is_loopback

REFUSAL = "INVALID_REQUEST: it got here"
METRICS = b"bros_steps_total 7\n"
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY", "grpc_proxy")


class OverGrpc(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Says that it is ready, and refuses every request."""

    def ModelStreamInfer(self, *_: object) -> Iterator[object]:
        yield service_pb2.ModelStreamInferResponse(error_message=REFUSAL)

    def ServerLive(self, *_: object) -> object:
        return service_pb2.ServerLiveResponse(live=True)

    def ServerReady(self, *_: object) -> object:
        return service_pb2.ServerReadyResponse(ready=True)

    def ModelReady(self, *_: object) -> object:
        return service_pb2.ModelReadyResponse(ready=True)


class OverHttp(BaseHTTPRequestHandler):
    """The same over HTTP, with metrics on every path."""

    def do_GET(self) -> None:
        self._answer(200, METRICS)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(400, f'{{"error":"{REFUSAL}"}}'.encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Leave stderr alone."""


@contextmanager
def running(server: socketserver.TCPServer) -> Iterator[int]:
    """Serve in a thread; yield the port."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    with server:
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def http_port() -> Iterator[int]:
    with running(ThreadingHTTPServer(("127.0.0.1", 0), OverHttp)) as port:
        yield port


@pytest.fixture(scope="module")
def grpc_port() -> Iterator[int]:
    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(OverGrpc(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield port
        server.stop(None).wait()


@pytest.fixture(scope="module", params=["grpc", "http"])
def end(request: pytest.FixtureRequest) -> tuple[str, int]:
    """Scheme and port of a server."""
    return request.param, request.getfixturevalue(f"{request.param}_port")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the proxy of the environment was asked for. It answers nobody."""
    lines: list[str] = []

    class Proxy(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            lines.append(self.rfile.readline().decode())

    with running(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy)) as port:
        for name in PROXY_VARIABLES:
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        yield lines


def ask(url: str) -> None:
    with Client(url) as client:
        client.generate("hi", timeout_s=10.0)


def ask_async(url: str) -> None:
    async def run() -> None:
        async with AsyncClient(url) as client:
            await client.generate("hi", timeout_s=10.0)

    asyncio.run(run())


asking = pytest.mark.parametrize("send", [ask, ask_async])


@asking
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_request_to_loopback_takes_no_proxy(
    send: Callable[[str], None], host: str, end: tuple[str, int], asked: list[str]
) -> None:
    scheme, port = end
    with pytest.raises(InvalidRequestError, match=REFUSAL):
        send(f"{scheme}://{host}:{port}")
    assert not asked


def test_nor_does_a_look_at_its_health(end: tuple[str, int], asked: list[str]) -> None:
    scheme, port = end
    assert ask_readiness(f"{scheme}://127.0.0.1:{port}").is_ready
    assert not asked


def test_nor_at_its_metrics(http_port: int, asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    at = f"http://127.0.0.1:{http_port}/metrics"
    assert main(["top", "--json", "--for-s", "0.01", "--url", "fake://", "--metrics-url", at]) == 0
    assert '"problem":null' in capsys.readouterr().out
    assert not asked


@asking
@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_request_to_another_machine_takes_it(send: Callable[[str], None], scheme: str, asked: list[str]) -> None:
    with pytest.raises(UnavailableError):
        send(f"{scheme}://box.invalid:8001")
    assert "box.invalid:8001" in asked[0]


@pytest.mark.parametrize(
    ("url", "is_here"),
    [
        ("grpc://127.8.0.1:8001", True),
        ("127.0.0.1:8001", True),
        ("LocalHost:8001", True),
        ("http://localhost.:8000", True),
        ("http://a.localhost", True),
        ("[::1]:8001", True),
        ("grpcs://[::1]:8001", True),
        ("http://[::ffff:127.0.0.1]:8000/v1", True),
        ("http://[::]:8000", True),
        ("ipv4:127.0.0.1:8001", True),
        ("ipv6:[::1]:8001", True),
        ("dns:///localhost:8001", True),
        ("dns:box:8001", False),
        ("http://127.1:8000", True),
        ("http://0x7f000001", True),
        ("http://ip6-localhost", True),
        ("unix:/run/bros.sock", True),
        ("unix-abstract:bros", True),
        ("128.0.0.1:8001", False),
        ("http://10.0.0.1:8000", False),
        ("[fe80::1]:8001", False),
        ("http://localhost.example:8000", False),
        ("http://127.0.0.1.example", False),
        ("http://box/?at=127.0.0.1", False),
        ("http://127.0.0.1@box:8000", False),
        ("fake://", False),
        ("http://[", False),
        ("", False),
    ],
)
def test_loopback_is_known_in_every_spelling(url: str, is_here: bool) -> None:
    assert is_loopback(url) == is_here
