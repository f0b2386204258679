"""engine.json is parsed once, strictly, into frozen values."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from backend.config import (
    CONFIG_VARIABLE,
    REPOSITORY_ROOT,
    ConfigFile,
    EngineConfig,
    ExecutorKind,
    ServiceSettings,
    engine_command,
    load_config,
    parse_config,
    render_reference,
)
from backend.core.errors import ConfigError
from backend.core.request import PriorityClass


def test_an_empty_object_gives_every_default() -> None:
    assert parse_config({}) == EngineConfig()


def test_each_section_gets_its_own_values() -> None:
    values = {
        "executor": "sim",
        "sim": {"seed": 3, "coefficients": [0, 0, 0, 0, 0]},
        "scheduler": {"policy": "fcfs"},
        "service": {"default_class": "rt", "ttft_slo_s": 0.5},
        "torch": {"dtype": "bf16"},
    }
    config = parse_config(values)
    assert config.executor is ExecutorKind.SIM
    assert config.sim.seed == 3
    assert config.scheduler.policy == "fcfs"
    assert config.service.default_class is PriorityClass.REAL_TIME
    assert config.service.default_slo.ttft_slo_s == 0.5
    assert config.torch.dtype == "bf16"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"engine": 1}, "engine: unknown key; allowed: executor, scheduler, service"),
        ({"service": {"port": 1}}, "service.port: unknown key; allowed: socket_path"),
        ({"trtllm": {"modle": "x"}}, "trtllm.modle: unknown key; allowed: model, mode"),
        ({"executor": "other"}, "'other' - at `$.executor`"),
        ({"executor": "trtllm"}, "trtllm: this section is needed"),
        ({"service": {"default_class": "gold"}}, "'gold' - at `$.service.default_class`"),
        ({"service": {"ttft_slo_s": "1"}}, "Expected `float`, got `str` - at `$.service.ttft_slo_s`"),
        ({"service": {"ttft_slo_s": 0}}, "service.ttft_slo_s: 0.0 is not a positive number"),
        ({"service": {"cancel_poll_s": 0.5}}, "service.cancel_poll_s: 0.5 is above 0.1"),
        ({"service": {"be_coalesce_s": -0.1}}, "service.be_coalesce_s: -0.1 is not a number of seconds"),
        (
            {"service": {"be_coalesce_s": 1e10}},
            "service.be_coalesce_s: 10000000000.0 is not a number of seconds from 0",
        ),
        ({"service": {"metrics_flush_s": 1e10}}, "is not a positive number of seconds up to 2592000"),
        ({"service": {"drain_timeout_s": 1e10}}, "is not a number of seconds from 0 to 2592000"),
        ({"torch": {"kv_gib": 1e300}}, "torch.kv_gib: 1e+300 is not in (0, 1048576]"),
        ({"torch": {"host_kv_gib": 1e300}}, "torch.host_kv_gib: 1e+300 is not in [0, 1048576]"),
        ({"torch": {"num_threads": 10**12}}, "torch.num_threads: 1000000000000 is not from 0 to 4096"),
        ({"service": {"itl_slo_s": 0}}, "service.itl_slo_s: 0.0 is not a positive number"),
        ({"service": {"itl_slo_s": float("nan")}}, "service.itl_slo_s: nan is not a positive number"),
        ({"service": {"drain_timeout_s": -1}}, "service.drain_timeout_s: -1.0 is not a number of seconds"),
        ({"service": {"max_stop_words": -1}}, "service.max_stop_words: -1 is below 0"),
        ({"service": {"max_stop_token_ids": -1}}, "service.max_stop_token_ids: -1 is below 0"),
        ({"scheduler": {"responsiveness_cap_s": float("nan")}}, "responsiveness_cap_s: nan is not above 0 and finite"),
        ({"scheduler": {"waiting_served_ratio": float("inf")}}, "waiting_served_ratio: inf is not above 0 and finite"),
        ({"scheduler": {"latency_coefficients": [0, 0, 0, 0, 0, float("nan")]}}, "latency_coefficients: (0.0, 0.0"),
        ({"service": {"max_prompt_bytes": 0}}, "service.max_prompt_bytes: 0 is below 1"),
        ({"service": {"max_prompt_bytes": 10_000_001}}, "service.max_prompt_bytes: 10000001 is above 10000000"),
        ({"service": {"socket_path": "/" + "x" * 200}}, "exceeds 107 bytes"),
        ({"service": 5}, "service: expected a JSON object, got int"),
        ({"scheduler": {"policy": "best"}}, "policy: 'best' is not one of bros, fcfs"),
        ({"torch": {"num_threads": -1}}, "torch.num_threads: -1 is not from 0 to 4096"),
        ([], "the configuration: expected a JSON object, got list"),
    ],
    ids=str,
)
def test_a_wrong_configuration_is_refused_by_name_value_and_what_is_allowed(values: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_config(values)
    assert message in str(refusal.value)


def write(path: Path, values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def test_the_file_is_the_one_given_else_the_variables_else_the_one_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = write(tmp_path / "given.json", {"sim": {"seed": 1}})
    named = write(tmp_path / "named.json", {"sim": {"seed": 2}})
    write(tmp_path / "models" / "bros" / "engine.json", {"sim": {"seed": 3}})
    model_directory = tmp_path / "models" / "bros_rt"
    monkeypatch.setenv(CONFIG_VARIABLE, str(named))
    assert load_config(given, model_directory).config.sim.seed == 1
    assert load_config(None, model_directory).config.sim.seed == 2
    monkeypatch.delenv(CONFIG_VARIABLE)
    assert load_config(None, model_directory).config.sim.seed == 3


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"executor": NaN}', "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")]
)
def test_an_unreadable_file_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "engine.json", text)
    with pytest.raises(ConfigError, match=r"engine\.json"):
        load_config(path)
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(tmp_path / "none.json")


def test_a_key_that_stands_twice_is_refused_by_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "engine.json", '{"sim": {"seed": 1, "num_blocks": 8, "seed": 2}}')
    with pytest.raises(ConfigError, match="seed: given twice"):
        load_config(path)


def test_what_is_nested_too_deep_is_refused_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "engine.json", "[" * 100_000)
    with pytest.raises(ConfigError, match=r"engine\.json: lists and objects are nested too deep$"):
        load_config(path)


def test_each_file_has_a_socket_of_its_own_unless_it_names_one(tmp_path: Path) -> None:
    one, two = ConfigFile(tmp_path / "a.json", EngineConfig()), ConfigFile(tmp_path / "b.json", EngineConfig())
    assert one.socket_path != two.socket_path
    assert one.socket_path == ConfigFile(tmp_path / "a.json", EngineConfig()).socket_path
    assert len(str(one.socket_path)) < 107
    named = EngineConfig(service=ServiceSettings(socket_path="/run/bros.sock"))
    assert ConfigFile(tmp_path / "a.json", named).socket_path == Path("/run/bros.sock")


def test_an_engine_that_a_stub_starts_finds_the_code_and_the_file(tmp_path: Path) -> None:
    file = ConfigFile(tmp_path / "a.json", EngineConfig(service=ServiceSettings(python="/usr/bin/python9")))
    arguments, environment = engine_command(file, ready_fd=7)
    assert arguments[:3] == ["/usr/bin/python9", "-m", "backend.server.engine_process"]
    assert str(file.path) in arguments
    assert environment["PYTHONPATH"].split(":")[0] == str(REPOSITORY_ROOT)


def test_the_shipped_configuration_is_valid() -> None:
    assert (
        load_config(REPOSITORY_ROOT / "model_repository" / "bros" / "engine.json").config.executor is ExecutorKind.TORCH
    )


def test_every_service_setting_is_explained() -> None:
    words = (ServiceSettings.__doc__ or "").split()
    unexplained = [
        item.name for item in dataclasses.fields(ServiceSettings) if not {item.name, f"{item.name},"} & set(words)
    ]
    assert not unexplained


def test_the_reference_is_what_the_settings_say() -> None:
    written = (REPOSITORY_ROOT / "docs" / "configuration.md").read_text()
    assert written == render_reference(), "run: python -m backend.config > docs/configuration.md"
