"""Settings of the TensorRT-LLM executor: `executor` in `engine.json` where its kind is `trtllm`."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from backend.core.errors import ConfigError

RESERVED_LLM_ARGS = frozenset({"model"})  # set by a field of its own


class TrtllmMode(enum.Enum):
    """Where our policy decides: inside TensorRT-LLM's step (`inner`), or in front of it (`outer`)."""

    AUTO = "auto"  # inner where this installation allows it, outer otherwise
    INNER = "inner"
    OUTER = "outer"


@dataclass(frozen=True, slots=True)
class TrtllmSettings:
    """How to make the `LLM` and how much of it best-effort work may take.

    model: directory of a checkpoint (no built engine needed), or whatever else `LLM(model=...)` takes.
    llm_args: keyword arguments of `LLM`, passed through as they are (`tensor_parallel_size`, `kv_cache_config`, ...).
    reserved_rt_seqs: active slots of TensorRT-LLM (`max_batch_size`) that best-effort requests never take.
    be_kv_ratio: share of the KV pool, 0 to 1, that best-effort requests may fill in the worst case; outer mode only.
    """

    model: str
    mode: TrtllmMode = TrtllmMode.AUTO
    llm_args: Mapping[str, object] = field(default_factory=dict)
    reserved_rt_seqs: int = 16
    be_kv_ratio: float = 0.5

    def __post_init__(self) -> None:
        """Raise ConfigError for values that cannot work."""
        if not self.model:
            raise ConfigError("executor.model: a model directory is needed, got an empty string")
        if taken := sorted(RESERVED_LLM_ARGS & self.llm_args.keys()):
            raise ConfigError(f"executor.llm_args: {', '.join(taken)} is set by the field of that name")
        if self.reserved_rt_seqs < 1:
            raise ConfigError(f"executor.reserved_rt_seqs: {self.reserved_rt_seqs} is below 1")
        if not 0.0 < self.be_kv_ratio <= 1.0:
            raise ConfigError(f"executor.be_kv_ratio: {self.be_kv_ratio} is not in (0, 1]")

    @property
    def num_ranks(self) -> int:
        """The processes over which TensorRT-LLM spreads the model. Inner mode needs one."""
        sizes = (self.llm_args.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline", "context"))
        return math.prod(size if isinstance(size, int) else 1 for size in sizes)
