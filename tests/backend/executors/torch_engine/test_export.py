"""A Llama written out of a GGUF file is the library's, weight for weight and logit for logit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from backend.core.errors import ConfigError
from backend.executors.torch_engine.export import export_llama
from backend.text.model_files import ModelFiles
from tests.backend.executors.torch_engine.models import save_tiny_model
from tests.backend.executors.torch_engine.test_llama_config import LLAMA_3, library_model
from tests.backend.text.gguf_files import llama_fields, llama_tensors, write_gguf

LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({}, {}),
        ({"tie_word_embeddings": True}, {}),
        ({"rope_parameters": LINEAR}, {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}),
    ],
    ids=["plain", "tied", "linear rope"],
)
def test_the_library_gets_the_same_logits(changes: dict[str, Any], fields: dict[str, object], tmp_path: Path) -> None:
    model = library_model(save_tiny_model(tmp_path / "saved", num_hidden_layers=2, **changes))
    tensors = llama_tensors(model)
    path = write_gguf(tmp_path / "m.gguf", llama_fields(model.config) | fields, tensors)
    export_llama(ModelFiles(path), tmp_path / "written")
    written = library_model(tmp_path / "written")
    token_ids = torch.arange(3, 60)[None]
    assert torch.equal(written(token_ids).logits, model(token_ids).logits)
    assert written.config.eos_token_id == [2]


def test_scaling_that_differs_from_pair_to_pair_is_refused(tmp_path: Path) -> None:
    model = library_model(save_tiny_model(tmp_path / "saved", num_hidden_layers=2, rope_parameters=LLAMA_3))
    factors = {"rope_freqs.weight": torch.linspace(1.0, 8.0, model.config.head_dim // 2).numpy()}
    path = write_gguf(tmp_path / "m.gguf", llama_fields(model.config), llama_tensors(model) | factors)
    with pytest.raises(ConfigError, match="no plain Llama"):
        export_llama(ModelFiles(path), tmp_path / "written")
    assert not (tmp_path / "written").exists()
