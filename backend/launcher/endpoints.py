"""Where a launch listens: names resolved, ports found free, and each address written the way its reader wants it."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from backend.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where clients connect. `host` is an IPv4 or IPv6 address: Triton's HTTP server (2.51) resolves no names."""

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    openai_port: int | None = None  # None: no front door

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.host

    @property
    def url_host(self) -> str:
        """The address as it stands in a URL, and in front of a gRPC port."""
        return f"[{self.host}]" if self.is_ipv6 else self.host

    @property
    def http_host(self) -> str:
        """The address as Triton's HTTP servers want it."""
        return f"ipv6:{self.host}" if self.is_ipv6 else self.host

    @property
    def http_url(self) -> str:
        return f"http://{self.url_host}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"{self.url_host}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self.url_host}:{self.metrics_port}/metrics"

    @property
    def openai_url(self) -> str | None:
        return None if self.openai_port is None else f"http://{self.url_host}:{self.openai_port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return ipaddress.ip_address(self.host).is_loopback


def choose_endpoints(host: str, ports: Mapping[str, int]) -> Endpoints:
    """Check that the ports `http`, `grpc`, `metrics`, and `openai` where it is named, are free on `host`.

    0 takes any free one. Raises ConfigError.
    """
    named = [port for port in ports.values() if port]
    if len(set(named)) < len(named):
        raise ConfigError(f"the ports {', '.join(map(str, named))} are not all different")
    if wrong := [f"{name} port {port}" for name, port in ports.items() if not 0 <= port <= 65_535]:
        raise ConfigError(f"{', '.join(wrong)}: not within 0 to 65535")
    address = _resolve(host)
    with ExitStack() as bound:
        sockets = {name: bound.enter_context(_bind(address, name, port)) for name, port in ports.items()}
        return Endpoints(address, **{f"{name}_port": bound.getsockname()[1] for name, bound in sockets.items()})


def check_free(host: str, ports: Mapping[str, int]) -> None:
    """Check that nobody listens on the ports of an address. Raises ConfigError."""
    for name, port in ports.items():
        _bind(host, name, port).close()


def _resolve(host: str) -> str:
    """Return the address of `host`, the IPv4 one where it has several. Raises ConfigError."""
    try:
        found = socket.getaddrinfo(host.removeprefix("[").removesuffix("]"), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host!r}: {getattr(error, 'strerror', None) or 'not a name or address'}") from error
    family, *_, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    assert family in (socket.AF_INET, socket.AF_INET6), f"{host!r} is of family {family}"
    return str(address[0])


def _bind(host: str, name: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    candidate = socket.socket(family, socket.SOCK_STREAM)
    candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
    try:
        candidate.bind((host, port))
    except OSError as error:
        candidate.close()
        is_elsewhere = error.errno == errno.EADDRNOTAVAIL
        remedy = (
            "choose an address of this machine with --host" if is_elsewhere else f"choose another with --{name}-port"
        )
        raise ConfigError(f"{name} port {port} on {host}: {error.strerror}; {remedy}") from error
    return candidate
