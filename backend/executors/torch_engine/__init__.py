"""The torch engine: real models on CPU or CUDA. Nothing here imports torch before `load` is called."""

from __future__ import annotations

from collections.abc import Callable

from backend.executors import Executor
from backend.executors.torch_engine.settings import TorchSettings


def load(settings: TorchSettings, report: Callable[[str, float], None]) -> Executor:
    """Load the model and make its executor; `report(stage, fraction)` tells how far it has come.

    Raises ConfigError where the model is missing, unsupported or does not fit.
    """
    from backend.executors.torch_engine.loader import load_executor

    return load_executor(settings, report)
