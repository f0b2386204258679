"""The settings of one front door. Parsed once, by `front.main`; frozen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from client import wire
from client.generation import PriorityClass

DEFAULT_PORT = 8080


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one process.

    triton_url          the server behind it: `[grpc[s]://]host:port`
    host, port          where it listens
    allowed_hosts       further names of this door (see `front.origins`)
    trusted_proxies     addresses and networks whose X-Forwarded-For tells a client's address
    api_key_file        JSON, key -> allowed tiers (see `front.keys`); None: everybody may everything
    default_class       class of a request that names no tier; the engine's own `service.default_class`
    data_dir            files and batches; one process at a time owns it. None: no files and batches
    max_body_bytes      longest body of a request that is read; an uploaded file has its own bound
    drain_timeout_s     for open requests, when the process is asked to stop
    """

    triton_url: str = wire.DEFAULT_GRPC_URL
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    api_key_file: Path | None = None
    default_class: PriorityClass = "be"
    data_dir: Path | None = None
    max_body_bytes: int = 2 * 1024 * 1024
    drain_timeout_s: float = 20.0
