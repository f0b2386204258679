"""The door as a process: whose address a client has, and how Ctrl-C ends it."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI, Request

from backend.launcher.launch import EXTRA_EXIT_S
from backend.launcher.options import MAX_TIMEOUT_S
from client.openai.tiers import Rule
from front.keys import ANYONE, Caller, client_of
from front.main import MAX_DRAIN_S, main, parse_settings
from front.serving import options_of
from front.settings import Settings
from tests.triton.servers import PATIENCE_S, free_ports, wait_until

LOOPBACK, PROXY = "127.0.0.1", "10.0.0.7"


def client_seen(settings: Settings, address: str, forwarded_for: str) -> str:
    """Return whom a door with `settings` takes for the client of a connection from `address`."""
    app = FastAPI()

    @app.get("/")
    async def whoami(request: Request) -> str:
        return client_of(request, Caller(ANYONE, Rule("be")))

    (config := uvicorn.Config(app, **options_of(settings))).load()

    async def main() -> str:
        transport = httpx2.ASGITransport(app=config.loaded_app, client=(address, 1))
        async with httpx2.AsyncClient(transport=transport, base_url="http://door") as http:
            response = await http.get("/", headers={"X-Forwarded-For": forwarded_for})
        assert response.status_code == 200
        return str(response.json())

    return asyncio.run(main())


@pytest.mark.parametrize("address", [LOOPBACK, PROXY])
@pytest.mark.parametrize("forged", ["203.0.113.9", "a:b", "2001:db8::1"])
def test_no_client_chooses_its_own_address(address: str, forged: str) -> None:
    assert client_seen(Settings(), address, forged) == address


def test_a_client_behind_a_named_proxy_has_the_address_that_this_names() -> None:
    settings = parse_settings(["--trust-proxy", "10.0.0.0/24", "--trust-proxy", LOOPBACK])
    assert client_seen(settings, PROXY, "198.51.100.1, 203.0.113.9") == "203.0.113.9"
    assert client_seen(settings, LOOPBACK, "203.0.113.9") == "203.0.113.9"
    assert client_seen(settings, "192.0.2.1", "203.0.113.9") == "192.0.2.1"


@pytest.mark.parametrize("written", ["a:b", "unix:", "::1::", "%"])
def test_a_proxy_that_writes_no_address_is_answered(written: str) -> None:
    assert client_seen(Settings(trusted_proxies=(PROXY,)), PROXY, written)


@pytest.mark.parametrize("word", ["localhost", "10.0.0.1/8", "*", ""])
def test_a_proxy_that_is_no_address_is_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        parse_settings(["--trust-proxy", word])
    assert refusal.value.code == 2
    assert f"{word!r} is no IP address or network" in capsys.readouterr().err


def test_the_door_says_where_it_listens_and_ends_at_ctrl_c() -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "front.main", "--triton", "fake://", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as door:
        try:
            wait_until(lambda: is_listening(port), "the door listens")
            door.send_signal(signal.SIGINT)
            words, _ = door.communicate(timeout=PATIENCE_S)
        finally:
            door.kill()
    assert door.returncode == 0
    assert words == f"INFO:     bros-openai: listening on http://127.0.0.1:{port} (Press CTRL+C to quit)\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "-4"], "argument --port: -4 is below 0"),
        (["--port", "99999"], "argument --port: 99999 is above 65535"),
        (["--max-body-mib", "-1"], "argument --max-body-mib: -1 is not above 0"),
        (["--max-body-mib", "1e99"], "argument --max-body-mib: 1e99 is above 65536"),
        (["--drain-timeout-s", "-1"], "argument --drain-timeout-s: -1 is below 0"),
        (["--drain-timeout-s", "nan"], "argument --drain-timeout-s: nan is not finite"),
        (["--data-dir", ""], "argument --data-dir: '' names no folder"),
        (["--triton", "zzz"], "argument --triton: 'zzz' names no host and port"),
        (["--triton", "grpc://host:port"], "argument --triton: 'grpc://host:port' names no host and port"),
        (["--triton", "ftp://host:1"], "argument --triton: url 'ftp://host:1': its scheme is none of"),
    ],
)
@pytest.mark.parametrize("check", [["--check"], []])
def test_a_wrong_option_is_named(
    check: list[str], arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        main([*check, *arguments])
    assert refusal.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("url", ["127.0.0.1:8001", "grpc://[::1]:8001", "grpcs://triton:443", "http://h:1", "fake://"])
def test_a_url_of_triton_is_taken(url: str) -> None:
    assert parse_settings(["--triton", url]).triton_url == url


def test_the_door_takes_every_drain_that_bros_serve_may_ask_for() -> None:
    assert MAX_DRAIN_S >= MAX_TIMEOUT_S + EXTRA_EXIT_S


def test_a_port_that_is_taken_is_a_failure_in_one_line() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "front.main", "--triton", "fake://", "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"('{LOOPBACK}', {port})" in line


def is_listening(port: int) -> bool:
    """Return whether the door answers."""
    try:
        return httpx2.get(f"http://{LOOPBACK}:{port}/v1/models").status_code == 200
    except httpx2.TransportError:
        return False
