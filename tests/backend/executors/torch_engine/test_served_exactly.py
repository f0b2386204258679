"""At load a probe compares the model with the library; one that differs is refused, naming family and difference."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from backend.core.errors import ConfigError
from backend.executors.torch_engine import library_model, loader, probe, served_exactly
from backend.executors.torch_engine.layer_ops import TorchLayerOps
from backend.executors.torch_engine.reference import narrow_windows, plain_llama, sampled_rows
from backend.executors.torch_engine.row_dependence import WatchedModel
from backend.executors.torch_engine.settings import AttentionKernel, Dtype, ModelPath
from backend.executors.torch_engine.weights import DirectorySource
from tests.backend.executors.torch_engine.models import save_tiny_model
from tests.backend.executors.torch_engine.test_families import settings_for
from tests.backend.executors.torch_engine.test_llama_config import library_model as library_llama
from tests.backend.executors.torch_engine.test_loader import load_quietly
from tests.backend.text.gguf_files import llama_fields, llama_tensors, write_gguf

UNSUPPORTED: dict[str, tuple[str, dict[str, Any], str]] = {
    "codegen": ("CodeGen", {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8}, "layer 0 does not attend"),
    "xglm": ("XGLM", {"d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64}, "layer 0 does not attend"),
    "bloom": ("Bloom", {"n_layer": 2, "n_head": 4}, "layer 0 does not attend"),
    "diffllama": ("DiffLlama", {}, r"logits differ from the reference by 1\.\d+ of their spread"),
    "falcon": ("Falcon", {"alibi": True}, "do not attend through"),
    "moshi": ("Moshi", {"sliding_window": 24}, "layer 0 asks for a window of None tokens, its configuration says 24"),
    "persimmon": ("Persimmon", {}, "a step fails: RuntimeError"),
    "gemma4_text": ("Gemma4Text", {"head_dim": 16}, "heads that differ between layers are not supported"),
    "doge": ("Doge", {}, "layer 0 attends by an 'attention_mask' of its own"),
    "llama4_text": (
        "Llama4Text",
        {"num_hidden_layers": 4, "head_dim": 16, "intermediate_size_mlp": 96, "num_local_experts": 2, "moe_layers": []}
        | {"layer_types": ["full_attention"] * 4},
        r"Llama4TextAttention\.forward, line \d+, counts the tokens of a step",
    ),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64}, "logits differ"),
    "bert": ("Bert", {"num_key_value_heads": 4}, "logits differ from the reference"),
}


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BF16])
@pytest.mark.parametrize("family", UNSUPPORTED)
def test_family_that_would_be_served_wrong_is_refused(family: str, dtype: Dtype, tmp_path: Path) -> None:
    name, changes, message = UNSUPPORTED[family]
    small = {"audio_vocab_size": 64, "depth_hidden_size": 32} if family == "moshi" else {}
    directory = save_tiny_model(tmp_path, name, **changes, **small)
    with pytest.raises(ConfigError, match=rf"{family if family != 'falcon' else ''}.*{message}"):
        load_quietly(settings_for(directory, dtype=dtype, attention=AttentionKernel.TORCH))


@pytest.mark.parametrize("layers", [ModelPath.OWN, ModelPath.LIBRARY])
def test_bf16_is_near_enough(layers: ModelPath, tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path, num_hidden_layers=2)
    executor = load_quietly(settings_for(directory, dtype=Dtype.BF16, layers=layers))
    assert executor.pool.shape.dtype is torch.bfloat16


def test_library_weights_are_as_they_were_after_a_probe_in_float32(tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path, "Qwen2", num_hidden_layers=2)
    served = load_quietly(settings_for(directory, dtype=Dtype.BF16)).model._model  # type: ignore[attr-defined] # inside
    stored = library_llama(directory)
    for (name, mine), (_, theirs) in zip(served.named_parameters(), stored.named_parameters(), strict=True):
        assert mine.dtype is torch.bfloat16, name
        assert torch.equal(mine, theirs.bfloat16()), name
    assert served.model.rotary_emb.inv_freq.dtype is torch.float32
    assert served.config._attn_implementation == library_model.IMPLEMENTATION


Fault = Callable[[pytest.MonkeyPatch], None]


def _turn_the_wrong_way(patch: pytest.MonkeyPatch) -> None:
    from backend.executors.torch_engine import layer_ops

    tables = layer_ops.rotary_tables
    patch.setattr(layer_ops, "rotary_tables", lambda config: (tables(config)[0], -tables(config)[1]))


def _see_the_future(patch: pytest.MonkeyPatch) -> None:
    from backend.executors.torch_engine import attention

    patch.setattr(attention, "_mask", lambda segment, *_: torch.ones(segment.num_new, segment.num_context).bool())


def _forget_the_context(patch: pytest.MonkeyPatch) -> None:
    write = loader.KVPool.write

    def write_zeros(pool: Any, layer: int, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor) -> None:
        write(pool, layer, keys, torch.zeros_like(values), slots)

    patch.setattr(loader.KVPool, "write", write_zeros)


def _norm_by_another_epsilon(patch: pytest.MonkeyPatch) -> None:
    norm = TorchLayerOps.add_norm

    def add_norm(ops: TorchLayerOps, hidden: torch.Tensor, delta: Any, weight: torch.Tensor) -> torch.Tensor:
        return norm(ops, hidden, delta, weight) * 1.001

    patch.setattr(TorchLayerOps, "add_norm", add_norm)


@pytest.mark.parametrize("fault", [_turn_the_wrong_way, _see_the_future, _forget_the_context, _norm_by_another_epsilon])
@pytest.mark.parametrize("is_gguf", [False, True])
def test_fault_in_our_own_layers_is_seen(
    is_gguf: bool, fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_tiny_model(tmp_path, num_hidden_layers=2)
    if is_gguf:
        model = library_llama(path)
        path = write_gguf(tmp_path / "m.gguf", llama_fields(model.config), llama_tensors(model))
    settings = settings_for(path, layers=ModelPath.OWN, attention=AttentionKernel.TORCH)
    load_quietly(settings)
    fault(monkeypatch)
    with pytest.raises(ConfigError, match=r"\(llama\) would be served wrong: after \d+ tokens its logits differ"):
        load_quietly(settings)


def test_plain_reference_is_the_librarys_llama(tmp_path: Path) -> None:
    model = library_llama(save_tiny_model(tmp_path, num_hidden_layers=2, head_dim=24, rms_norm_eps=1e-3))
    config = loader._find(loader.resolve_model(str(tmp_path))).llama
    assert config is not None
    tokens = probe.probe_tokens(512)[0]
    rows = sampled_rows(512, tokens)
    mine = plain_llama(config[0], DirectorySource(tmp_path), 2, rows).logits(tokens)
    torch.testing.assert_close(mine, model(tokens[None]).logits[0][:, rows], atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [64, 96])
def test_vocabulary_as_large_as_another_size_is_compared(size: int, tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path, num_hidden_layers=2, vocab_size=size)
    settings = settings_for(directory, layers=ModelPath.OWN, attention=AttentionKernel.TORCH)
    assert load_quietly(settings).capacity().max_seq_len == 2304


def test_probe_uses_every_kind_of_step() -> None:
    """Chunks after chunks, sequences side by side, decodes; no two tokens share a slot."""
    done, slots = [0, 0], []
    kinds = set()
    for step in probe._STEPS:
        inputs = probe._inputs(step, done, probe.probe_tokens(100))
        slots += inputs.slots.tolist()
        kinds |= {(len(step), num_new > 8, start > 0) for (_, num_new), start in zip(step, done, strict=False)}
        for row, num_new in step:
            done[row] += num_new
    assert {(1, True, False), (2, True, True), (2, False, True)} <= kinds
    assert len(set(slots)) == len(slots) == sum(done)
    assert int(probe.probe_tokens(100)[0].max()) == 99


def test_windows_are_narrow_for_a_probe_only() -> None:
    configs = [SimpleNamespace(sliding_window=window) for window in (4096, 4, None)]
    model = SimpleNamespace(modules=lambda: [SimpleNamespace(config=config) for config in (*configs, configs[0])])
    with narrow_windows(model, 8):
        assert [config.sliding_window for config in configs] == [8, 4, None]
    assert [config.sliding_window for config in configs] == [4096, 4, None]


def test_request_that_changes_with_a_far_neighbour_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such rotary tables are refused by their name already; a probe sees them without it."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 256}
    changes = {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, **factors}}
    directory = save_tiny_model(tmp_path, "Phi3", original_max_position_embeddings=256, **changes)
    monkeypatch.setattr(library_model, "_ROW_DEPENDENT_ROPE", frozenset())
    with pytest.raises(
        ConfigError, match=r"\(phi3\) would be served wrong: a request at position 2303 changes another's"
    ):
        load_quietly(settings_for(directory))


@pytest.mark.parametrize("counts_row", [False, True])
def test_call_that_counts_the_row_is_told_from_one_of_a_fixed_size(counts_row: bool) -> None:
    """24 is the number of tokens in two of the probe's steps."""

    class Counting:
        def forward(self, inputs: Any) -> torch.Tensor:
            torch.arange(inputs.num_tokens if counts_row else 24)
            return self.forward_at(inputs, inputs.positions)

        def forward_at(self, inputs: Any, _positions: Any) -> torch.Tensor:
            return torch.arange(50.0)[None].expand(len(inputs.sampled), -1)

    watched = WatchedModel(Counting())  # type: ignore[arg-type] # all that it asks of a LibraryModel
    probe.worst_difference(watched, 50, [torch.randn(len(tokens), 50) for tokens in probe.probe_tokens(50)])
    with pytest.raises(ConfigError, match="counts the tokens") if counts_row else nullcontext():
        watched.require_independent("model 'x'", 100, 1e-3)


def test_logits_that_are_no_numbers_are_refused() -> None:
    class Broken:
        def forward(self, inputs: Any) -> torch.Tensor:
            return torch.full((len(inputs.sampled), 50), float("nan"))

    expected = [torch.randn(len(tokens), 50) for tokens in probe.probe_tokens(50)]
    with pytest.raises(ConfigError, match="by nan of their spread"):
        probe.require_small(probe.worst_difference(Broken(), 50, expected), 1.0, "model 'x'")


def test_model_of_few_positions_is_not_compared_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_quietly(settings_for(save_tiny_model(tmp_path, max_position_embeddings=32)))
    assert "is not compared: it takes 32 tokens, a probe has 42" in caplog.text


def test_model_too_large_for_float32_is_compared_roughly_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_exactly, "available_bytes", lambda _device: 1000)
    directory = save_tiny_model(tmp_path, "Qwen2", num_hidden_layers=2)
    load_quietly(settings_for(directory, dtype=Dtype.BF16, attention=AttentionKernel.TORCH))
    assert "is compared roughly: float32 takes" in caplog.text


def test_directory_without_one_of_its_tensors_is_refused(tmp_path: Path) -> None:
    """The library would draw it at random, and only warn."""
    from safetensors.torch import load_file, save_file

    directory = save_tiny_model(tmp_path, "Qwen2", num_hidden_layers=2)
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.1.self_attn.k_proj.bias"]
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"no tensor 'model\.layers\.1\.self_attn\.k_proj\.bias'"):
        load_quietly(settings_for(directory))
