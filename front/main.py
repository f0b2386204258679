"""`bros-openai`: serves OpenAI's API on a port, with a Triton server behind it. Exit codes: 1 failed, 2 misused."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

import uvicorn

from backend.core.garbage import collect_rarely
from backend.core.numbers import above, port, real
from client.generation import PriorityClass
from client.transports import UrlError, scheme_of
from front.app import make_app
from front.batches.folder import check_folder
from front.batches.store import StoreError
from front.keys import KeyFileError
from front.serving import options_of
from front.settings import Settings

_SWITCH_S = 5e-4  # Python's 5 ms are what the event loop waits after each read and write while a long body is read
MAX_DRAIN_S = 100_000.0  # bros-serve adds some seconds to its own, of up to a day
_MAX_BODY_MIB = 65_536.0
_DEFAULTS = Settings()
# gRPC then reads without threads of its own: a fifth less processor time per token. Read when the first call is made.
_GRPC_EXPERIMENTS = "-event_engine_client"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `bros-openai` until SIGINT or SIGTERM, then let open requests finish."""
    options = (parser := make_parser()).parse_args(arguments)
    settings = _settings(parser, options)
    os.environ.setdefault("GRPC_EXPERIMENTS", _GRPC_EXPERIMENTS)
    sys.setswitchinterval(_SWITCH_S)
    os.umask(0o077)  # files of batches hold prompts and answers
    try:
        app = make_app(settings)
        if settings.data_dir is not None:
            check_folder(settings.data_dir)
    except (KeyFileError, StoreError) as error:
        print(f"bros-openai: {error}", file=sys.stderr)
        sys.exit(2)
    if options.check:
        return
    collect_rarely()
    logging.getLogger("uvicorn.error").addFilter(_tell_where)
    try:
        uvicorn.run(app, **{**options_of(settings), "log_level": "info"})
    except SystemExit as ended:  # uvicorn has a code of its own for a port that is taken
        sys.exit(1 if ended.code else 0)


def _tell_where(record: logging.LogRecord) -> bool:
    """Keep one of uvicorn's lines about its life: where it listens. `color_message` is the line for a terminal."""
    if record.levelno > logging.INFO:
        return True
    for name in ("msg", "color_message"):
        if hasattr(record, name):
            setattr(record, name, getattr(record, name).replace("Uvicorn running", "bros-openai: listening"))
    return "bros-openai: listening" in record.msg


def parse_settings(arguments: Sequence[str] | None) -> Settings:
    """Return what the command line says; ends the process where it says nonsense."""
    parser = make_parser()
    return _settings(parser, parser.parse_args(arguments))


def _settings(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Settings:
    try:
        _check_url(options.triton)
    except UrlError as error:
        parser.error(f"argument --triton: {error}")
    return Settings(
        triton_url=options.triton,
        host=options.host,
        port=options.port,
        allowed_hosts=tuple(options.allow_host),
        trusted_proxies=tuple(options.trust_proxy),
        api_key_file=options.api_key_file,
        default_class=options.default_class,
        data_dir=options.data_dir,
        max_body_bytes=round(options.max_body_mib * 2**20),
        drain_timeout_s=options.drain_timeout_s,
    )


def _check_url(url: str) -> None:
    """Raise UrlError where a URL names no host or port of Triton."""
    if (scheme := scheme_of(url)) == "fake":
        return
    try:
        parts = urlsplit(f"//{url.removeprefix(f'{scheme}://')}")
        is_whole = bool(parts.hostname and parts.port)
    except ValueError:  # a port that is no number
        is_whole = False
    if not is_whole:
        raise UrlError(f"{url!r} names no host and port: write grpc://host:8001")


def _address(word: str) -> str:
    try:
        return str(ip_network(word)) if "/" in word else str(ip_address(word))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{word!r} is no IP address or network: {error}") from error


def _folder(word: str) -> Path:
    if not word:  # as of an unset variable; it would be the current one
        raise argparse.ArgumentTypeError("'' names no folder")
    return Path(word)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `bros-openai`."""
    parser = argparse.ArgumentParser(
        prog="bros-openai", description="OpenAI's API in front of a Triton server that serves the bros models."
    )

    def add(flag: str, kind: Callable[[str], object], default: object, words: str, metavar: str) -> None:
        parser.add_argument(flag, type=kind, default=default, metavar=metavar, help=words)

    add("--triton", str, _DEFAULTS.triton_url, "the server behind it, over gRPC (default: %(default)s)", "URL")
    add("--host", str, _DEFAULTS.host, "address to listen on (default: %(default)s)", "ADDRESS")
    add("--port", port, _DEFAULTS.port, "port to listen on (default: %(default)s)", "PORT")
    add("--api-key-file", Path, None, "JSON, key -> allowed tiers (default: no keys are asked for)", "FILE")
    add("--data-dir", _folder, None, "where files and batches are kept (default: none are)", "DIR")
    add(
        "--max-body-mib",
        above(0.0, _MAX_BODY_MIB),
        _DEFAULTS.max_body_bytes / 2**20,
        "longest body, MiB (default: %(default)g)",
        "MIB",
    )
    add(
        "--drain-timeout-s",
        real(0.0, MAX_DRAIN_S),
        _DEFAULTS.drain_timeout_s,
        "for open requests (default: %(default)s)",
        "S",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name of this server; may be given several times (default: names of loopback)",
    )
    parser.add_argument(
        "--trust-proxy",
        action="append",
        default=[],
        type=_address,
        metavar="ADDRESS",
        help="a proxy, or a network of them, whose X-Forwarded-For names the client; may be given several times "
        "(default: nobody's)",
    )
    parser.add_argument(
        "--check", action="store_true", help="check the options, the file of keys and the folder, then end"
    )
    parser.add_argument(
        "--default-class",
        choices=get_args(PriorityClass),
        default=_DEFAULTS.default_class,
        help="class of requests that name no tier (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    main()
