"""What a model's files set for the library's generate, and the engine leaves out, is said at load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backend.executors.torch_engine.generation_defaults import _CHANGES_GREEDY, warn_of_ignored
from backend.text.model_files import ModelFiles
from tests.backend.executors.torch_engine.models import save_tiny_model
from tests.backend.executors.torch_engine.test_families import settings_for
from tests.backend.executors.torch_engine.test_loader import load_quietly


def test_loading_warns_of_each_setting_that_changes_greedy_tokens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = save_tiny_model(tmp_path, num_hidden_layers=1)
    config = {"eos_token_id": 2, "repetition_penalty": 1.05, "suppress_tokens": list(range(900)), "temperature": 0.7}
    (directory / "generation_config.json").write_text(json.dumps(config))
    load_quietly(settings_for(directory))
    (message,) = [record.getMessage() for record in caplog.records if "ignores" in record.getMessage()]
    assert "repetition_penalty 1.05 (a request's own 'repetition_penalty' does it); suppress_tokens [0, 1, " in message
    assert "temperature" not in message
    assert len(message) < 400


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("key", _CHANGES_GREEDY)
def test_each_setting_is_named_in_either_file_unless_it_is_neutral(
    key: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    neutral, _ = _CHANGES_GREEDY[key]
    for value in (None, neutral):
        (tmp_path / name).write_text(json.dumps({key: value, "max_length": 20}))
        warn_of_ignored(ModelFiles(tmp_path))
    assert caplog.text == ""
    (tmp_path / name).write_text(json.dumps({key: 7}))
    warn_of_ignored(ModelFiles(tmp_path))
    assert f"{key} 7" in caplog.text


def test_gguf_file_sets_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"repetition_penalty": 2.0}))
    warn_of_ignored(ModelFiles(tmp_path / "model.gguf"))
    assert caplog.text == ""


def test_every_setting_is_one_of_the_librarys() -> None:
    from transformers import GenerationConfig

    assert _CHANGES_GREEDY.keys() <= {*vars(GenerationConfig()), "penalty_alpha", "dola_layers", "constraints"} | {
        "force_words_ids"
    }
