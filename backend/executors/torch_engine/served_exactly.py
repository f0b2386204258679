"""Decides at load whether a model is served exactly, by a probe of what will serve it; refuses it by name if not.

In float32 any difference is an error, and the limit is tight. bf16 rounds, so the probe widens the library's layers to
float32 (exactly, and back). The bf16 layers must then come close to the same logits.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol, TypeVar

import torch

from backend.core.errors import ConfigError
from backend.core.executor import ExecutorCapacity
from backend.executors.torch_engine.executor import Model
from backend.executors.torch_engine.kv_pool import KVPool, KVShape
from backend.executors.torch_engine.library_model import IMPLEMENTATION, LibraryModel, UnservableLayerError, kv_shape
from backend.executors.torch_engine.memory import available_bytes
from backend.executors.torch_engine.probe import (
    BF16_FEW_LAYERS_LIMIT,
    BF16_LIMIT,
    FLOAT32_LIMIT,
    probe_capacity,
    probe_tokens,
    require_small,
    worst_difference,
)
from backend.executors.torch_engine.reference import (
    Reference,
    in_float32,
    library_attention,
    library_logits,
    narrow_windows,
)
from backend.executors.torch_engine.row_dependence import WatchedModel

_log = logging.getLogger(__name__)
_AnyModel = TypeVar("_AnyModel", bound=Model, covariant=True)
_SHARE_OF_FREE_MEMORY = 0.5  # that the float32 weights of a probe may take
_LONGEST_WINDOW = 8  # in a probe: its sequences have 42 and 12 tokens, so that a window's edge is in both


class MakeModel(Protocol[_AnyModel]):
    """Makes what will serve, over the pool and for the steps of the probe."""

    def __call__(self, pool: KVPool, capacity: ExecutorCapacity) -> _AnyModel: ...


def is_long_enough(max_positions: int, name: str) -> bool:
    """True where a model takes as many tokens as a probe has; otherwise say that it is not probed."""
    needed = probe_capacity().max_seq_len
    if max_positions < needed:
        _log.warning("%s is not compared: it takes %d tokens, a probe has %d", name, max_positions, needed)
    return max_positions >= needed


def check_own(
    name: str, vocab_size: int, shape: KVShape, device: torch.device, make: MakeModel[Model], reference: Reference
) -> None:
    """Raise ConfigError where our own layers do not give the logits of `reference`."""
    expected = [reference.logits(tokens) for tokens in probe_tokens(vocab_size)]
    model = make(_pool(shape, device), probe_capacity())
    limit = FLOAT32_LIMIT if shape.dtype is torch.float32 else BF16_FEW_LAYERS_LIMIT
    require_small(worst_difference(model, vocab_size, expected, reference.rows), limit, name)


def check_library(
    name: str, library_model: Any, config: Any, dtype: torch.dtype, make: MakeModel[LibraryModel]
) -> None:
    """Raise ConfigError where the library's layers do not give the same logits by our attention and by its own."""
    try:
        _check_library(name, library_model, config, dtype, make)
    except ConfigError:
        raise
    except UnservableLayerError as error:
        raise ConfigError(f"{name} cannot be served: {error}") from error
    except Exception as error:  # whatever a family's code raises
        raise ConfigError(f"{name} cannot be served: a step fails: {type(error).__name__}: {error}") from error


def _check_library(
    name: str, library_model: Any, config: Any, dtype: torch.dtype, make: MakeModel[LibraryModel]
) -> None:
    def compare(served: torch.dtype, limit: float) -> WatchedModel:
        model = make(_pool(kv_shape(config, served), library_model.device), probe_capacity())
        model.narrow(_LONGEST_WINDOW)
        watched = WatchedModel(model)
        difference = worst_difference(watched, config.vocab_size, expected)
        _require_attention(name, model, config)
        require_small(difference, limit, name)
        return watched

    def expect() -> list[torch.Tensor]:
        with library_attention(library_model, IMPLEMENTATION), narrow_windows(library_model, _LONGEST_WINDOW):
            return [library_logits(library_model, tokens) for tokens in probe_tokens(config.vocab_size)]

    last_position = config.max_position_embeddings - 1
    if can_widen := dtype is torch.float32 or _can_widen(name, library_model):
        with in_float32(library_model):
            expected = expect()
            compare(torch.float32, FLOAT32_LIMIT).require_independent(name, last_position, FLOAT32_LIMIT)
    else:
        expected = expect()
    if dtype is not torch.float32:
        rough = compare(dtype, BF16_LIMIT)
        if not can_widen:
            rough.require_independent(name, last_position, BF16_LIMIT)


def _can_widen(name: str, library_model: Any) -> bool:
    needed: int = 4 * sum(parameter.numel() for parameter in library_model.parameters())
    free = available_bytes(library_model.device)
    can = needed < _SHARE_OF_FREE_MEMORY * free
    if not can:
        _log.warning("%s is compared roughly: float32 takes %d bytes, %d are free", name, needed, free)
    return can


def _require_attention(name: str, model: LibraryModel, config: Any) -> None:
    """A probe runs with short windows, so what every layer asked for is looked at."""
    absent = [index for index in range(config.num_hidden_layers) if index not in model.windows]
    if absent:
        raise ConfigError(
            f"{name} cannot be served: layer {absent[0]} does not attend through the library's attention interface"
        )
    for index, window in sorted(model.windows.items()):
        if window != (expected := _configured_window(config, index)):
            raise ConfigError(
                f"{name} cannot be served: layer {index} asks for a window of {window} tokens, its configuration says "
                f"{expected}"
            )


def _configured_window(config: Any, layer_index: int) -> int | None:
    layer_types = getattr(config, "layer_types", None)
    window: int | None = getattr(config, "sliding_window", None)
    return window if layer_types is None or layer_types[layer_index] == "sliding_attention" else None


def _pool(shape: KVShape, device: torch.device) -> KVPool:
    return KVPool(shape, probe_capacity().num_blocks, 0, device)
