"""What a launch keeps to its user: nobody else reads a request, and nobody at all gets at Triton's admin endpoints."""

from __future__ import annotations

import os
import socket
import stat
import struct
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from backend.launcher import reaper
from tests.triton.frames import DATA, END_STREAM, PREFACE, SETTINGS, grpc_head, http2_frame
from tests.triton.servers import PATIENCE_S, Server

pytestmark = pytest.mark.triton
NOBODY = 65_534
GRPC_END = b"grpc-status"
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can try as another user")

# Prints each thing of the run directory, the shared memory and the processes that it can read.
INTRUDER = """
import glob, os, socket, sys
directory, prefix, *pids = sys.argv[1:]
names = ["", "/engine.json", "/engine.sock", "/logs", "/logs/engine.log", "/logs/triton.log", "/models"]
found = [directory + name for name in names if os.access(directory + name, os.R_OK)]
for path in [*glob.glob(f"/dev/shm/{prefix}*"), *(f"/proc/{pid}/environ" for pid in pids)]:
    try:
        open(path, "rb").read(1)
        found.append(path)
    except OSError:
        pass
try:
    socket.socket(socket.AF_UNIX).connect(directory + "/engine.sock")
    found.append("the engine's socket")
except OSError:
    pass
print("\\n".join(found))
"""


def processes(server: Server) -> list[psutil.Process]:
    launcher = psutil.Process(server.pid)
    return [launcher, *launcher.children(recursive=True)]


def run_directory(server: Server) -> Path:
    return next(Path(path) for each in processes(server) if (path := each.environ().get(reaper.RUN_VARIABLE)))


def regions(server: Server) -> list[Path]:
    return list(reaper.SHARED_MEMORY.glob(f"{reaper.shared_memory_prefix(run_directory(server))}*"))


def what_an_intruder_reads(server: Server, user: int) -> list[str]:
    directory = run_directory(server)
    pids = [str(each.pid) for each in processes(server)]
    arguments = [str(directory), reaper.shared_memory_prefix(directory), *pids]
    python = f"/usr/bin/{Path(sys.executable).resolve().name}" if user else sys.executable  # nobody may not see ours
    result = subprocess.run(
        [python if Path(python).exists() else "/usr/bin/python3", "-c", INTRUDER, *arguments],
        user=user, group=user, extra_groups=[], cwd="/", capture_output=True, text=True, check=True,
    )  # fmt: skip
    return result.stdout.split("\n")[:-1] if result.stdout.strip() else []


@needs_root
def test_another_user_reads_no_socket_directory_log_or_shared_memory(sim: Server) -> None:
    sim.generate("bros_rt", max_tokens=3)
    assert what_an_intruder_reads(sim, NOBODY) == []


@needs_root
def test_the_launchs_own_user_would_read_all_of_it(sim: Server) -> None:
    found = what_an_intruder_reads(sim, 0)
    assert "the engine's socket" in found
    assert len(regions(sim)) >= 4
    assert {str(path) for path in regions(sim)} <= set(found)


def test_nothing_of_a_launch_is_open_to_others(sim: Server) -> None:
    files = [run_directory(sim), run_directory(sim).parent, *regions(sim), *(run_directory(sim) / "logs").iterdir()]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in files}
    assert {path: oct(mode) for path, mode in modes.items() if mode & 0o077} == {}


def closed_header(server: Server) -> tuple[bytes, bytes]:
    """Return name and value of the header that Triton's admin endpoints ask for, as every user may read them."""
    words = [word for each in processes(server) for word in Path(f"/proc/{each.pid}/cmdline").read_bytes().split(b"\0")]
    (flag,) = {word for word in words if word.startswith(b"--http-restricted-api=")}
    name, _, value = flag.split(b":", 1)[1].partition(b"=")
    return name, value


def exchange(address: str, data: bytes, last_words: bytes = b"\0\0never\0\0") -> bytes:
    """Send bytes and return what comes back, until it holds `last_words` or the server closes."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    received = b""
    with socket.create_connection((host, int(port)), PATIENCE_S) as connection:
        connection.sendall(data)
        try:
            while last_words not in received and (piece := connection.recv(65_536)):
                received += piece
        except ConnectionError:
            pass
    return received


@pytest.mark.parametrize("path", ["/v2/repository/models/x/load", "/v2/repository/index", "/v2/logging"])
def test_no_http_request_opens_an_admin_endpoint(sim: Server, path: str) -> None:
    name, value = closed_header(sim)
    for header in (name + b": " + value, name.strip() + b": " + value.strip(), name.strip() + b":" + value + b" "):
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n" % path.encode()
        answer = exchange(sim.http_url, head + header + b"\r\n\r\n{}")
        assert not answer.startswith(b"HTTP/1.1 200"), answer
        assert answer == b"" or answer.startswith(b"HTTP/1.1 40"), answer


def grpc_call(method: str, *headers: tuple[bytes, bytes]) -> bytes:
    """Return the bytes of a gRPC call."""
    message = b"\x78\x01"  # a field that no message has: an empty one is not taken
    data = b"\0" + struct.pack(">I", len(message)) + message
    return (
        PREFACE + http2_frame(SETTINGS, 0, 0) + grpc_head(method, 1, *headers) + http2_frame(DATA, END_STREAM, 1, data)
    )


def test_no_grpc_call_opens_an_admin_endpoint(sim: Server) -> None:
    name, value = (b"triton-grpc-protocol-" + closed_header(sim)[0], closed_header(sim)[1])
    method = "/inference.GRPCInferenceService/RepositoryIndex"
    for headers in ([], [(name, value)], [(name.strip(), value)]):
        assert b"bros" not in exchange(sim.grpc_url, grpc_call(method, *headers), GRPC_END)


def test_a_grpc_call_made_so_by_hand_is_answered_where_nothing_is_closed(sim: Server) -> None:
    metadata = exchange(sim.grpc_url, grpc_call("/inference.GRPCInferenceService/ServerMetadata"), GRPC_END)
    assert b"triton" in metadata
