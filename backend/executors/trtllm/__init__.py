"""TensorRT-LLM behind the engine's face: our policy inside its step (inner mode) or in front of it (outer mode)."""

from __future__ import annotations

from backend.executors.trtllm.settings import TrtllmMode, TrtllmSettings

__all__ = ["TrtllmMode", "TrtllmSettings"]
