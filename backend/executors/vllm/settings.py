"""Settings of the vLLM executor: what `engine.json` says under `vllm` when `executor` is `vllm`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from backend.core.errors import ConfigError

# Set by fields of their own, or by what our scheduling needs.
RESERVED_ENGINE_ARGS = frozenset({"model", "scheduler_cls", "scheduling_policy", "skip_tokenizer_init"})


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """How to make vLLM's engine, and in which Python environment.

    model: Hugging Face directory, or a GGUF file of a Llama, which is written out as one; None: SmolLM2-135M-Instruct.
    engine_args: arguments of vLLM's `EngineArgs`, passed through as they are (`tensor_parallel_size`, `quantization`,
    `kv_transfer_config`, ...). python: interpreter of the engine process, whose environment has vLLM; None: the one
    that starts it. cache_dir: folder for models that were written out; None: `bros` in the user's cache.
    """

    model: str | None = None
    engine_args: Mapping[str, object] = field(default_factory=dict)
    python: str | None = None
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for values that cannot work."""
        if self.model == "":
            raise ConfigError("vllm.model: a model is needed, got an empty string")
        if taken := sorted(RESERVED_ENGINE_ARGS & self.engine_args.keys()):
            raise ConfigError(f"vllm.engine_args: {', '.join(taken)} is set here, not by engine_args")
