"""Every family the library drives: float32 tokens equal its own `generate`, in mixed steps with preemptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from backend.core.errors import ConfigError
from backend.executors.torch_engine import load
from backend.executors.torch_engine.settings import AttentionKernel, Dtype, ModelPath, TorchSettings
from tests.backend.executors.torch_engine.models import VOCAB_SIZE, reference_tokens, save_tiny_model
from tests.backend.executors.torch_engine.schedules import Runner, Schedule, make_request, random_prompts

NUM_TOKENS = 8
PROMPTS = list(random_prompts(5, 80, VOCAB_SIZE))
SCHEDULE = Schedule(chunk=17, batch=5, preempt_every=4, copies_back=True)

FAMILIES = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": 24}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 24}),
    "gemma3": ("Gemma3Text", {"head_dim": 16, "sliding_window": 24, "num_hidden_layers": 7}),
    "phi3": ("Phi3", {}),
    "olmo2": ("Olmo2", {}),
    "afmoe": ("Afmoe", {"head_dim": 16, "sliding_window": 24, "num_experts": 4, "num_experts_per_tok": 2}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 1, 0]}),
}


def settings_for(directory: Path, **changes: object) -> TorchSettings:
    defaults: dict[str, object] = {
        "model_path": str(directory),
        "dtype": Dtype.FLOAT32,
        "num_kv_tokens": 1024,
        "host_kv_gib": 0.01,
        "num_threads": 1,
    }
    return TorchSettings(**{**defaults, **changes})  # type: ignore[arg-type] # the test's own keywords


@pytest.mark.parametrize("kernel", [AttentionKernel.COMPILED, AttentionKernel.TORCH])
@pytest.mark.parametrize("family", FAMILIES)
def test_library_layers_yield_the_librarys_tokens(family: str, kernel: AttentionKernel, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    name, changes = FAMILIES[family]
    directory = save_tiny_model(tmp_path, name, **changes)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    expected = [reference_tokens(model, prompt, NUM_TOKENS) for prompt in PROMPTS]
    settings = settings_for(directory, attention=kernel, layers=ModelPath.LIBRARY)
    executor = load(settings, lambda _stage, _fraction: None)
    requests = [
        make_request(f"r{i}", prompt, max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS) for i, prompt in enumerate(PROMPTS)
    ]
    assert Runner(executor, SCHEDULE).run(requests) == expected


@pytest.mark.parametrize("family", ["Llama", "Mistral"])
def test_own_layers_yield_the_librarys_tokens(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    directory = save_tiny_model(tmp_path, family, tie_word_embeddings=True, sliding_window=None)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    expected = [reference_tokens(model, prompt, NUM_TOKENS) for prompt in PROMPTS]
    executor = load(settings_for(directory, layers=ModelPath.OWN), lambda _stage, _fraction: None)
    requests = [
        make_request(f"r{i}", prompt, max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS) for i, prompt in enumerate(PROMPTS)
    ]
    assert Runner(executor, SCHEDULE).run(requests) == expected


@pytest.mark.parametrize("layers", [ModelPath.OWN, ModelPath.LIBRARY])
@pytest.mark.parametrize("head_size", [20, 24, 40, 72, 100, 120])
def test_heads_of_any_size_yield_the_librarys_tokens(head_size: int, layers: ModelPath, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    directory = save_tiny_model(tmp_path, head_dim=head_size, num_hidden_layers=2)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    expected = [reference_tokens(model, prompt, NUM_TOKENS) for prompt in PROMPTS]
    executor = load(settings_for(directory, layers=layers), lambda _stage, _fraction: None)
    requests = [
        make_request(f"r{i}", prompt, max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS) for i, prompt in enumerate(PROMPTS)
    ]
    assert Runner(executor, SCHEDULE).run(requests) == expected


def test_mixture_of_attention_and_state_space_is_refused(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention", "full_attention"]}
    directory = save_tiny_model(tmp_path, "Qwen3Next", num_experts=0, mlp_only_layers=[0, 1, 2], **changes)
    with pytest.raises(ConfigError, match="linear_attention"):
        load(settings_for(directory), lambda _stage, _fraction: None)
