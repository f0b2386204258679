"""Transports carry a call to a server and bring its responses back, over gRPC, over HTTP, or to a fake.

`connect` and `connect_async` choose one by URL. A transport has one method; closing the iterator it returned cancels
the request, and everything it raises is a `client.errors.ClientError`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Protocol

from client.generation import Call, Outputs

MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # of a response: a whole answer of 400,000 tokens, each with 20 log-probabilities
_SCHEMES = ("grpc", "grpcs", "http", "https", "fake")


class UrlError(ValueError):
    """The URL names no protocol that there is a transport for."""


class Transport(Protocol):
    """The way to a server, for threads. Safe to share between them."""

    def stream(self, call: Call) -> Generator[Outputs, None, None]:
        """Send `call` when the first response is asked for; yield responses as they arrive; `close()` cancels it."""
        ...

    def close(self) -> None:
        """Give up the connections; idempotent."""
        ...


class AsyncTransport(Protocol):
    """The way to a server, for one event loop: to be made and used inside it."""

    def stream(self, call: Call) -> AsyncGenerator[Outputs, None]:
        """As `Transport.stream`; `aclose()`, or cancelling the task, cancels the request."""
        ...

    async def close(self) -> None:
        """Give up the connections; idempotent."""
        ...


def connect(url: str) -> Transport:
    """Return the transport for `[grpc[s]://]host:port`, `http[s]://host:port` or `fake://`. Raises UrlError."""
    match scheme_of(url):
        case "grpc" | "grpcs":
            from client.transports.grpc import GrpcTransport

            return GrpcTransport(url)
        case "http" | "https":
            from client.transports.http import HttpTransport

            return HttpTransport(url)
        case _:
            from client.transports.fake import FakeServer, FakeTransport

            return FakeTransport(FakeServer.from_url(url))


def connect_async(url: str) -> AsyncTransport:
    """As `connect`, for the running event loop."""
    match scheme_of(url):
        case "grpc" | "grpcs":
            from client.transports.grpc import AsyncGrpcTransport

            return AsyncGrpcTransport(url)
        case "http" | "https":
            from client.transports.http import AsyncHttpTransport

            return AsyncHttpTransport(url)
        case _:
            from client.transports.fake import AsyncFakeTransport, FakeServer

            return AsyncFakeTransport(FakeServer.from_url(url))


def scheme_of(url: str) -> str:
    """Return the scheme of a URL; one without is gRPC. Raises UrlError."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        return "grpc"
    if scheme not in _SCHEMES:
        raise UrlError(f"url {url!r}: its scheme is none of {', '.join(_SCHEMES)}")
    return scheme
