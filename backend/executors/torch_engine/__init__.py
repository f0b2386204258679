"""The torch engine: real models on CPU or CUDA. Nothing here imports torch before `load` is called."""

from __future__ import annotations

import os
from collections.abc import Callable

from backend.core.executor import Executor
from backend.executors.torch_engine.settings import TorchSettings

_SPIN_TURNS = "1000"


def load(settings: TorchSettings, report: Callable[[str, float], None]) -> Executor:
    """Load the model and make its executor; `report(stage, fraction)` tells how far it has come.

    Raises ConfigError where the model is missing, unsupported or does not fit.
    """
    say_how_threads_wait()
    from backend.executors.torch_engine.loader import load_executor

    return load_executor(settings, report)


def say_how_threads_wait() -> None:
    """Let torch's OpenMP threads spin for some microseconds before they sleep. Call it before torch loads.

    libgomp reads the number of spins when it is loaded; the operator's own setting wins. Its default is about a
    millisecond. With it, a team waits for a whole time slice if another process holds the core of one of its threads.
    Beside two busy processes on two cores, steps took 1.1 s instead of 15 ms.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_TURNS)
