"""Whether a server is there and ready, asked at the one URL that every command takes; Triton's own word for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlsplit

from client import wire
from client.transports import scheme_of
from client.transports.loopback import direct_mounts

_TIMEOUT_S = 5.0
_PORTS_TO_METRICS = {"grpc": 1, "grpcs": 1, "http": 2, "https": 2}  # as bros-serve's ports lie, unless told otherwise

Ask: TypeAlias = Callable[[str | None], bool]  # is this model ready? None: the server. No answer: not ready


@dataclass(frozen=True, slots=True)
class Readiness:
    """Readiness of the server and of each model, as the server reports it."""

    is_live: bool
    is_ready: bool
    ready_models: dict[str, bool]


def ask_readiness(url: str) -> Readiness:
    """Ask the server at `url`. Raises UrlError."""
    ways = {"grpc": _over_grpc, "grpcs": _over_grpc, "http": _over_http, "https": _over_http, "fake": _of_the_fake}
    with ways[scheme_of(url)](url) as (is_live, ask):
        models = {model: is_live and ask(model) for model in wire.MODELS}
        return Readiness(is_live, is_live and ask(None), models)


def metrics_url(url: str) -> str | None:
    """Return where the metrics of the server at `url` are, when its ports lie as `bros-serve`'s do; None: unknown."""
    scheme = scheme_of(url)
    try:
        parts = urlsplit(url if "://" in url else f"{scheme}://{url}")
        port = (parts.port or 0) + _PORTS_TO_METRICS.get(scheme, 0)
    except ValueError:  # no port that there is
        return None
    if not parts.port or not parts.hostname or scheme not in _PORTS_TO_METRICS or port > 65_535:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"http://{host}:{port}/metrics"


@contextmanager
def _over_grpc(url: str) -> Iterator[tuple[bool, Ask]]:
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    from client.transports.grpc import make_channel

    with make_channel(url) as channel:
        triton = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        def ask(model: str | None) -> bool:
            try:
                if model is None:
                    return bool(triton.ServerReady(service_pb2.ServerReadyRequest(), timeout=_TIMEOUT_S).ready)
                return bool(triton.ModelReady(service_pb2.ModelReadyRequest(name=model), timeout=_TIMEOUT_S).ready)
            except grpc.RpcError:
                return False

        try:
            is_live = bool(triton.ServerLive(service_pb2.ServerLiveRequest(), timeout=_TIMEOUT_S).live)
        except grpc.RpcError:
            is_live = False
        yield is_live, ask


@contextmanager
def _over_http(url: str) -> Iterator[tuple[bool, Ask]]:
    import httpx2

    with httpx2.Client(base_url=url, timeout=_TIMEOUT_S, mounts=direct_mounts(url)) as http:

        def is_ok(path: str) -> bool:
            try:
                with http.stream("GET", path) as response:  # whose body nobody reads
                    return response.status_code == 200
            except httpx2.HTTPError:
                return False

        yield (
            is_ok("/v2/health/live"),
            lambda model: is_ok("/v2/health/ready" if model is None else f"/v2/models/{model}/ready"),
        )


@contextmanager
def _of_the_fake(_: str) -> Iterator[tuple[bool, Ask]]:
    yield True, lambda _: True
