"""The torch engine: real models on CPU or CUDA. Nothing here imports torch before `load` is called."""

from __future__ import annotations

import os
from collections.abc import Callable

from backend.executors import Executor
from backend.executors.torch_engine.settings import TorchSettings

# How long torch's OpenMP threads spin before they sleep, in turns of the loop; libgomp reads it when torch is loaded.
# Its default (about a millisecond) wastes whole slices of time wherever another process wants a core that a thread of
# the team was to run on: beside two busy processes on two cores, steps took 1.1 s instead of 15 ms.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def load(settings: TorchSettings, report: Callable[[str, float], None]) -> Executor:
    """Load the model and make its executor; `report(stage, fraction)` tells how far it has come.

    Raises ConfigError where the model is missing, unsupported or does not fit.
    """
    from backend.executors.torch_engine.loader import load_executor

    return load_executor(settings, report)
