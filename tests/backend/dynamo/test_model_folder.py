"""The files for Dynamo's frontend give the ids and the texts of our own tokenizers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers

from backend.config import EngineConfig, ExecutorKind, parse_config
from backend.core.errors import ConfigError
from backend.dynamo.model_folder import model_folder
from backend.text.sim_tokenizer import SimTokenizer
from backend.text.tokenizer import load_tokenizer
from tests.backend.text.gguf_files import write_gguf
from tests.backend.text.test_gguf_vocabulary import FIELDS
from tests.backend.text.test_tokenizer import needs_default_model

TEXTS = ("Hello, world", "naïve café 🙂", "", "a\n\tb", "user: Hi\n")


def test_the_simulated_tokenizer_is_the_same_as_a_file(tmp_path: Path) -> None:
    config = EngineConfig(executor=ExecutorKind.SIM)
    folder = model_folder(config, tmp_path / "model")
    written, own = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), SimTokenizer(32_000, 2)
    for text in TEXTS:
        assert written.encode(text).ids == own.encode(text)
        assert written.decode(own.encode(text)) == text
    ids = [300, 31_999, 2, 75]
    assert written.decode(ids) == own.decode(ids)
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 2


@needs_default_model
def test_a_gguf_vocabulary_is_the_same_as_a_file(tmp_path: Path) -> None:
    folder = model_folder(parse_config({"executor": "torch"}), tmp_path / "model")
    written, own = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), load_tokenizer(None)
    for text in TEXTS:
        assert written.encode(text).ids == own.encode(text)
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    assert "assistant" in template


def test_all_templates_of_a_gguf_file_are_written(tmp_path: Path) -> None:
    fields = FIELDS | {"tokenizer.chat_template.tool_use": "T"}
    model = write_gguf(tmp_path / "m.gguf", fields)
    config = parse_config({"executor": "torch", "torch": {"model_path": str(model)}})
    folder = model_folder(config, tmp_path / "model")
    written = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    assert {entry["name"]: entry["template"] for entry in written} == {
        "default": FIELDS["tokenizer.chat_template"],
        "tool_use": "T",
    }


def test_a_hugging_face_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    config = parse_config({"executor": "torch", "torch": {"model_path": str(tmp_path)}})
    assert model_folder(config, tmp_path / "unused") == tmp_path


def test_another_executor_is_refused_by_name(tmp_path: Path) -> None:
    config = parse_config({"executor": "trtllm", "trtllm": {"model": "/model"}})
    with pytest.raises(ConfigError, match="trtllm"):
        model_folder(config, tmp_path)
