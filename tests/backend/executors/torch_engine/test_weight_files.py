"""Weights that the library refuses or reads otherwise are refused by name: shapes, dtypes, values, files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.core.errors import ConfigError
from backend.executors.torch_engine import loader
from backend.executors.torch_engine.llama import LlamaModel
from backend.executors.torch_engine.safetensors_files import INDEX, SINGLE
from backend.executors.torch_engine.settings import ModelPath
from backend.executors.torch_engine.weight_checks import require_finite, require_finite_codes
from backend.executors.torch_engine.weights import (
    DirectorySource,
    EightBit,
    Quantised,
    Stored,
    read_q4_1,
    read_q8_0,
)
from backend.text.gguf_file import GGUFFile, TensorInfo
from backend.text.model_files import resolve_model
from tests.backend.executors.torch_engine.models import save_tiny_model
from tests.backend.executors.torch_engine.test_families import settings_for
from tests.backend.executors.torch_engine.test_llama_config import (
    change_config,
    library_model,
    library_tokens,
    served_tokens,
)
from tests.backend.executors.torch_engine.test_loader import load_quietly
from tests.backend.text.gguf_files import llama_fields, llama_tensors, write_gguf

LAST = "model.layers.2."
Change = Callable[[torch.Tensor], torch.Tensor]
SHAPES: dict[str, tuple[Change, list[int], list[int]]] = {
    "model.embed_tokens.weight": (lambda t: torch.cat([t, t]), [1024, 64], [512, 64]),
    f"{LAST}input_layernorm.weight": (lambda t: t[:1], [1], [64]),
    f"{LAST}self_attn.q_proj.weight": (lambda t: torch.cat([t, t]), [128, 64], [64, 64]),
    f"{LAST}self_attn.k_proj.weight": (lambda t: torch.cat([t, t]), [64, 64], [32, 64]),
    f"{LAST}self_attn.v_proj.weight": (lambda t: t[:16], [16, 64], [32, 64]),
    f"{LAST}self_attn.o_proj.weight": (lambda t: t[:, :32], [64, 32], [64, 64]),
    f"{LAST}post_attention_layernorm.weight": (lambda t: t[None], [1, 64], [64]),
    f"{LAST}mlp.gate_proj.weight": (lambda t: t.flatten(), [6144], [96, 64]),
    f"{LAST}mlp.up_proj.weight": (lambda t: t[:48], [48, 64], [96, 64]),
    f"{LAST}mlp.down_proj.weight": (lambda t: t.T, [96, 64], [64, 96]),
    "model.norm.weight": (lambda t: t[:1], [1], [64]),
    "lm_head.weight": (lambda t: t[:500], [500, 64], [512, 64]),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "m"))


def change(folder: Path, name: str, new: Change) -> None:
    tensors = load_file(folder / SINGLE)
    tensors[name] = new(tensors[name]).contiguous()
    save_file(tensors, folder / SINGLE, {"format": "pt"})


def shard(folder: Path, shards: dict[str, dict[str, torch.Tensor]], weight_map: dict[str, str]) -> None:
    """Write shards and an index."""
    for file, tensors in shards.items():
        save_file(tensors, folder / file, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def refusal(path: Path) -> str:
    """Return why a model is refused from its headers alone."""
    with pytest.raises(ConfigError) as caught:
        loader._find(resolve_model(str(path)))
    return str(caught.value)


# --- Shapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_that_the_configuration_does_not_say_is_refused(name: str, folder: Path) -> None:
    new, shape, expected = SHAPES[name]
    change(folder, name, new)
    assert refusal(folder).endswith(f"tensor {name!r} has the shape {shape}, its configuration says {expected}")


def test_the_shapes_of_all_tensors_are_looked_at(saved: Path) -> None:
    assert SHAPES.keys() == {
        name.replace("layers.1.", "layers.2.").replace("layers.0.", "layers.2.") for name in load_file(saved / SINGLE)
    }


def test_heads_that_do_not_share_key_value_heads_evenly_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, num_hidden_layers=1, num_key_value_heads=3)
    assert refusal(folder).endswith("4 attention heads are no multiple of 3 key-value heads")


def test_a_tied_head_of_other_rows_is_refused(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=True)
    change(folder, "lm_head.weight", lambda t: t[:500])
    assert "tensor 'lm_head.weight' has the shape [500, 64]" in refusal(folder)


def test_a_gguf_tensor_of_another_shape_is_refused(saved: Path, tmp_path: Path) -> None:
    model = library_model(saved)
    tensors = llama_tensors(model)
    tensors["blk.2.ffn_up.weight"] = tensors["blk.2.ffn_up.weight"][:48]
    path = write_gguf(tmp_path / "m.gguf", llama_fields(model.config), tensors)
    expected = "tensor 'blk.2.ffn_up.weight' has the shape [48, 64], its configuration says [96, 64]"
    assert refusal(path).endswith(expected)


@pytest.mark.parametrize(("type_id", "read"), [(3, read_q4_1), (8, read_q8_0)])
@pytest.mark.parametrize("shape", [(4, 40), (64,)])
def test_blocks_that_do_not_fill_rows_are_refused(type_id: int, read: Any, shape: tuple[int, ...]) -> None:
    info = TensorInfo("blk.0.x", shape, type_id, 0)
    with pytest.raises(ConfigError, match=r"'blk\.0\.x' of the shape .* has no rows of blocks of 32"):
        read(GGUFFile(Path("m.gguf"), {}, {}), info)


# --- Values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_no_number_is_seen_wherever_it_is(value: float, dtype: torch.dtype) -> None:
    for position in (0, 40, 129):  # 129: the last, past whole vectors
        tensor = torch.ones(130, dtype=dtype)
        tensor[position] = value
        with pytest.raises(ConfigError, match=r"^model 'm': tensor 'x' holds NaN or infinity$"):
            require_finite(tensor, Stored("x", (130,), "m"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_values_are_numbers(dtype: torch.dtype) -> None:
    """Their sum is none."""
    tensor = torch.full((64,), torch.finfo(dtype).max, dtype=dtype)
    assert not tensor.sum().isfinite()
    assert require_finite(tensor, Stored("x", (64,), "m")) is tensor


@pytest.mark.parametrize("part", ["scales", "minima"])
def test_codes_are_looked_at(part: str) -> None:
    fields = {"scales": torch.ones(2, 1), "minima": torch.ones(2, 1)}
    fields[part][1, 0] = float("nan")
    with pytest.raises(ConfigError, match="tensor 'x' holds NaN"):
        require_finite_codes(Quantised(torch.zeros(2, 32, dtype=torch.uint8), **fields), Stored("x", (2, 32), "m"))
    eight_bit = EightBit(torch.zeros(2, 32, dtype=torch.int8), torch.tensor([[1.0], [float("inf")]]))
    with pytest.raises(ConfigError, match="tensor 'x' holds NaN"):
        require_finite_codes(eight_bit, Stored("x", (2, 32), "m"))


@pytest.mark.parametrize("layers", [ModelPath.OWN, ModelPath.LIBRARY])
@pytest.mark.parametrize("part", ["input_layernorm", "mlp.down_proj", "self_attn.q_proj"])
def test_a_model_with_nan_is_refused_by_either_path(part: str, layers: ModelPath, folder: Path) -> None:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[7] = float("nan")
        return tensor

    name = f"{LAST}{part}.weight"
    change(folder, name, spoil)
    with pytest.raises(ConfigError, match=rf"tensor '{name}' holds NaN or infinity"):
        load_quietly(settings_for(folder, layers=layers))


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_a_gguf_file_with_nan_in_a_scale_is_refused(dtype: str, saved: Path, tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType, quants

    model = library_model(saved)
    tensors = llama_tensors(model)
    name = "blk.2.ffn_down.weight"
    tensors[name] = quants.quantize(tensors[name], GGMLQuantizationType.Q8_0)
    whole = write_gguf(tmp_path / "whole.gguf", llama_fields(model.config), tensors)
    assert isinstance(load_quietly(settings_for(whole, dtype=dtype)).model, LlamaModel)
    tensors[name][3, 34:36] = np.frombuffer(np.float16("nan").tobytes(), np.uint8)
    with pytest.raises(ConfigError, match=rf"tensor '{name}' holds NaN or infinity"):
        load_quietly(settings_for(write_gguf(tmp_path / "m.gguf", llama_fields(model.config), tensors), dtype=dtype))


# --- Dtypes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "spelt"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8")])
def test_a_dtype_that_is_not_read_is_refused(dtype: torch.dtype, spelt: str, folder: Path) -> None:
    name = f"{LAST}mlp.up_proj.weight"
    change(folder, name, lambda t: t.to(dtype))
    assert f"tensor {name!r} is stored as {spelt}; supported are F64, F32, F16, BF16" in refusal(folder)


def test_tensors_of_several_dtypes_are_read_as_the_library_reads_them(folder: Path) -> None:
    change(folder, f"{LAST}self_attn.q_proj.weight", torch.Tensor.bfloat16)
    change(folder, f"{LAST}mlp.down_proj.weight", torch.Tensor.half)
    change(folder, f"{LAST}input_layernorm.weight", torch.Tensor.double)
    assert served_tokens(folder, ModelPath.OWN) == library_tokens(library_model(folder))


def test_a_head_that_differs_from_its_embedding_by_rounding_is_a_head_of_its_own(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=True)
    embedding = load_file(folder / SINGLE)["model.embed_tokens.weight"]
    change(folder, "lm_head.weight", lambda _: embedding.bfloat16())
    assert DirectorySource(folder).has_own_head()
    change(folder, "model.embed_tokens.weight", lambda t: t.bfloat16().float())
    assert not DirectorySource(folder).has_own_head()


# --- Files ----------------------------------------------------------------------------------------------------------


def test_weights_do_not_follow_a_file_that_is_written_anew(folder: Path) -> None:
    """They were views of the mapped file: the next answer came from other weights, or the engine died."""
    source, name = DirectorySource(folder), "model.embed_tokens.weight"
    tensor = source.dense(name)
    before = tensor.clone()
    file = folder / SINGLE
    file.write_bytes(bytes(file.stat().st_size))
    assert torch.equal(tensor, before)


def test_the_single_file_comes_before_the_index(folder: Path, tmp_path: Path) -> None:
    others = load_file(save_tiny_model(tmp_path / "other", seed=7) / SINGLE)
    shard(folder, {"a.safetensors": others}, dict.fromkeys(others, "a.safetensors"))
    assert served_tokens(folder, ModelPath.OWN) == library_tokens(library_model(folder))


def test_a_tensor_is_read_from_the_shard_that_holds_it(folder: Path) -> None:
    """The library takes the shards' names only from the index."""
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    head = {"lm_head.weight": tensors.pop("lm_head.weight")}
    shard(folder, {"a.safetensors": tensors, "b.safetensors": head}, {"x": "a.safetensors", "y": "b.safetensors"})
    assert served_tokens(folder, ModelPath.OWN) == library_tokens(library_model(folder))


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_a_tensor_in_two_shards_is_refused(family: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, family)
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    norm = {"model.norm.weight": tensors["model.norm.weight"] * 2}
    weight_map = dict.fromkeys(tensors, "a.safetensors") | {"model.norm.weight": "b.safetensors"}
    shard(folder, {"a.safetensors": tensors, "b.safetensors": norm}, weight_map)
    expected = "tensor 'model.norm.weight' is in two files, 'a.safetensors' and 'b.safetensors'"
    assert refusal(folder).endswith(expected)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"weight_map": {"x": "absent.safetensors"}}', "names the file 'absent.safetensors', which is absent"),
        ('{"weight_map": {"x": "config.json"}}', "config.json' is cut short or damaged"),
        ('{"weight_map": ["x"]}', "has no 'weight_map' from tensors to files"),
        ('{"weight_map": {"x": 1}}', "has no 'weight_map' from tensors to files"),
        ("{", "has no 'weight_map' from tensors to files"),
        ("[" * 100_000, "has no 'weight_map' from tensors to files"),
        (json.dumps({"weight_map": {"x": "a" * 5000}}), "which is absent"),
        ('{"weight_map": {}}', "has no tensor 'model.embed_tokens.weight'"),
    ],
)
def test_an_index_that_names_no_weights_is_refused(index: str, message: str, folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text(index)
    assert message in refusal(folder)


def test_a_file_that_ends_early_is_refused(folder: Path) -> None:
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:-10])
    assert "model.safetensors' is cut short or damaged" in refusal(folder)


def test_a_tensor_of_another_shape_is_refused_by_name_by_the_library_too(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, "Qwen2")
    tensors = load_file(tmp_path / SINGLE)
    save_file(tensors | {"model.norm.weight": torch.ones(3)}, tmp_path / SINGLE, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"has no tensor 'model\.norm\.weight' of the shape its configuration says"):
        load_quietly(settings_for(tmp_path))


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_an_adapter_beside_the_weights_is_refused(family: str, tmp_path: Path) -> None:
    """The library puts it on top of them where `peft` is installed."""
    (save_tiny_model(tmp_path, family) / "adapter_config.json").write_text("{}")
    assert refusal(tmp_path).endswith("holds an adapter (adapter_config.json): merge it into the weights first")


def test_weights_that_the_configuration_names_are_read(folder: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=7)
    shutil.copy(other / SINGLE, folder / "other.safetensors")
    change_config(folder, transformers_weights="other.safetensors")
    assert served_tokens(folder) == library_tokens(library_model(other))


def test_tensors_that_no_layer_reads_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = load_file(folder / SINGLE)
    more = {f"{LAST}self_attn.q_proj.bias": torch.ones(64), f"{LAST}self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file(tensors | more, folder / SINGLE, {"format": "pt"})
    loader._find(resolve_model(str(folder)))
    assert f"1 tensors are read by no layer: '{LAST}self_attn.q_proj.bias'" in caplog.text
