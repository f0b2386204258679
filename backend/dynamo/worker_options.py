"""The command line of a worker. It needs no Dynamo."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = "A worker of NVIDIA Dynamo around one engine process; `make serve-many` starts it."


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of a worker."""
    parser = argparse.ArgumentParser(prog="python -m backend.dynamo.worker", description=DESCRIPTION)
    parser.add_argument("--config", type=Path, required=True, help="engine.json of this worker; no two share a socket")
    parser.add_argument(
        "--folder",
        type=Path,
        required=True,
        help="tokenizer and config.json for the frontend",
    )
    parser.add_argument("--name", default="bros", help="the model's name for clients (default: bros)")
    parser.add_argument(
        "--id-file",
        type=Path,
        help="write the worker's id there once it is about to join, by which Dynamo registers it",
    )
    parser.add_argument("--namespace", default="dynamo", help="Dynamo's namespace (default: dynamo)")
    return parser
