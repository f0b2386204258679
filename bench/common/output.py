"""How a benchmark puts out its result."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def put_out(result: dict[str, Any], options: argparse.Namespace, describe: Callable[[dict[str, Any]], str]) -> None:
    """Write `result` to the file `options.out`, if there is one, and print it: in words, or as `options.json` asks."""
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if options.json else describe(result))


def merge_into(path: Path, part: dict[str, Any]) -> None:
    """Put the keys of `part` into the JSON file at `path`; its other keys stay."""
    document = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document | part, indent=1) + "\n")
