"""The options of `serve_many`: its command line, and the configuration of each engine."""

from __future__ import annotations

import argparse
import json
import socket
from pathlib import Path
from typing import Any

from backend.config import REPOSITORY_ROOT
from backend.core.errors import ConfigError

ENVIRONMENT = REPOSITORY_ROOT / ".venv-dynamo"  # made by `make serve-many`
# A prompt enters the cache when it is computed; until then the router would send its like elsewhere. Seconds: longer
# than a prompt waits and computes, and much shorter than the minute that found less in bench.many_prefixes.
_PREDICT_S = 5.0


def check_free(option: str, host: str, port: int) -> None:
    """Raise ConfigError where somebody listens already."""
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return
    raise ConfigError(f"{option}: somebody listens on {host}:{port} already; choose another")


def engine_values(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the configuration of each engine. Raises ConfigError."""
    if not arguments.config:
        return [{"executor": arguments.executor}] * arguments.replicas
    try:
        given = [json.loads(path.read_text()) for path in arguments.config]
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config: {error}") from error
    arguments.executor = given[0].get("executor", arguments.executor)
    return given * arguments.replicas if len(given) == 1 else given


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m backend.dynamo.serve_many",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--replicas", type=int, default=2, help="workers, each with an engine (default: 2)")
    parser.add_argument("--executor", choices=["sim", "torch"], default="sim", help="of each engine (default: sim)")
    parser.add_argument(
        "--config", type=Path, nargs="+", help="engine.json of every engine, or one for each, instead of --executor"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address of the frontend (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port of the frontend (default: 8000)")
    parser.add_argument(
        "--tiers-port",
        type=int,
        help="listen there too, for clients whose class is OpenAI's service_tier (default: nowhere)",
    )
    parser.add_argument(
        "--router",
        choices=["round-robin", "random", "least-loaded", "kv"],
        default="kv",
        help="how the frontend chooses a worker; kv also queues by class (default: kv)",
    )
    parser.add_argument(
        "--class-queues",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="with --router kv, let real-time requests go first at the frontend (default: yes)",
    )
    parser.add_argument(
        "--kv-events",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="with --router kv, go by the workers' prefix caches, not by the prompts sent to them (default: yes)",
    )
    parser.add_argument(
        "--predict-s",
        type=float,
        default=_PREDICT_S,
        help="with --kv-events, also count on prompts of this many last seconds; 0: no (default: %(default)g)",
    )
    parser.add_argument(
        "--drain-timeout-s",
        type=float,
        default=5.0,
        help="whole seconds in which a worker that is asked to end may finish its open streams (default: %(default)g)",
    )
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="where ai-dynamo is installed")
    return parser
