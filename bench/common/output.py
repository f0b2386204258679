"""How a benchmark puts out its result."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any


def put_out(result: dict[str, Any], options: argparse.Namespace, describe: Callable[[dict[str, Any]], str]) -> None:
    """Write `result` to the file `options.out`, if there is one, and print it: in words, or as `options.json` asks."""
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if options.json else describe(result))
