"""Tiny random models in Hugging Face directories, and the tokens the library itself generates with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

VOCAB_SIZE = 512
_TINY = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2304,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}


def save_tiny_model(directory: Path, family: str = "Llama", seed: int = 0, **changes: Any) -> Path:
    """Save a random model of a family (`Llama`, `Qwen2`, … before `Config`) in float32; returns its directory.

    Weights are drawn wide, so that the tokens it generates vary with what it attends to.
    """
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**{**_TINY, "initializer_range": 0.2, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(directory)
    return directory


def reference_tokens(model: Any, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """Return the greedy continuation by the library's own `generate`, never stopping early."""
    output = model.generate(
        torch.tensor([list(prompt)]),
        attention_mask=torch.ones((1, len(prompt)), dtype=torch.int64),
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
        suppress_tokens=None,
    )
    return list(output[0, len(prompt) :].tolist())
