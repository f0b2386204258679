"""Any decoder-only model that `transformers` can drive through its attention interface.

The library runs the layers over one packed row of tokens. Its attention calls come to this module, which stores K and
V in the pool and attends over slots. No cache of the library is used, and no mask is built.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from backend.core.errors import ConfigError
from backend.executors.torch_engine.attention import AttentionShape, SlotAttention
from backend.executors.torch_engine.inputs import StepInputs
from backend.executors.torch_engine.kv_pool import KVPool, KVShape
from backend.executors.torch_engine.layer_ops import LlamaConfig
from backend.executors.torch_engine.weights import TensorSource
from backend.text.gguf_file import read_gguf
from backend.text.model_files import ModelFiles

IMPLEMENTATION = "bros_slots"
_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
MAX_SIZE = 1 << 24  # of a number that counts layers, heads, elements or positions
_NEEDED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "vocab_size")
# Tensors that some families hand on to the attention call, which needs none of them.
_HARMLESS = frozenset({"position_ids", "cache_position", "input_ids", "logits_to_keep"})
# Rotary tables that change with the longest position in the row would make a request depend on its neighbours.
_ROW_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


@dataclass(slots=True, eq=False)
class _Step:
    """What the attention calls of the running step need; every attention module holds this object."""

    pool: KVPool
    attention: SlotAttention
    slots: torch.Tensor
    windows: dict[int, int | None] = field(default_factory=dict)
    longest_window: int | None = None


class UnservableLayerError(Exception):
    """A layer asks for what our attention does not compute."""


class LibraryModel:
    """A `transformers` model whose attention reads and writes our pool."""

    def __init__(self, model: Any, pool: KVPool, attention: SlotAttention) -> None:
        self._model = model
        self._step = _Step(pool, attention, torch.empty(0, dtype=torch.int64))
        self.windows = self._step.windows  # of each layer that has attended through us
        for module in model.modules():
            if hasattr(module, "layer_idx"):
                module.bros_step = self._step

    @property
    def vocab_size(self) -> int:
        return len(self._model.get_input_embeddings().weight)

    def narrow(self, longest_window: int) -> None:
        """Cut every window down to `longest_window` tokens, for a probe; `windows` tells what the layers asked for."""
        self._step.longest_window = longest_window

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        """Return the float32 logits [num_sampled, vocabulary]; writes K and V to the pool."""
        return self.forward_at(inputs, inputs.positions)

    def forward_at(self, inputs: StepInputs, positions: NDArray[np.int64]) -> torch.Tensor:
        """Do what `forward` does, but tell the layers other positions than the attention has."""
        device = self._model.device
        self._step.attention.begin(inputs)
        self._step.slots = torch.from_numpy(inputs.slots).to(device)
        output = self._model(
            input_ids=torch.from_numpy(inputs.token_ids).to(device)[None],
            position_ids=torch.from_numpy(positions).to(device)[None],
            use_cache=False,
            logits_to_keep=torch.from_numpy(inputs.sampled_tokens).to(device),
        )
        logits: torch.Tensor = output.logits[0].float()
        return logits


def read_config(files: ModelFiles) -> Any:
    """Return the library's configuration of a model; raises ConfigError where we cannot run it exactly."""
    from transformers import AutoConfig

    args, kwargs = _location(files)
    try:
        config = AutoConfig.from_pretrained(*args, **kwargs)
    except Exception as error:  # whatever a family's code raises
        raise ConfigError(f"model {str(files.path)!r}: transformers cannot read its configuration: {error}") from error
    config = config.get_text_config(decoder=True)
    for problem in _problems(config):
        raise ConfigError(f"model {str(files.path)!r} ({config.model_type}): {problem} is not supported")
    return config


def kv_shape(config: Any, dtype: torch.dtype) -> KVShape:
    """Return the size of a token's K and V; raises ConfigError where it differs between layers."""
    try:
        num_kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    except Exception as error:  # the library's own, where one number would not be true of all layers
        raise ConfigError(
            f"{config.model_type}: heads that differ between layers are not supported: {error}"
        ) from error
    if not isinstance(num_kv_heads, int) or not isinstance(head_size, int):
        raise ConfigError(
            f"{config.model_type}: {num_kv_heads!r} key-value heads of {head_size!r} elements are not supported"
        )
    return KVShape(config.num_hidden_layers, num_kv_heads, head_size, dtype)


def load_library_model(
    files: ModelFiles, dtype: torch.dtype, device: torch.device, llama: tuple[LlamaConfig, TensorSource] | None = None
) -> Any:
    """Load weights and layers; raises ConfigError for what the library has no causal model of.

    `llama`: a plain Llama in a GGUF file, which the library itself reads with `accelerate` only.
    """
    from transformers import AttentionInterface, AutoModelForCausalLM

    AttentionInterface.register(IMPLEMENTATION, _attend)
    load: Any = AutoModelForCausalLM.from_pretrained
    args, kwargs = _location(files)
    if files.is_gguf and llama is not None:
        return _filled(*llama, dtype).to(device).eval()
    try:
        model, loading = load(
            *args,
            dtype=dtype,
            attn_implementation=IMPLEMENTATION,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **kwargs,
        )
    except Exception as error:  # whatever a family's code raises; only one thing can be done about it
        cause = "its layers do not attend through the library's attention interface"
        cause = (
            cause if IMPLEMENTATION in str(error) else f"transformers cannot load it: {type(error).__name__}: {error}"
        )
        raise ConfigError(f"model {str(files.path)!r}: {cause}") from error
    absent = sorted([*loading["missing_keys"], *(str(entry[0]) for entry in loading["mismatched_keys"])])
    if absent:
        raise ConfigError(f"model {str(files.path)!r} has no tensor {absent[0]!r} of the shape its configuration says")
    if files.is_gguf:
        require_all_read(files, model)
    if any(hasattr(module, "sinks") for module in model.modules()):
        raise ConfigError(f"model {str(files.path)!r}: attention sinks are not supported")
    return model.to(device).eval()


def require_all_read(files: ModelFiles, model: Any) -> None:
    """Raise ConfigError for a tensor of a GGUF file that the library passed over. It does so without a word."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    gguf = read_gguf(files.path)
    make_processor: Any = TENSOR_PROCESSORS.get(gguf.architecture, TensorProcessor)
    processor = make_processor(config=model.config.to_dict())
    names_of: Any = get_gguf_hf_weights_map
    read = {name.removesuffix(".weight") for name in names_of(model, processor)}  # those of experts have no suffix
    for name in sorted(gguf.tensors):
        if name.removesuffix(".weight") not in read:
            raise ConfigError(f"model {str(files.path)!r}: tensor {name!r} is not supported")


def library_config_of(config: LlamaConfig) -> Any:
    """Return the library's configuration of a Llama in a GGUF file, without its rotary factors."""
    from transformers import LlamaConfig as LibraryConfig

    return LibraryConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_size,
        max_position_embeddings=config.max_positions,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.is_tied,
    )


def _filled(config: LlamaConfig, source: TensorSource, dtype: torch.dtype) -> Any:
    """Make the library's layers and copy our tensors into them; a tied head is its embedding."""
    from transformers import AutoModelForCausalLM

    make: Any = AutoModelForCausalLM.from_config
    model = make(library_config_of(config), dtype=dtype, attn_implementation=IMPLEMENTATION)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(source.dense(name))
    if config.rope_factors:
        model.model.rotary_emb.inv_freq /= torch.tensor(config.rope_factors)
    return model


def _location(files: ModelFiles) -> tuple[tuple[str], dict[str, Any]]:
    """Name the model to the library, a GGUF file by its directory and its name. Code in it is never run, nor asked for.

    Without a word about such code the library asks at the terminal, and waits.
    """
    if files.is_gguf:
        return (str(files.path.parent),), {"gguf_file": files.path.name, "trust_remote_code": False}
    return (str(files.path),), {"trust_remote_code": False}


def _problems(config: Any) -> list[str]:
    """Name what would make our results differ from the library's own."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {str(part.get("rope_type")) for part in (rope, *rope.values()) if isinstance(part, dict)}
    layer_types = set(getattr(config, "layer_types", None) or ())
    problems = [f"{kind!r} rope" for kind in sorted(_ROW_DEPENDENT_ROPE & kinds)]
    problems += [f"layer type {kind!r}" for kind in sorted(layer_types - _LAYER_TYPES)]
    sizes = {name: getattr(config, name, None) for name in _NEEDED}
    problems += [f"{name!r} {size!r}" for name, size in sizes.items() if not _is_size(size)]
    if getattr(config, "num_kv_shared_layers", 0):
        problems.append("sharing K and V between layers")
    if getattr(config, "kv_lora_rank", None):
        problems.append("latent attention")
    if getattr(config, "is_encoder_decoder", False):
        problems.append("an encoder")
    return problems


def _is_size(value: object) -> bool:
    return isinstance(value, int) and 1 <= value <= MAX_SIZE


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as the library calls it: query [1, H, N, D], key and value [1, G, N, D]; returns [1, N, H, D].

    Another argument that this function ignores shows in the probe if it matters. A tensor may not. The library builds
    no mask for us, so the layer made it. It may hide tokens in long texts only.
    """
    step: _Step = module.bros_step
    layer_index = module.layer_idx
    for name, argument in {"attention_mask": attention_mask, **others}.items():
        if isinstance(argument, torch.Tensor) and name not in _HARMLESS:
            raise UnservableLayerError(f"layer {layer_index} attends by an {name!r} of its own, which is not supported")
    step.pool.write(layer_index, key[0].transpose(0, 1), value[0].transpose(0, 1), step.slots)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    step.windows[layer_index] = sliding_window
    window = sliding_window
    if window is not None and step.longest_window is not None:
        window = min(window, step.longest_window)
    queries = query[0].transpose(0, 1).contiguous()
    out = step.attention.attend(queries, layer_index, AttentionShape(scale, window, softcap))
    return out[None], None
