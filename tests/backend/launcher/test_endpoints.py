"""Names become addresses, and each reader of an address gets it as it wants it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from backend.core.errors import ConfigError
from backend.launcher.endpoints import Endpoints, choose_endpoints
from backend.launcher.launch import Launch
from backend.launcher.triton_install import TritonInstall

ANY = {"http": 0, "grpc": 0, "metrics": 0}


def launch(at: Endpoints) -> Launch:
    return Launch(Path("/run"), Path("/log"), TritonInstall(Path("/bin/true")), at, 1.0, 1.0)


def flags(at: Endpoints) -> list[str]:
    return list(launch(at).server().arguments)


def test_a_name_is_resolved_since_triton_does_not() -> None:
    at = choose_endpoints("localhost", ANY)
    assert at.host in ("127.0.0.1", "::1")
    assert at.is_loopback
    assert not [flag for flag in flags(at) if "localhost" in flag]


def test_a_name_with_addresses_of_both_kinds_becomes_the_ipv4_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET6, 0, 0, "", ("::1", 0, 0, 0)), (socket.AF_INET, 0, 0, "", ("127.0.0.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert choose_endpoints("both", ANY).host == "127.0.0.1"


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_is_written_for_each_reader(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.launcher.endpoints._bind", lambda *_: socket.create_server(("127.0.0.1", 0)))
    at = choose_endpoints(host, ANY)
    assert at.is_loopback
    assert (at.http_url, at.grpc_url) == (f"http://[::1]:{at.http_port}", f"[::1]:{at.grpc_port}")
    assert {"--http-address=ipv6:::1", "--grpc-address=[::1]", "--metrics-address=ipv6:::1"} <= set(flags(at))


@pytest.mark.parametrize("host", ["10.0.0.7", "fd00::7"])
def test_the_front_door_reaches_its_own_machine_without_a_proxy(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_grpc_proxy", "box.example")
    door = launch(Endpoints(host, 1, 2, 3, 4)).front()
    assert door is not None
    assert door.environment["no_grpc_proxy"] == host  # gRPC 1.85 compares it without brackets


def refuse(*_: object, **__: object) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_a_name_that_nobody_knows_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(ConfigError, match=r"^--host 'no\.such\.host': Name or service not known$"):
        choose_endpoints("no.such.host", ANY)


@pytest.mark.parametrize("host", ["", "x" * 300])
def test_what_is_no_name_is_one_clear_line(host: str) -> None:
    with pytest.raises(ConfigError, match=r"^--host '.*': .+$"):
        choose_endpoints(host, ANY)


@pytest.mark.parametrize("port", [-1, 65_536])
def test_a_port_out_of_range_is_named(port: int) -> None:
    with pytest.raises(ConfigError, match=f"grpc port {port}: not within 0 to 65535"):
        choose_endpoints("127.0.0.1", ANY | {"grpc": port})
