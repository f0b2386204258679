"""The command line of `bros-serve`, and how its options become the engine's configuration."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.config import REPOSITORY_ROOT, ExecutorKind, ServiceSettings, read_json
from backend.core.errors import ConfigError
from backend.core.request import PriorityClass
from backend.executors.torch_engine.settings import Dtype, TorchSettings
from backend.policy.settings import POLICY_NAMES, SchedulerSettings

MILLISECONDS_PER_SECOND = 1e3
MAX_TIMEOUT_S = 86_400.0
_MAX_GIB = 1_048_576.0


@dataclass(frozen=True, slots=True)
class EngineOption:
    """An option that stands for one key of the engine's configuration; `scale` divides what the user gives."""

    flag: str
    key: str
    parse: type
    help: str
    choices: tuple[str, ...] | None = None
    scale: float | None = None


_SERVICE, _TORCH, _SCHEDULER = ServiceSettings(), TorchSettings(), SchedulerSettings()

ENGINE_OPTIONS = (
    EngineOption("--executor", "executor", str, "what runs the model (default: torch)", tuple(ExecutorKind)),
    EngineOption(
        "--model", "torch.model_path", str, "Hugging Face directory or GGUF file (default: SmolLM2-135M-Instruct)"
    ),
    EngineOption("--dtype", "torch.dtype", str, f"arithmetic (default: {_TORCH.dtype})", tuple(Dtype)),
    EngineOption("--threads", "torch.num_threads", int, "CPU threads of the engine (default: all cores)"),
    EngineOption("--kv-gib", "torch.kv_gib", float, "KV cache in GiB (default: a share of the free memory)"),
    EngineOption("--kv-tokens", "torch.num_kv_tokens", int, "KV cache in tokens, instead of --kv-gib"),
    EngineOption("--policy", "scheduler.policy", str, f"scheduler (default: {_SCHEDULER.policy})", POLICY_NAMES),
    EngineOption(
        "--default-class",
        "service.default_class",
        str,
        f"class of requests that name none (default: {_SERVICE.default_class.value})",
        tuple(each.value for each in PriorityClass),
    ),
    EngineOption(
        "--ttft-slo-ms",
        "service.ttft_slo_s",
        float,
        f"RT: default time to first token, ms (default: {_SERVICE.ttft_slo_s * MILLISECONDS_PER_SECOND:g})",
        scale=MILLISECONDS_PER_SECOND,
    ),
    EngineOption(
        "--tpot-slo-ms",
        "service.tpot_slo_s",
        float,
        f"RT: default time per output token, ms (default: {_SERVICE.tpot_slo_s * MILLISECONDS_PER_SECOND:g})",
        scale=MILLISECONDS_PER_SECOND,
    ),
)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `bros-serve`."""
    parser = argparse.ArgumentParser(
        prog="bros-serve", description="Serve a model through Triton: real-time and best-effort requests on one engine."
    )
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        words = f"{name} port, 0 for any free one (default: %(default)s)"
        server.add_argument(f"--{name}-port", type=int, default=port, metavar="PORT", help=words)
    _add_front_options(server)
    server.add_argument(
        "--tritonserver", metavar="FILE", help="server to run (default: on PATH, else the embedded one)"
    )
    server.add_argument(
        "--model-repository",
        type=Path,
        default=REPOSITORY_ROOT / "model_repository",
        metavar="DIR",
        help="Triton model repository (default: this checkout's)",
    )
    server.add_argument(
        "--drain-timeout-s",
        type=_seconds,
        default=20.0,
        metavar="S",
        help="for open requests at stop (default: %(default)s)",
    )
    server.add_argument(
        "--start-timeout-s", type=_seconds, default=300.0, metavar="S", help="to become ready (default: %(default)s)"
    )
    server.add_argument(
        "--canary-timeout-s",
        type=_seconds,
        default=10.0,
        metavar="S",
        help="start Triton again when a model gives no sign of life for so long, or the front door six times as long; "
        "0: never (default: %(default)s)",
    )
    server.add_argument(
        "--engine-timeout-s",
        type=_seconds,
        default=120.0,
        metavar="S",
        help="start the engine again when it ends no step for so long; 0: never (default: %(default)s)",
    )
    server.add_argument(
        "--triton-memory-gib",
        type=_gib,
        metavar="GIB",
        help="start Triton again when it takes more; 0: never (default: a quarter of the machine or container)",
    )
    server.add_argument("--log-dir", type=_folder, metavar="DIR", help="keep logs there (default: removed at stop)")
    server.add_argument("--json", action="store_true", help="when ready, print addresses as a line of JSON on stdout")
    server.add_argument(
        "--die-with-parent", action="store_true", help="stop when the process that started this one ends"
    )
    engine = parser.add_argument_group("engine", "These win over --config, in order. See docs/configuration.md.")
    engine.add_argument("--config", type=Path, metavar="FILE", help="engine.json to start from")
    for option in ENGINE_OPTIONS:
        engine.add_argument(option.flag, type=option.parse, choices=option.choices, help=option.help)
    engine.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any other key, e.g. scheduler.be_min_share=0.1"
    )
    return parser


def _add_front_options(server: argparse._ArgumentGroup) -> None:
    server.add_argument(
        "--openai-port",
        type=_port_or_off,
        default=8080,
        metavar="PORT",
        help="port of OpenAI's API, 0 for any free one, or off (default: %(default)s)",
    )
    server.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="JSON, OpenAI API key -> allowed tiers (default: no keys)"
    )
    server.add_argument(
        "--openai-allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name under which OpenAI's API is reached, e.g. that of a proxy; may be given several times",
    )
    server.add_argument(
        "--openai-trust-proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="a proxy, or a network of them, whose X-Forwarded-For names the client; may be given several times",
    )
    server.add_argument(
        "--openai-data-dir",
        type=_folder,
        metavar="DIR",
        help="files and batches of OpenAI's API (default: ~/.local/state/bros/openai-PORT; port 0: gone at stop)",
    )


def _folder(word: str) -> Path:
    """Read a folder. An empty word, as of an unset variable, would be the current one."""
    if not word:
        raise argparse.ArgumentTypeError("'' names no folder")
    return Path(word)


def _seconds(word: str) -> float:
    """Read a time; NaN fails the comparison."""
    return _up_to(MAX_TIMEOUT_S, word, "s")


def _gib(word: str) -> float:
    """Read a size; NaN fails the comparison."""
    return _up_to(_MAX_GIB, word, "GiB")


def _up_to(most: float, word: str, unit: str) -> float:
    value = float(word)
    if not 0.0 <= value <= most:
        raise argparse.ArgumentTypeError(f"{word} {unit} is not in [0, {most:g}]")
    return value


def _port_or_off(word: str) -> int | None:
    return None if word == "off" else int(word)


def front_options(options: argparse.Namespace, default_class: PriorityClass, run_directory: Path) -> list[str]:
    """Return the options of `bros-openai` that follow from those of `bros-serve`. Raises ConfigError."""
    data_dir = options.openai_data_dir or _usual_data_dir(options, run_directory)
    words = ["--default-class", default_class.value, "--data-dir", str(data_dir.absolute())]
    words += [word for name in options.openai_allow_host for word in ("--allow-host", name)]
    words += [word for name in options.openai_trust_proxy for word in ("--trust-proxy", name)]
    if options.api_key_file is None:
        return words
    if not options.api_key_file.is_file():
        raise ConfigError(f"--api-key-file: {str(options.api_key_file)!r} is no file")
    return [*words, "--api-key-file", str(options.api_key_file.absolute())]


def _usual_data_dir(options: argparse.Namespace, run_directory: Path) -> Path:
    """Return where files and batches lie unless told otherwise: by port, since one process at a time owns them."""
    if not options.openai_port:
        return run_directory / "openai"
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "bros" / f"openai-{options.openai_port}"


def engine_config(options: argparse.Namespace) -> dict[str, Any]:
    """Return the contents of engine.json: --config, then the named options, then --set. Raises ConfigError."""
    path = options.config or options.model_repository / "bros" / "engine.json"
    values = _read(path)
    for option in ENGINE_OPTIONS:
        given = getattr(options, option.flag.removeprefix("--").replace("-", "_"))
        if given is not None:
            _put(values, option.key, given / option.scale if option.scale else given)
    for assignment in options.set:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(f"--set {assignment!r}: write KEY=VALUE")
        _put(values, key, _parse_value(text))
    return values


def _read(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    return values


def _parse_value(text: str) -> object:
    """Read JSON where it is JSON (numbers, true, null, lists), else take the words as they are."""
    try:
        return read_json(text)
    except ValueError:
        return text


def _put(values: dict[str, Any], key: str, value: object) -> None:
    *sections, name = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, Mapping):
            raise ConfigError(f"{key}: {section!r} is not a section")
        values = values[section]
    values[name] = value
