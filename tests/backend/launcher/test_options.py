"""The command line becomes the engine's configuration."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from backend.config import ExecutorKind, parse_config
from backend.core.errors import ConfigError
from backend.core.request import PriorityClass
from backend.launcher.endpoints import choose_endpoints
from backend.launcher.options import ENGINE_OPTIONS, engine_config, front_options, make_parser


def parse(tmp_path: Path, *arguments: str, text: str = "{}") -> dict[str, object]:
    file = tmp_path / "engine.json"
    file.write_text(text)
    return engine_config(make_parser().parse_args(["--config", str(file), *arguments]))


def test_named_options_reach_their_keys(tmp_path: Path) -> None:
    values = parse(tmp_path, "--executor", "sim", "--policy", "fcfs", "--default-class", "rt", "--ttft-slo-ms", "250")
    config = parse_config(values)
    assert config.executor is ExecutorKind.SIM
    assert config.scheduler.policy == "fcfs"
    assert config.service.default_class is PriorityClass.REAL_TIME
    assert config.service.ttft_slo_s == 0.25


def test_every_named_option_is_a_key_of_the_configuration(tmp_path: Path) -> None:
    for option in ENGINE_OPTIONS:
        text = option.choices[0] if option.choices else "17"
        given = parse_config(parse(tmp_path, option.flag, text))
        assert given != parse_config(parse(tmp_path)) or option.choices, option.flag


def test_the_command_line_wins_over_the_file_and_set_wins_over_all(tmp_path: Path) -> None:
    text = '{"scheduler": {"policy": "tgi", "be_min_share": 0.5}}'
    values = parse(tmp_path, "--policy", "fcfs", "--set", "scheduler.policy=priority", text=text)
    assert values == {"scheduler": {"policy": "priority", "be_min_share": 0.5}}


@pytest.mark.parametrize(
    ("text", "value"), [("0.2", 0.2), ("true", True), ("null", None), ("[1, 2]", [1, 2]), ("a", "a")]
)
def test_set_reads_json_and_takes_other_words_as_they_are(tmp_path: Path, text: str, value: object) -> None:
    assert parse(tmp_path, "--set", f"x.y={text}") == {"x": {"y": value}}


@pytest.mark.parametrize("arguments", [("--set", "policy"), ("--set", "executor.x=1", "--executor", "sim")])
def test_a_malformed_assignment_is_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        parse(tmp_path, *arguments)


def test_a_key_that_is_given_twice_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine\.json: executor: given twice"):
        parse(tmp_path, text='{"executor": "sim", "executor": "torch"}')
    with pytest.raises(ConfigError, match="seed: given twice"):
        parse(tmp_path, "--set", 'sim={"seed": 1, "seed": 2}')
    with pytest.raises(ConfigError, match="nested too deep"):
        parse(tmp_path, "--set", "sim=" + "[" * 100_000)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_configuration_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"engine\.json"):
        parse(tmp_path, text=text)


def test_a_port_in_use_is_named_with_the_option_that_changes_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"grpc port {port} on 127\.0\.0\.1: .*--grpc-port"):
            choose_endpoints("127.0.0.1", {"http": 0, "grpc": port, "metrics": 0})


def test_equal_ports_are_refused() -> None:
    with pytest.raises(ConfigError, match="not all different"):
        choose_endpoints("127.0.0.1", {"http": 9000, "grpc": 9000, "metrics": 0})


def test_port_zero_takes_different_free_ports() -> None:
    at = choose_endpoints("127.0.0.1", {"http": 0, "grpc": 0, "metrics": 0})
    assert len({at.http_port, at.grpc_port, at.metrics_port}) == 3


def test_further_names_of_the_front_door_reach_it(tmp_path: Path) -> None:
    names = ["--openai-allow-host", "chat.example.com", "--openai-allow-host", "chat.internal"]
    words = front_options(make_parser().parse_args(names), PriorityClass.BEST_EFFORT, tmp_path)
    assert words[-4:] == ["--allow-host", "chat.example.com", "--allow-host", "chat.internal"]


def test_proxies_that_may_name_clients_reach_the_front_door(tmp_path: Path) -> None:
    names = ["--openai-trust-proxy", "10.0.0.7", "--openai-trust-proxy", "10.1.0.0/16"]
    words = front_options(make_parser().parse_args(names), PriorityClass.BEST_EFFORT, tmp_path)
    assert words[-4:] == ["--trust-proxy", "10.0.0.7", "--trust-proxy", "10.1.0.0/16"]


@pytest.mark.parametrize("flag", ["--drain-timeout-s", "--start-timeout-s", "--canary-timeout-s", "--engine-timeout-s"])
@pytest.mark.parametrize("value", ["nan", "-1", "inf", "86401"])
def test_a_time_out_of_range_is_refused_by_name(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        make_parser().parse_args([f"{flag}={value}"])
    assert refusal.value.code == 2
    assert f"argument {flag}: {value} s is not in [0, 86400]" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--log-dir", "--openai-data-dir"])
def test_a_folder_has_a_name(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        make_parser().parse_args([flag, ""])
    assert refusal.value.code == 2
    assert f"argument {flag}: '' names no folder" in capsys.readouterr().err
