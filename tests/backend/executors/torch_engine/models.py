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


def library_llama_from_gguf(path: Path) -> Any:
    """Build the library's float32 Llama from a GGUF file, read by the `gguf` package: the slow twin of our loader."""
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.initialization import no_init_weights

    reader = GGUFReader(path)
    number = {name: field.contents() for name, field in reader.fields.items() if name.startswith("llama.")}
    tensors = {t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}
    config = LlamaConfig(
        vocab_size=number["llama.vocab_size"],
        hidden_size=number["llama.embedding_length"],
        intermediate_size=number["llama.feed_forward_length"],
        num_hidden_layers=number["llama.block_count"],
        num_attention_heads=number["llama.attention.head_count"],
        num_key_value_heads=number["llama.attention.head_count_kv"],
        max_position_embeddings=number["llama.context_length"],
        rms_norm_eps=number["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": number["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        eos_token_id=2,
        bos_token_id=1,
        pad_token_id=2,
    )
    with no_init_weights():  # random weights would take longer than reading those of the file
        model = LlamaForCausalLM(config)
    weights = {_library_name(name): tensor for name, tensor in tensors.items()}
    for name in weights:
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weights[name] = _halves_apart(weights[name], config.head_dim)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    return model.eval()


def _library_name(name: str) -> str:
    if name in ("token_embd.weight", "output_norm.weight"):
        return "model.embed_tokens.weight" if name.startswith("token") else "model.norm.weight"
    _, index, part, _ = name.split(".")
    parts = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    return f"model.layers.{index}.{parts[part]}.weight"


def _halves_apart(weight: torch.Tensor, head_size: int) -> torch.Tensor:
    """llama.cpp puts row i of a head's second half after row i of its first; take them apart again."""
    heads = weight.view(-1, head_size, weight.shape[1])
    return torch.cat([heads[:, 0::2], heads[:, 1::2]], 1).reshape(weight.shape)
