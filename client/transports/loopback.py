"""Connections to this machine's loopback never take a proxy, whatever `http_proxy` and its like say.

A proxy elsewhere cannot reach loopback. `no_proxy` would have to name each spelling of such an address, and gRPC and
httpx2 read it in different ways. Every other address keeps what the environment says.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")
_GRPC_SCHEMES = ("dns:", "ipv4:", "ipv6:")


def is_loopback(url: str) -> bool:
    """Return whether a URL, or an address as gRPC takes it, leads to loopback or to a unix socket.

    The unspecified address counts: a connection to 0.0.0.0 ends on this machine.
    """
    if url.startswith(("unix:", "unix-abstract:")):
        return True
    host = _host(url).removesuffix(".")
    if host in _NAMES or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(_plain(host))
    except ValueError:  # another name
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified


def channel_options(url: str) -> tuple[tuple[str, int], ...]:
    """Return the options that keep a gRPC channel to loopback from a proxy; none for other addresses."""
    return (("grpc.enable_http_proxy", 0),) if is_loopback(url) else ()


def direct_mounts(url: str) -> dict[str, None]:
    """Return the `mounts` that keep a client of httpx2 from a proxy to the host of `url`, where that is loopback."""
    if not is_loopback(url):
        return {}
    host = _host(url)
    return {f"all://[{host}]" if ":" in host else f"all://{host}": None}


def _plain(host: str) -> str:
    """Return an IPv4 address with all of its four numbers, where `host` is another spelling of one, as 127.1 is."""
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return host


def _host(url: str) -> str:
    """Return the host in lower case; empty where there is none."""
    for scheme in _GRPC_SCHEMES:
        if url.startswith(scheme):
            url = url.removeprefix(scheme).lstrip("/")
    try:
        return urlsplit(url if "://" in url else f"//{url}").hostname or ""
    except ValueError:  # brackets without an address
        return ""
