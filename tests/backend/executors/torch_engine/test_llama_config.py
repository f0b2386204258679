"""What a configuration or a GGUF header asks for is done exactly, or the model is refused by name."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backend.core.errors import ConfigError
from backend.executors.torch_engine import load
from backend.executors.torch_engine.library_model import read_config, require_all_read
from backend.executors.torch_engine.llama import LlamaModel
from backend.executors.torch_engine.llama_config import (
    config_from_gguf,
    config_from_library,
    require_readable,
    require_same_heads,
)
from backend.executors.torch_engine.settings import ModelPath
from backend.text.gguf_file import read_gguf
from backend.text.model_files import ModelFiles, resolve_model
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


@pytest.mark.parametrize(
    "changes",
    [{"max_position_embeddings": size} for size in (0, -1, 2**40)] + [{"num_hidden_layers": 0}],
    ids=str,
)
def test_size_that_no_model_has_is_refused(changes: dict[str, int], tmp_path: Path) -> None:
    change_config(save_tiny_model(tmp_path), **changes)
    ((name, size),) = changes.items()
    with pytest.raises(ConfigError, match=f"'{name}' {size} is not supported"):
        load_quietly(settings_for(tmp_path))


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


@pytest.mark.parametrize(
    "scaling",
    [
        {"scaling.type": "linear", "scaling.factor": 4.0},
        {"scaling.factor": 4.0},  # llama.cpp scales so where no type is named
        {"scale_linear": 4.0},
    ],
    ids=str,
)
def test_gguf_linear_scaling_is_the_librarys(scaling: dict[str, object], tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    model = library_model(save_tiny_model(tmp_path, num_hidden_layers=2, rope_parameters=rope))
    fields = {f"llama.rope.{name}": value for name, value in scaling.items()}
    path = write_gguf(tmp_path / "m.gguf", llama_fields(model.config) | fields, llama_tensors(model))
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
    ("fields", "message"),
    [
        ({"llama.attention.head_count": 0}, r"head_count' 0 is not between 1 and"),
        ({"llama.block_count": 0}, r"block_count' 0 is not between"),
        ({"llama.context_length": 0}, r"context_length' 0 is not between"),
        ({"llama.context_length": 2**31}, r"context_length' 2147483648 is not between"),
        ({"general.type": "adapter"}, r"'general\.type' 'adapter'"),
        ({"adapter.lora.alpha": 16.0}, r"'adapter\.lora\.alpha' 16\.0"),
        ({"controlvector.layer_count": 2}, r"'controlvector\.layer_count' 2"),
        ({"split.count": 2}, r"'split\.count' 2"),
    ],
    ids=str,
)
def test_gguf_that_is_no_whole_model_is_refused(
    fields: dict[str, object], message: str, llama: Any, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "m.gguf", llama_fields(llama.config) | fields, llama_tensors(llama))
    with pytest.raises(ConfigError, match=message):
        load_quietly(settings_for(path))


QWEN_2 = {
    "qwen2.block_count": 2,
    "qwen2.context_length": 128,
    "qwen2.embedding_length": 64,
    "qwen2.feed_forward_length": 96,
    "qwen2.attention.head_count": 4,
    "qwen2.attention.head_count_kv": 2,
    "qwen2.attention.layer_norm_rms_epsilon": 1e-6,
    "qwen2.rope.freq_base": 1e4,
}


@pytest.mark.parametrize(
    ("fields", "tensors", "message"),
    [
        ({"qwen2.rope.scaling.type": "yarn"}, {}, r"'qwen2\.rope\.scaling\.type' 'yarn'"),
        ({"qwen2.rope.scaling.factor": 4.0}, {}, r"'qwen2\.rope\.scaling\.factor' 4\.0"),
        ({"qwen2.rope.dimension_count": 8}, {}, r"'qwen2\.rope\.dimension_count' 8"),
        ({"qwen2.attention.sliding_window": 64}, {}, r"'qwen2\.attention\.sliding_window' 64"),
        ({"qwen2.attn_logit_softcapping": 5.0}, {}, r"'qwen2\.attn_logit_softcapping' 5\.0"),
        ({"qwen2.news": 1}, {}, r"'qwen2\.news' 1"),
        ({}, {"rope_freqs.weight": np.ones(8)}, r"tensor 'rope_freqs\.weight'"),
    ],
    ids=str,
)
def test_gguf_of_another_family_with_what_is_not_read_is_refused(
    fields: dict[str, object], tensors: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "m.gguf", QWEN_2 | fields, tensors, "qwen2")
    with pytest.raises(ConfigError, match=message):
        load_quietly(settings_for(path))


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("nemotron", {}, r"'nemotron\.rope\.dimension_count' 16 .* rotates 8 elements"),
        ("nemotron", {"rope.dimension_count": 4}, r"'nemotron\.rope\.dimension_count' 4 .* rotates 8 elements"),
        ("nemotron", {"rope.dimension_count": 8}, None),
        ("qwen2", {"rope.dimension_count": 16}, None),
        ("gemma2", {"attention.key_length": 16}, "heads of 16 elements .* as if they had 256"),
        ("gemma3", {"attention.key_length": 16}, "heads of 16 elements .* as if they had 256"),
        ("gemma2", {"attention.key_length": 256}, None),
        ("gemma3", {"attention.key_length": 256}, None),
    ],
    ids=str,
)
def test_gguf_of_a_family_whose_library_rotates_or_scales_otherwise_is_refused(
    family: str, fields: dict[str, object], message: str | None, tmp_path: Path
) -> None:
    """llama.cpp rotates all of a head where no key says less, and scales by the head's size."""
    given = {"vocab_size": 512, "attention.sliding_window": 24} if family.startswith("gemma") else {"vocab_size": 512}
    usual = {key.removeprefix("qwen2."): value for key, value in QWEN_2.items()}
    named = {f"{family}.{key}": value for key, value in (usual | given | fields).items()}
    gguf = read_gguf(write_gguf(tmp_path / "m.gguf", named, {"x": np.ones(1)}, family))
    require_readable(gguf)
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        require_same_heads(gguf, read_config(ModelFiles(gguf.path)))


@pytest.mark.parametrize("absent", sorted(QWEN_2))
def test_gguf_of_another_family_leaves_nothing_to_the_librarys_defaults(absent: str, tmp_path: Path) -> None:
    fields = {name: value for name, value in QWEN_2.items() if name != absent}
    with pytest.raises(ConfigError, match=f"has no GGUF field '{absent}'"):
        require_readable(read_gguf(write_gguf(tmp_path / "m.gguf", fields, {"x": np.ones(1)}, "qwen2")))


def test_gguf_of_another_family_with_known_keys_is_read(tmp_path: Path) -> None:
    harmless = {"qwen2.rope.dimension_count": 16, "qwen2.rope.scaling.type": "none", "general.type": "model"}
    require_readable(read_gguf(write_gguf(tmp_path / "m.gguf", QWEN_2 | harmless, {"x": np.ones(1)}, "qwen2")))


def test_gguf_of_experts_or_an_unknown_family_is_refused(llama: Any, tmp_path: Path) -> None:
    experts = llama_fields(llama.config) | {"llama.expert_count": 2}
    path = write_gguf(tmp_path / "m.gguf", experts, llama_tensors(llama))
    with pytest.raises(ConfigError, match=r"'llama\.expert_count' 2"):
        load_quietly(settings_for(path))
    with pytest.raises(ConfigError, match="GGUF files of the family 'news'"):
        load_quietly(settings_for(write_gguf(tmp_path / "n.gguf", {}, {"x": np.ones(1)}, "news")))


@pytest.mark.parametrize(
    "name", ["blk.1.attn_q_norm.weight", "blk.0.attn_output.bias", "output.bias", "blk.2.x.weight"]
)
def test_tensor_that_the_library_passes_over_is_refused(name: str, llama: Any, tmp_path: Path) -> None:
    fields, tensors = llama_fields(llama.config), llama_tensors(llama)
    require_all_read(ModelFiles(write_gguf(tmp_path / "m.gguf", fields, tensors)), llama)
    path = write_gguf(tmp_path / "n.gguf", fields, tensors | {name: np.ones(64)})
    with pytest.raises(ConfigError, match=re.escape(f"tensor {name!r} is not supported")):
        require_all_read(ModelFiles(path), llama)


def test_gguf_keys_without_effect_are_taken(llama: Any, tmp_path: Path) -> None:
    harmless = {
        "llama.rope.scaling.type": "none",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scale_linear": 4.0,
        "llama.logit_scale": 1.0,
        "llama.expert_count": 0,
        "general.name": "x",
    }
    path = write_gguf(tmp_path / "m.gguf", llama_fields(llama.config) | harmless, llama_tensors(llama))
    config = config_from_gguf(read_gguf(path))
    assert config is not None
    assert (config.head_size, config.rope_factors) == (16, ())


def test_code_in_a_model_is_neither_run_nor_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*_: object) -> str:
        raise AssertionError("the library asks at the terminal")

    monkeypatch.setattr("builtins.input", answer)
    (tmp_path / "configuration_x.py").write_text("raise AssertionError('code of the model was run')")
    config = {"model_type": "x", "auto_map": {"AutoConfig": "configuration_x.XConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="contains custom code"):
        read_config(ModelFiles(tmp_path))
