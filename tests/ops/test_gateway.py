"""deploy/nginx in front of a real server: what floods Triton's gRPC ends at the gateway, and streams go on."""

from __future__ import annotations

import http.client
import itertools
import json
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from backend.config import REPOSITORY_ROOT
from backend.launcher.options import make_parser
from tests.triton.frames import DATA, PING, PREFACE, RESET, SETTINGS, grpc_head, http2_frame
from tests.triton.servers import Server, free_ports, wait_until
from tests.triton.streams import Stream

CONFIG = REPOSITORY_ROOT / "deploy" / "nginx" / "nginx.conf"
METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
FLOOD_S = 4.0
NUM_FLOODERS = 8
MOST_BYTES = 1 << 28  # of one flooder
needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")


def resets() -> Iterator[bytes]:
    for first in itertools.count(1, 200):
        yield b"".join(
            grpc_head(METHOD, stream) + http2_frame(RESET, 0, stream, struct.pack(">I", 8))
            for stream in range(first, first + 200, 2)
        )


def endless(frames: bytes) -> Callable[[], Iterator[bytes]]:
    """A stream that is opened once, and `frames` again and again."""
    return lambda: itertools.chain([grpc_head(METHOD, 1)], itertools.repeat(frames * 1000))


FLOODS = {
    "resets": resets,
    "settings": endless(http2_frame(SETTINGS, 0, 0)),
    "pings": endless(http2_frame(PING, 0, 0, bytes(8))),
    "empty frames": endless(http2_frame(DATA, 0, 1)),
    "frames of one byte": endless(http2_frame(DATA, 0, 1, b"\0")),
}


class Gateway(NamedTuple):
    """Where it listens."""

    grpc: str
    openai: str


@contextmanager
def gateway(directory: Path, grpc: str = "127.0.0.1:1", openai: str = "127.0.0.1:1") -> Iterator[Gateway]:
    """Run the shipped configuration on free ports in front of a Triton at `grpc` and a front door at `openai`."""
    grpc_port, openai_port = free_ports(2)
    text = CONFIG.read_text()
    for old, new in {
        "/tmp/bros-nginx.pid": str(directory / "nginx.pid"),
        "127.0.0.1:8001": grpc,
        "127.0.0.1:8080": openai,
        "127.0.0.1:9001": f"127.0.0.1:{grpc_port}",
        "127.0.0.1:9003": f"127.0.0.1:{openai_port}",
    }.items():
        assert old in text
        text = text.replace(old, new)
    config = directory / "nginx.conf"
    config.write_text(text)
    command = ["nginx", "-p", str(directory), "-c", str(config), "-g", "daemon off;"]
    with (directory / "nginx.log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            wait_until(lambda: is_open(grpc_port), "nginx")
            yield Gateway(f"127.0.0.1:{grpc_port}", f"127.0.0.1:{openai_port}")
        finally:
            process.terminate()


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def flood(address: str, make: Callable[[], Iterator[bytes]], until_s: float) -> None:
    """Send without a pause, on a new connection wherever the last one was closed."""
    host, _, port = address.rpartition(":")
    num_bytes = 0
    while time.monotonic() < until_s and num_bytes < MOST_BYTES:
        try:
            with socket.create_connection((host, int(port)), 1.0) as connection:
                connection.sendall(PREFACE + http2_frame(SETTINGS, 0, 0))
                for piece in make():
                    connection.sendall(piece)
                    num_bytes += len(piece)
                    if time.monotonic() > until_s or num_bytes > MOST_BYTES:
                        break
        except OSError:
            time.sleep(0.01)


def longest_wait_s(address: str, until_s: float) -> float:
    """Ask one request after the other, each on a connection of its own; return the longest time to a whole answer."""
    longest_s = 0.0
    while (start_s := time.monotonic()) < until_s:
        with Stream(address) as stream:
            answer = stream.ask({"text_input": "hello", "max_tokens": 3}, "bros_rt")
        assert not answer.errors
        longest_s = max(longest_s, time.monotonic() - start_s)
    return longest_s


@needs_nginx
def test_a_stream_passes_the_gateway_token_by_token(sim: Server, tmp_path: Path) -> None:
    with gateway(tmp_path, sim.grpc_url) as at, Stream(at.grpc) as stream:
        answer = stream.ask({"text_input": "hello", "max_tokens": 20, "stream": True}, "bros_rt")
    assert not answer.errors
    assert len(answer.token_ids) == 20
    assert len(answer.responses) > 1


@needs_nginx
@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_ends_at_the_gateway(sim: Server, tmp_path: Path, name: str) -> None:
    """The claim is that requests beside the flood are answered: Triton alone answers none for the time of a flood."""
    with gateway(tmp_path, sim.grpc_url) as at:
        until_s = time.monotonic() + FLOOD_S
        flooders = [threading.Thread(target=flood, args=(at.grpc, FLOODS[name], until_s)) for _ in range(NUM_FLOODERS)]
        for flooder in flooders:
            flooder.start()
        waited_s = longest_wait_s(sim.grpc_url, until_s)
        for flooder in flooders:
            flooder.join()
        with Stream(at.grpc) as stream:
            assert not stream.ask({"text_input": "hello", "max_tokens": 3}, "bros_rt").errors
    assert waited_s < FLOOD_S


class Door(BaseHTTPRequestHandler):
    """Answers with the host that it was asked for, its client, and the length of the body."""

    def do_POST(self) -> None:
        num_bytes = len(self.rfile.read(int(self.headers["Content-Length"])))
        told = [self.headers["Host"], self.headers["X-Forwarded-For"], num_bytes]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(told).encode())


@needs_nginx
def test_openais_api_passes_the_gateway_over_http_1_with_its_port_and_large_files(tmp_path: Path) -> None:
    """The front door compares a page's origin with the host, and takes files of 200 MB."""
    with HTTPServer(("127.0.0.1", 0), Door) as door:
        threading.Thread(target=door.serve_forever, daemon=True).start()
        with (
            gateway(tmp_path, openai=f"127.0.0.1:{door.server_port}") as at,
            closing(http.client.HTTPConnection(at.openai, timeout=20)) as connection,
        ):
            for num_bytes in (2, 9_000_000):
                connection.request("POST", "/v1/files", bytes(num_bytes), {"X-Forwarded-For": "10.0.0.1"})
                assert json.load(connection.getresponse()) == [at.openai, "127.0.0.1", num_bytes]
        door.shutdown()


@needs_nginx
def test_the_front_door_sees_a_body_as_it_comes(tmp_path: Path) -> None:
    """It bounds bodies and looks for keys. Held back at the gateway, bodies of 210 MB would fill a disk first."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(20)
        with (
            gateway(tmp_path, openai=f"127.0.0.1:{door.getsockname()[1]}") as at,
            closing(http.client.HTTPConnection(at.openai, timeout=20)) as connection,
        ):
            connection.putrequest("POST", "/v1/files")
            connection.putheader("Content-Length", "1000000")
            connection.endheaders(b"the first part")
            with door.accept()[0] as seen:
                seen.settimeout(20)
                text = b""
                while not text.endswith(b"the first part"):
                    text += seen.recv(4096)
    assert text.startswith(b"POST /v1/files")


def test_the_gateway_asks_where_a_server_listens_by_default() -> None:
    options = make_parser().parse_args([])
    for port in (options.grpc_port, options.openai_port):
        assert f"server 127.0.0.1:{port};" in CONFIG.read_text()
