"""The names on the wire are the same in `backend.wire.names` and in the configuration of the three models."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from backend.config import REPOSITORY_ROOT
from backend.wire import names as wire

REPOSITORY = REPOSITORY_ROOT / "model_repository"
_TENSOR = re.compile(r'{ name: "(\w+)" data_type: TYPE_(\w+) dims: \[ (-?\d+) \]( optional: true)? }')
_PARAMETER = re.compile(r'parameters { key: "(\w+)" value { string_value: "(\w+)" } }')


def tensors(model: str, kind: str) -> list[tuple[str, str, int]]:
    """Return name, type and length of the inputs or outputs in a model's config.pbtxt, in order."""
    text = (REPOSITORY / model / "config.pbtxt").read_text()
    section = text[re.search(rf"^{kind} \[$", text, re.MULTILINE).end() :]  # type: ignore[union-attr]
    section = section[: section.index("\n]\n")]
    return [(name, dtype, int(dims)) for name, dtype, dims, _ in _TENSOR.findall(section)]


def settings(model: str) -> dict[str, str]:
    return dict(_PARAMETER.findall((REPOSITORY / model / "config.pbtxt").read_text()))


@pytest.mark.parametrize("model", wire.MODELS)
def test_config_pbtxt_declares_exactly_the_table(model: str) -> None:
    assert tensors(model, "input") == [(field.name, field.dtype, field.dims) for field in wire.INPUTS]
    assert tensors(model, "output") == [(field.name, field.dtype, field.dims) for field in wire.OUTPUTS]


@pytest.mark.parametrize("model", wire.MODELS)
def test_every_input_is_optional(model: str) -> None:
    text = (REPOSITORY / model / "config.pbtxt").read_text()
    assert text.count("optional: true") == len(wire.INPUTS)


def test_the_comments_of_bros_are_the_tables_words() -> None:
    text = (REPOSITORY / "bros" / "config.pbtxt").read_text()
    for field in (*wire.INPUTS, *wire.OUTPUTS):
        assert f'  # {field.doc}\n  {{ name: "{field.name}"' in text


@pytest.mark.parametrize(("model", "priority_class"), wire.MODELS.items())
def test_a_models_class_stands_in_its_config(model: str, priority_class: str) -> None:
    assert settings(model)[wire.MODEL_CLASS] == priority_class
    assert settings(model)[wire.MODEL_MAX_INFLIGHT].isdecimal()


def test_exactly_one_model_reports_metrics() -> None:
    assert [settings(model)[wire.MODEL_REPORTS_METRICS] for model in wire.MODELS].count("true") == 1


def test_only_best_effort_has_a_queue_of_tritons() -> None:
    queued = [m for m in wire.MODELS if "\ndynamic_batching {" in (REPOSITORY / m / "config.pbtxt").read_text()]
    assert queued == ["bros_be"]


def test_every_alias_is_of_the_same_type_as_its_field() -> None:
    fields = wire.input_names()
    for field in wire.INPUTS:
        if field.alias_of is not None:
            assert (field.dtype, field.dims) == (fields[field.alias_of].dtype, fields[field.alias_of].dims)


def test_a_stub_needs_no_torch() -> None:
    """Nothing heavy is imported by what runs inside Triton, so that three stubs stay small and start at once."""
    modules = "backend.link.engine_link, backend.link.validate, backend.stub.triton_metrics"
    code = f"import sys, {modules}; print(*sys.modules, sep='\\n')"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=True
    )
    assert not {"torch", "transformers", "tokenizers", "numba"} & set(loaded.stdout.split())


def test_engine_json_lies_beside_the_model() -> None:
    assert json.loads((REPOSITORY / "bros" / "engine.json").read_text())
