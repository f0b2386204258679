"""Recognises the models our own Llama layers run, from the library's configuration or a GGUF header.

A GGUF file is read strictly. A key of its architecture, or a tensor, refuses the file unless we use it or its value has
no effect. This holds for files of other families too, which the library reads by tables of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch

from backend.core.errors import ConfigError
from backend.executors.torch_engine.layer_ops import LlamaConfig
from backend.executors.torch_engine.library_model import MAX_SIZE
from backend.executors.torch_engine.weights import gguf_tensor_names
from backend.text.gguf_file import GGUFFile

_MODEL_TYPES = frozenset({"llama", "mistral"})
_ACTIVATIONS = frozenset({"silu", "swish"})
_ROPE_FACTORS = "rope_freqs.weight"
_OF_OTHER_FILES = ("adapter.", "controlvector.")  # keys of files that add to a model
_OF_WHOLE_MODELS: dict[str, tuple[object, ...]] = {"general.type": ("model",), "split.count": (0, 1)}
_NUM_ROTATED = "rope.dimension_count"
_HEAD_SIZES = ("attention.key_length", "attention.value_length", _NUM_ROTATED)
_SAID_BY_SHAPES = frozenset({"expert_feed_forward_length", "expert_shared_feed_forward_length"})
_LIBRARYS_NAMES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}  # of architectures, where they differ
# Keys of an architecture that change no logits, and those that change none where they have the value given.
_HARMLESS = frozenset(
    {
        "vocab_size",  # the embedding says it
        "tensor_data_layout",
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
    }
)
_WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    "attention.sliding_window": (0,),
    "attention.causal": (True,),
    "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "use_parallel_residual": (False,),
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (0, 1),
    "rope.scale_linear": (0, 1),
    "logit_scale": (0, 1),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "rope.scaling.attn_factor": (0, 1),
}


def config_from_library(config: Any) -> LlamaConfig | None:
    """Return the hyperparameters in the library's configuration (already checked); None where it is no plain Llama.

    Everything the library's Llama and Mistral layers read of a configuration is looked at: a test compares.
    """
    if config.model_type not in _MODEL_TYPES:
        return None
    rope = config.rope_parameters or {}
    is_plain = (
        rope.get("rope_type", "default") == "default"
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and config.hidden_act in _ACTIVATIONS
        and not any(getattr(config, name, None) for name in ("sliding_window", "attention_bias", "mlp_bias"))
        and getattr(config, "quantization_config", None) is None
        and getattr(config, "transformers_weights", None) is None  # names another file
    )
    if not is_plain:
        return None
    return LlamaConfig(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_size=config.head_dim,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        norm_eps=config.rms_norm_eps,
        rope_theta=rope["rope_theta"],
        max_positions=config.max_position_embeddings,
        is_tied=config.tie_word_embeddings,
    )


def config_from_gguf(gguf: GGUFFile) -> LlamaConfig | None:
    """Return the hyperparameters of a GGUF file; None where it is no Llama, or one of experts.

    Raises ConfigError for a Llama with a key or a tensor that we would have to leave out.
    """
    if gguf.architecture != "llama" or gguf.fields.get("llama.expert_count"):
        return None
    num_heads = _size(gguf, "llama.attention.head_count")
    hidden_size = _size(gguf, "llama.embedding_length")
    head_size = _size(gguf, "llama.attention.key_length", hidden_size // num_heads)
    config = LlamaConfig(
        num_layers=_size(gguf, "llama.block_count"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=_size(gguf, "llama.attention.head_count_kv", num_heads),
        head_size=head_size,
        intermediate_size=_size(gguf, "llama.feed_forward_length"),
        vocab_size=_embedding_rows(gguf),
        norm_eps=gguf.number("llama.attention.layer_norm_rms_epsilon"),
        rope_theta=gguf.number("llama.rope.freq_base", 10000.0),
        max_positions=_size(gguf, "llama.context_length"),
        is_tied="output.weight" not in gguf.tensors,
        rope_factors=_rope_factors(gguf, head_size),
    )
    for problem in _unread(gguf, config):
        raise ConfigError(f"model {str(gguf.path)!r}: {problem} is not supported")
    return config


def require_readable(gguf: GGUFFile) -> None:
    """Raise ConfigError where the library, which reads files of other families, would leave a key out."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    family, path = gguf.architecture, str(gguf.path)
    tables: Any = GGUF_CONFIG_MAPPING
    if (table := tables.get(_LIBRARYS_NAMES.get(family, family))) is None:
        raise ConfigError(f"model {path!r}: GGUF files of the family {family!r} are not supported")
    read = {name for name, target in table.items() if target is not None}
    for name in sorted(read - _HARMLESS):
        if f"{family}.{name}" not in gguf.fields:  # the library would take a default of its own
            raise ConfigError(f"model {path!r} has no GGUF field '{family}.{name}'")
    used = dict.fromkeys(_HEAD_SIZES, _head_size(gguf))
    for problem in _unread_keys(gguf, read | _SAID_BY_SHAPES | {_NUM_ROTATED}, used):
        raise ConfigError(f"model {path!r}: {problem} is not supported")
    for name in sorted(gguf.tensors):
        if name.startswith(("rope_freqs", "rope_factors")):
            raise ConfigError(f"model {path!r}: tensor {name!r} is not supported")


def require_same_heads(gguf: GGUFFile, config: Any) -> None:
    """Raise ConfigError where the library's `config` of a GGUF file rotates or scales heads otherwise than llama.cpp.

    No key that the library reads says either. It takes defaults of the family, which are those of one model.
    """
    head_size = _head_size(gguf)
    num_rotated = _size(gguf, key := f"{gguf.architecture}.{_NUM_ROTATED}", head_size)
    rope = getattr(config, "rope_parameters", None) or {}
    tables = [rope] if "rope_type" in rope else rope.values()  # of all layers, or of each type of layer
    for librarys in {int(head_size * table.get("partial_rotary_factor", 1.0)) for table in tables}:
        if librarys != num_rotated:
            raise ConfigError(
                f"model {str(gguf.path)!r}: {key!r} {num_rotated} is not supported: the library rotates {librarys} "
                "elements of each head"
            )
    if (squared_divisor := getattr(config, "query_pre_attn_scalar", head_size)) != head_size:
        raise ConfigError(
            f"model {str(gguf.path)!r}: heads of {head_size} elements are not supported: the library scales those of "
            f"this family as if they had {squared_divisor}"
        )


def _head_size(gguf: GGUFFile) -> int:
    family = gguf.architecture
    usual = _size(gguf, f"{family}.embedding_length") // _size(gguf, f"{family}.attention.head_count")
    return _size(gguf, f"{family}.attention.key_length", usual)


def _size(gguf: GGUFFile, key: str, default: int | None = None) -> int:
    """Return a number that counts something. Raises ConfigError for one that counts nothing, or no model has."""
    value = gguf.number(key, default)
    if not 1 <= value <= MAX_SIZE:
        raise ConfigError(f"model {str(gguf.path)!r}: {key!r} {value!r} is not between 1 and {MAX_SIZE}")
    return int(value)


def _embedding_rows(gguf: GGUFFile) -> int:
    if "token_embd.weight" not in gguf.tensors:
        raise ConfigError(f"model {str(gguf.path)!r} has no tensor 'token_embd.weight'")
    return gguf.tensors["token_embd.weight"].shape[0]


def _rope_factors(gguf: GGUFFile, head_size: int) -> tuple[float, ...]:
    """Return what the frequency of each rotary pair is divided by; empty where by nothing.

    A file has one factor for all pairs ("linear", llama.cpp's default type), or one for each in a tensor (Llama 3.1's,
    by its converter).
    """
    kind = gguf.fields.get("llama.rope.scaling.type", "linear")
    if kind not in ("linear", "none"):
        raise ConfigError(f"model {str(gguf.path)!r}: 'llama.rope.scaling.type' {kind!r} is not supported")
    factor = gguf.number("llama.rope.scaling.factor", gguf.number("llama.rope.scale_linear", 1.0))  # the older key
    factors = [1.0 if kind == "none" else factor or 1.0] * (head_size // 2)
    if _ROPE_FACTORS in gguf.tensors:
        factors = [
            f * own for f, own in zip(factors, _float32_values(gguf, _ROPE_FACTORS, head_size // 2), strict=True)
        ]
    return () if set(factors) == {1.0} else tuple(factors)


def _float32_values(gguf: GGUFFile, name: str, count: int) -> list[float]:
    info = gguf.tensors[name]
    if info.type_id != 0 or info.shape != (count,):
        raise ConfigError(
            f"model {str(gguf.path)!r}: tensor {name!r} of type {info.type_id} and shape {info.shape} is not "
            f"{count} float32"
        )
    values: list[float] = torch.from_numpy(gguf.read_bytes(info, 4 * count).copy()).view(torch.float32).tolist()
    return values


def _unread(gguf: GGUFFile, config: LlamaConfig) -> Iterator[str]:
    """Name the keys and tensors that we would leave out though they may change the logits."""
    used: dict[str, object] = {
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        **dict.fromkeys(_HEAD_SIZES, config.head_size),
    }
    read = {
        *("block_count", "context_length", "embedding_length", "feed_forward_length", "rope.freq_base"),
        *("attention.layer_norm_rms_epsilon", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"),
    }
    yield from _unread_keys(gguf, read, used)
    for tensor in sorted(gguf.tensors.keys() - gguf_tensor_names(config.num_layers) - {_ROPE_FACTORS}):
        yield f"tensor {tensor!r}"


def _unread_keys(gguf: GGUFFile, read: Collection[str], used: Mapping[str, object]) -> Iterator[str]:
    """Name the keys that may change the logits and are not among `read`, nor have the values in `used`."""
    prefix = f"{gguf.architecture}."
    for key, value in gguf.fields.items():
        name = key.removeprefix(prefix)
        if name == key:
            is_known = not key.startswith(_OF_OTHER_FILES) and value in _OF_WHOLE_MODELS.get(key, (value,))
        else:
            allowed = (used[name],) if name in used else _WITHOUT_EFFECT.get(name, ())
            is_known = name in read or name in _HARMLESS or value in allowed
        if not is_known:
            yield f"{key!r} {value!r:.60}"
