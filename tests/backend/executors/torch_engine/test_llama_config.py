"""What a configuration or a GGUF header asks for is done exactly, or the model is refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backend.core.errors import ConfigError
from backend.executors.torch_engine import load
from backend.executors.torch_engine.library_model import read_config
from backend.executors.torch_engine.llama import LlamaModel
from backend.executors.torch_engine.llama_config import config_from_gguf, config_from_library
from backend.executors.torch_engine.settings import ModelPath
from backend.text.gguf_file import read_gguf
from backend.text.model_files import resolve_model
from tests.backend.executors.torch_engine.models import VOCAB_SIZE, reference_tokens, save_tiny_model
from tests.backend.executors.torch_engine.schedules import Runner, Schedule, make_request, random_prompts
from tests.backend.executors.torch_engine.test_families import settings_for
from tests.backend.executors.torch_engine.test_loader import load_quietly
from tests.backend.text.gguf_files import llama_fields, llama_tensors, write_gguf

NUM_TOKENS = 6
PROMPTS = list(random_prompts(3, 60, VOCAB_SIZE))
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def library_model(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def served_tokens(path: Path, layers: ModelPath = ModelPath.AUTO) -> list[list[int]]:
    executor = load(settings_for(path, layers=layers), lambda _stage, _fraction: None)
    requests = [
        make_request(f"r{i}", prompt, max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS) for i, prompt in enumerate(PROMPTS)
    ]
    return Runner(executor, Schedule(chunk=17, batch=3)).run(requests)


def library_tokens(model: Any) -> list[list[int]]:
    return [reference_tokens(model, prompt, NUM_TOKENS) for prompt in PROMPTS]


def change_config(directory: Path, **changes: object) -> None:
    """Change `config.json`; None takes a key out."""
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


# --- Directories ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["type", "rope_type"])
@pytest.mark.parametrize(
    "scaling",
    [
        {"linear": 4.0},
        {"yarn": 4.0, "original_max_position_embeddings": 32},
        {name: value for name, value in LLAMA_3.items() if name not in ("rope_type", "factor", "rope_theta")}
        | {"llama3": 8.0},
    ],
    ids=["linear", "yarn", "llama3"],
)
def test_rope_scaling_counts_in_either_spelling(scaling: dict[str, float], key: str, tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path)
    kind = next(name for name in scaling if name in ("linear", "yarn", "llama3"))
    others = {name: value for name, value in scaling.items() if name != kind}
    change_config(
        directory, rope_parameters=None, rope_theta=1e4, rope_scaling={key: kind, "factor": scaling[kind], **others}
    )
    assert served_tokens(directory) == library_tokens(library_model(directory))


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_rope_that_depends_on_neighbours_is_refused_in_either_spelling(key: str, tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path)
    change_config(directory, rope_parameters=None, rope_scaling={key: "dynamic", "factor": 2.0})
    with pytest.raises(ConfigError, match=r"llama.*'dynamic' rope is not supported"):
        load_quietly(settings_for(directory))


def test_absent_keys_have_the_librarys_defaults(tmp_path: Path) -> None:
    """Mistral has a window of 4,096 tokens where the file does not say."""
    directory = save_tiny_model(tmp_path, "Mistral")
    change_config(directory, sliding_window=None, head_dim=None)
    assert config_from_library(read_config(resolve_model(str(directory)))) is None
    assert served_tokens(directory) == library_tokens(library_model(directory))


@pytest.mark.parametrize("changes", [{"attention_bias": True}, {"mlp_bias": True}, {"hidden_act": "gelu"}], ids=str)
def test_llamas_that_are_not_plain_run_by_the_librarys_layers(changes: dict[str, object], tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path, **changes)
    assert not isinstance(load_quietly(settings_for(directory)).model, LlamaModel)
    assert served_tokens(directory) == library_tokens(library_model(directory))


def test_head_of_its_own_is_used_though_the_configuration_ties_it(tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path, tie_word_embeddings=False)
    change_config(directory, tie_word_embeddings=True)
    assert served_tokens(directory, ModelPath.OWN) == library_tokens(library_model(directory))


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_all_that_the_librarys_layers_read_is_looked_at(family: str) -> None:
    import transformers

    source = (Path(transformers.__file__).parent / f"models/{family}/modeling_{family}.py").read_text()
    mine = (Path(__file__).parents[4] / "backend/executors/torch_engine/llama_config.py").read_text()
    of_training = {"_attn_implementation", "attention_dropout", "pad_token_id"}
    read = set(re.findall(r"\bconfig\.(\w+)", source)) - of_training
    assert {name for name in read if name not in mine} == set()


@pytest.mark.parametrize("name", ["num_hidden_layers", "vocab_size"])
def test_configuration_that_is_no_language_model_is_refused(name: str, tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path)
    change_config(directory, **{name: "many"})
    with pytest.raises(ConfigError, match=name):
        load_quietly(settings_for(directory))


# --- GGUF -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return library_model(save_tiny_model(tmp_path_factory.mktemp("llama"), num_hidden_layers=2))


@pytest.mark.parametrize("layers", [ModelPath.OWN, ModelPath.LIBRARY])
def test_gguf_rope_factors_are_llama_3s(layers: ModelPath, tmp_path: Path) -> None:
    model = library_model(save_tiny_model(tmp_path, num_hidden_layers=2, rope_parameters=LLAMA_3))
    half = model.config.head_dim // 2
    plain = 1.0 / 1e4 ** (np.arange(half) / half)
    factors = plain / model.model.rotary_emb.inv_freq.numpy()
    assert max(factors) > 7, "some pairs must be scaled"
    tensors = llama_tensors(model) | {"rope_freqs.weight": factors}
    assert served_tokens(
        write_gguf(tmp_path / "m.gguf", llama_fields(model.config), tensors), layers
    ) == library_tokens(model)


def test_gguf_linear_scaling_is_the_librarys(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    model = library_model(save_tiny_model(tmp_path, num_hidden_layers=2, rope_parameters=rope))
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    path = write_gguf(tmp_path / "m.gguf", llama_fields(model.config) | scaling, llama_tensors(model))
    assert served_tokens(path) == library_tokens(model)


@pytest.mark.parametrize(
    ("fields", "tensors", "message"),
    [
        ({}, {"blk.0.attn_q.bias": 64}, r"tensor 'blk\.0\.attn_q\.bias'"),
        ({}, {"blk.1.attn_q_norm.weight": 16}, r"tensor 'blk\.1\.attn_q_norm\.weight'"),
        ({}, {"rope_factors_long.weight": 8}, r"tensor 'rope_factors_long\.weight'"),
        ({}, {"rope_freqs.weight": 4}, r"'rope_freqs\.weight' of type 0 and shape \(4,\) is not 8 float32"),
        ({"llama.rope.scaling.type": "yarn"}, {}, r"'llama\.rope\.scaling\.type' 'yarn'"),
        ({"llama.rope.dimension_count": 8}, {}, r"'llama\.rope\.dimension_count' 8"),
        ({"llama.attention.value_length": 8}, {}, r"'llama\.attention\.value_length' 8"),
        ({"llama.attention.sliding_window": 64}, {}, r"'llama\.attention\.sliding_window' 64"),
        ({"llama.logit_scale": 0.5}, {}, r"'llama\.logit_scale' 0\.5"),
        ({"llama.news": 1}, {}, r"'llama\.news' 1"),
    ],
)
def test_gguf_with_what_is_not_read_is_refused(
    fields: dict[str, object], tensors: dict[str, int], message: str, llama: Any, tmp_path: Path
) -> None:
    added = {name: np.ones(size) for name, size in tensors.items()}
    path = write_gguf(tmp_path / "m.gguf", llama_fields(llama.config) | fields, llama_tensors(llama) | added)
    with pytest.raises(ConfigError, match=message):
        config_from_gguf(read_gguf(path))


@pytest.mark.parametrize(
    ("fields", "tensors", "message"),
    [
        ({"qwen2.rope.scaling.type": "yarn"}, {}, r"'qwen2\.rope\.scaling\.type' 'yarn'"),
        ({}, {"rope_freqs.weight": np.ones(8)}, r"tensor 'rope_freqs\.weight'"),
    ],
)
def test_gguf_of_another_family_with_scaled_rope_is_refused(
    fields: dict[str, object], tensors: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "m.gguf", fields, tensors, "qwen2")
    with pytest.raises(ConfigError, match=message):
        load_quietly(settings_for(path))


def test_gguf_keys_without_effect_are_taken(llama: Any, tmp_path: Path) -> None:
    harmless = {
        "llama.rope.scaling.type": "none",
        "llama.logit_scale": 1.0,
        "llama.expert_count": 0,
        "general.name": "x",
    }
    path = write_gguf(tmp_path / "m.gguf", llama_fields(llama.config) | harmless, llama_tensors(llama))
    config = config_from_gguf(read_gguf(path))
    assert config is not None
    assert (config.head_size, config.rope_factors) == (16, ())
