"""A worker of NVIDIA Dynamo around one engine process of ours: `python -m backend.dynamo.worker --config engine.json`.

It runs in the environment that `make serve-many` makes.
"""

from __future__ import annotations

import sys

from backend.dynamo.worker_options import make_parser


def main() -> int:
    """Run the worker until it is asked to stop; return the exit status."""
    make_parser().parse_args()  # before Dynamo is loaded: help and wrong options need none
    try:
        from dynamo.common.backend.run import run

        from backend.dynamo.bros_engine import BrosEngine
    except ModuleNotFoundError as error:
        print(f"worker: {error}: `make serve-many` installs Dynamo into .venv-dynamo", file=sys.stderr)
        return 1
    run(BrosEngine)
    return 0


if __name__ == "__main__":
    sys.exit(main())
