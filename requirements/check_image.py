"""Check, while an image is built, that our import names are ours and that the named modules are there.

The imported modules compile their loops, which then lie in the image.

    python3 requirements/check_image.py tensorrt_llm

Modules are looked up, not imported: TensorRT-LLM does not import without a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Return 0 when everything resolves as it should."""
    for name in ("kv", "backend", "backend.launcher.serve", "backend.server.socket_server"):
        file = importlib.import_module(name).__file__
        if file is None or not Path(file).is_relative_to(ROOT):
            print(f"{name} is imported from {file}, not from {ROOT}", file=sys.stderr)
            return 1
    if missing := [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]:
        print(f"missing: {', '.join(missing)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
