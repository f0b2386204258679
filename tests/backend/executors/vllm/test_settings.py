"""Settings: some pass through to vLLM; others are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.config import ConfigFile, engine_command, parse_config
from backend.core.errors import ConfigError
from backend.executors.vllm.settings import VllmSettings


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"model": ""}, "model"),
        ({"engine_args": {"model": "/other"}}, "engine_args: model"),
        ({"engine_args": {"scheduler_cls": "x", "scheduling_policy": "fcfs"}}, "scheduler_cls, scheduling_policy"),
    ],
)
def test_wrong_values_are_refused_by_name(fields: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        VllmSettings(**fields)  # type: ignore[arg-type]  # what an operator may write


def test_the_engine_runs_in_the_python_of_its_section() -> None:
    values = {"executor": "vllm", "vllm": {"python": "/opt/vllm/bin/python"}, "service": {"python": "/other/python"}}
    command, _ = engine_command(ConfigFile(Path("engine.json"), parse_config(values)), 3)
    assert command[0] == "/opt/vllm/bin/python"


def test_another_executor_does_not_run_in_vllms_python() -> None:
    values = {"executor": "sim", "vllm": {"python": "/opt/vllm/bin/python"}, "service": {"python": "/other/python"}}
    command, _ = engine_command(ConfigFile(Path("engine.json"), parse_config(values)), 3)
    assert command[0] == "/other/python"
