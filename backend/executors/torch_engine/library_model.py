"""Any decoder-only model that `transformers` can drive through its attention interface.

The library runs the layers over one packed row of tokens; its attention calls come to us, which store K and V in the
pool and attend over slots. No cache of the library is used, and no mask is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from backend.errors import ConfigError
from backend.executors.torch_engine.attention import AttentionShape, SlotAttention
from backend.executors.torch_engine.inputs import StepInputs
from backend.executors.torch_engine.kv_pool import KVPool, KVShape
from backend.executors.torch_engine.weights import TensorSource
from backend.model_files import ModelFiles

_IMPLEMENTATION = "bros_slots"
_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
# Rotary tables that change with the longest position in the row would make a request depend on its neighbours.
_ROW_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


@dataclass(slots=True, eq=False)
class _Step:
    """What the attention calls of the running step need; every attention module holds this object."""

    pool: KVPool
    attention: SlotAttention
    slots: torch.Tensor


class LibraryModel:
    """A `transformers` model whose attention reads and writes our pool."""

    def __init__(self, model: Any, pool: KVPool, attention: SlotAttention) -> None:
        self._model = model
        self._step = _Step(pool, attention, torch.empty(0, dtype=torch.int64))
        for module in model.modules():
            if hasattr(module, "layer_idx"):
                module.bros_step = self._step

    @property
    def vocab_size(self) -> int:
        return len(self._model.get_input_embeddings().weight)

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        """Return the float32 logits [num_sampled, vocabulary]; writes K and V to the pool."""
        device = self._model.device
        self._step.attention.begin(inputs)
        self._step.slots = torch.from_numpy(inputs.slots).to(device)
        output = self._model(
            input_ids=torch.from_numpy(inputs.token_ids).to(device)[None],
            position_ids=torch.from_numpy(inputs.positions).to(device)[None],
            use_cache=False,
            logits_to_keep=torch.from_numpy(inputs.sampled_tokens).to(device),
        )
        logits: torch.Tensor = output.logits[0].float()
        return logits


def read_config(files: ModelFiles) -> Any:
    """Return the library's configuration of a model; raises ConfigError where we cannot run it exactly."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(*_location(files)[0], **_location(files)[1])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model {str(files.path)!r}: transformers cannot read its configuration: {error}") from error
    config = config.get_text_config(decoder=True)
    for problem in _problems(config):
        raise ConfigError(f"model {str(files.path)!r} ({config.model_type}): {problem} is not supported")
    return config


def kv_shape(config: Any, dtype: torch.dtype) -> KVShape:
    """Return the size of a token's K and V."""
    return KVShape(
        num_layers=config.num_hidden_layers,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        dtype=dtype,
    )


def load_library_model(
    files: ModelFiles, dtype: torch.dtype, device: torch.device, llama: TensorSource | None = None
) -> Any:
    """Load weights and layers; raises ConfigError for what the library has no causal model of.

    `llama`: the tensors of a plain Llama in a GGUF file, which the library itself reads with `accelerate` only.
    """
    from transformers import AttentionInterface, AutoModelForCausalLM

    AttentionInterface.register(_IMPLEMENTATION, _attend)
    args, kwargs = _location(files)
    try:
        if files.is_gguf and llama is not None:
            return _filled(read_config(files), llama, dtype).to(device).eval()
        model = AutoModelForCausalLM.from_pretrained(*args, dtype=dtype, attn_implementation=_IMPLEMENTATION, **kwargs)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model {str(files.path)!r}: transformers cannot load it: {error}") from error
    if any(hasattr(module, "sinks") for module in model.modules()):
        raise ConfigError(f"model {str(files.path)!r}: attention sinks are not supported")
    loaded: Any = model
    return loaded.to(device).eval()


def _filled(config: Any, source: TensorSource, dtype: torch.dtype) -> Any:
    """Make the library's layers and copy our tensors into them; a tied head is its embedding."""
    from transformers import AutoModelForCausalLM

    make: Any = AutoModelForCausalLM.from_config
    model = make(config, dtype=dtype, attn_implementation=_IMPLEMENTATION)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(source.dense(name))
    return model


def _location(files: ModelFiles) -> tuple[tuple[str], dict[str, str]]:
    """A GGUF file is named to the library by its directory and its name."""
    if files.is_gguf:
        return (str(files.path.parent),), {"gguf_file": files.path.name}
    return (str(files.path),), {}


def _problems(config: Any) -> list[str]:
    """Name what would make our results differ from the library's own."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type")} | {part.get("rope_type") for part in rope.values() if isinstance(part, dict)}
    layer_types = set(getattr(config, "layer_types", None) or ())
    problems = [f"{kind!r} rope" for kind in sorted(_ROW_DEPENDENT_ROPE & kinds)]
    problems += [f"layer type {kind!r}" for kind in sorted(layer_types - _LAYER_TYPES)]
    if getattr(config, "num_kv_shared_layers", 0):
        problems.append("sharing K and V between layers")
    if getattr(config, "kv_lora_rank", None):
        problems.append("latent attention")
    return problems


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as the library calls it: query [1, H, N, D], key and value [1, G, N, D]; returns [1, N, H, D]."""
    step: _Step = module.bros_step
    layer_index = module.layer_idx
    step.pool.write(layer_index, key[0].transpose(0, 1), value[0].transpose(0, 1), step.slots)
    scale = module.head_dim**-0.5 if scaling is None else scaling
    queries = query[0].transpose(0, 1).contiguous()
    out = step.attention.attend(queries, layer_index, AttentionShape(scale, sliding_window, softcap))
    return out[None], None
