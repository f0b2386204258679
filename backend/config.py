"""The engine's configuration: `engine.json`, parsed once into frozen values. Environment variables are read only here.

    {"executor": "torch", "torch": {...}, "scheduler": {...}, "service": {...}}

Each part of the program gets only its own section. An unknown key or a wrong value raises ConfigError, which names the
key, the value and the values allowed. `python -m backend.config` prints docs/configuration.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from backend.core.errors import ConfigError
from backend.core.request import PriorityClass, Slo
from backend.executors.sim import SimSettings
from backend.executors.torch_engine.settings import TorchSettings
from backend.executors.trtllm.settings import TrtllmSettings
from backend.executors.vllm.settings import VllmSettings
from backend.policy.settings import SchedulerSettings

CONFIG_VARIABLE = "BROS_ENGINE_CONFIG"
MAX_SECONDS = 30 * 24 * 3600.0  # of a time that a request or a setting names; some timers end at 292 years
REPOSITORY_ROOT = Path(__file__).resolve().parent.parent
_DEFAULT_FILE = REPOSITORY_ROOT / "model_repository" / "bros" / "engine.json"
_MAX_PROMPT_BYTES = 10_000_000  # a token id takes up to five bytes on its way to the engine, in one frame of 64 MiB
_MAX_SOCKET_PATH_BYTES = 107  # sun_path of Linux, less its terminating zero


class ExecutorKind(StrEnum):
    """What runs the model: the built-in torch engine, vLLM, TensorRT-LLM, or a simulation that makes tokens up."""

    TORCH = "torch"
    VLLM = "vllm"
    TRTLLM = "trtllm"
    SIM = "sim"


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """How requests come in and tokens go out.

    Processes
        socket_path             Unix socket of the engine; None: one in the temporary directory, named after this file
        start_engine            a stub that finds no engine starts one (false where a launcher does)
        python                  interpreter of an engine that a stub starts; None: the stub's own
        unused_exit_s           an engine that a stub started ends when no stub was connected for so long
        drain_timeout_s         open requests get this long to finish after SIGTERM
    Requests
        default_class           class of a request that names none
        default_max_tokens      output tokens of a request that names no number
        ttft_slo_s, tpot_slo_s, itl_slo_s  objectives of real-time requests that name none; itl_slo_s None: no bound
        max_prompt_bytes        longest prompt text, or JSON of messages, that is looked at; also the most token ids
        max_waiting_prompt_bytes  prompts of one class that wait to be tokenised; beyond it requests are refused for now
        max_stop_words          stop words of one request
        max_stop_word_chars     characters of one stop word
        max_stop_token_ids      stop token ids of one request
        allow_inspect           answer requests for the engine's snapshot, which names all requests (`bros top`);
                                `bros-serve` sets it on a loopback address
    Output
        rt_coalesce_s, be_coalesce_s  tokens of a stream are sent together when the last were sent less long ago;
                                0: after every step. A response costs the same, however many tokens it carries
        max_unsent_bytes        output waiting for one stub. Beyond it the stub must read within two seconds, or
                                its requests are cancelled; at eight times as much they are cancelled at once
        cancel_poll_s           how often a stub asks Triton whether clients have gone, at most 0.1; answers take time
                                too, where an engine computes on all cores
        metrics_flush_s         how often metrics go to Triton
        step_file               file for a JSON line per step: what it computed, how long it took; None: none is written
    """

    socket_path: str | None = None
    start_engine: bool = True
    python: str | None = None
    unused_exit_s: float = 3.0
    drain_timeout_s: float = 20.0
    default_class: PriorityClass = PriorityClass.BEST_EFFORT
    default_max_tokens: int = 128
    ttft_slo_s: float = 1.0
    tpot_slo_s: float = 0.1
    itl_slo_s: float | None = None
    max_prompt_bytes: int = 1_000_000
    max_waiting_prompt_bytes: int = 64_000_000
    max_stop_words: int = 16
    max_stop_word_chars: int = 256
    max_stop_token_ids: int = 64
    allow_inspect: bool = False
    rt_coalesce_s: float = 0.0
    be_coalesce_s: float = 0.5
    max_unsent_bytes: int = 8_000_000
    cancel_poll_s: float = 0.05
    metrics_flush_s: float = 1.0
    step_file: str | None = None

    def __post_init__(self) -> None:
        for name in (
            "default_max_tokens",
            "max_prompt_bytes",
            "max_waiting_prompt_bytes",
            "max_stop_word_chars",
            "max_unsent_bytes",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"service.{name}: {getattr(self, name)} is below 1")
        if self.max_prompt_bytes > _MAX_PROMPT_BYTES:
            raise ConfigError(f"service.max_prompt_bytes: {self.max_prompt_bytes} is above {_MAX_PROMPT_BYTES}")
        for name in ("max_stop_words", "max_stop_token_ids"):
            if getattr(self, name) < 0:
                raise ConfigError(f"service.{name}: {getattr(self, name)} is below 0")
        for name in ("unused_exit_s", "ttft_slo_s", "tpot_slo_s", "itl_slo_s", "cancel_poll_s", "metrics_flush_s"):
            if (seconds := getattr(self, name)) is not None and not 0.0 < seconds <= MAX_SECONDS:
                raise ConfigError(
                    f"service.{name}: {seconds} is not a positive number of seconds up to {MAX_SECONDS:.0f}"
                )
        for name in ("rt_coalesce_s", "be_coalesce_s", "drain_timeout_s"):
            if not 0.0 <= getattr(self, name) <= MAX_SECONDS:
                raise ConfigError(
                    f"service.{name}: {getattr(self, name)} is not a number of seconds from 0 to {MAX_SECONDS:.0f}"
                )
        if self.cancel_poll_s > 0.1:
            raise ConfigError(f"service.cancel_poll_s: {self.cancel_poll_s} is above 0.1")
        if self.socket_path is not None and len(os.fsencode(self.socket_path)) > _MAX_SOCKET_PATH_BYTES:
            raise ConfigError(f"service.socket_path: {self.socket_path!r} exceeds {_MAX_SOCKET_PATH_BYTES} bytes")

    @property
    def coalesce_s(self) -> dict[PriorityClass, float]:
        return {PriorityClass.REAL_TIME: self.rt_coalesce_s, PriorityClass.BEST_EFFORT: self.be_coalesce_s}

    @property
    def default_slo(self) -> Slo:
        return Slo(self.ttft_slo_s, self.tpot_slo_s, self.itl_slo_s)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """All of `engine.json`. Only the section of the chosen `executor` is used of `torch`, `vllm`, `trtllm`, `sim`."""

    executor: ExecutorKind = ExecutorKind.TORCH
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    service: ServiceSettings = field(default_factory=ServiceSettings)
    torch: TorchSettings = field(default_factory=TorchSettings)
    vllm: VllmSettings = field(default_factory=VllmSettings)
    trtllm: TrtllmSettings | None = None
    sim: SimSettings = field(default_factory=SimSettings)

    def __post_init__(self) -> None:
        if self.executor is ExecutorKind.TRTLLM and self.trtllm is None:
            raise ConfigError("trtllm: this section is needed when executor is 'trtllm'")

    @property
    def engine_python(self) -> str | None:
        """The interpreter that the engine needs of its own; None: the one that starts it."""
        return self.vllm.python if self.executor is ExecutorKind.VLLM else None


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A configuration and the file it came from, which the engine process is pointed at."""

    path: Path
    config: EngineConfig

    @property
    def socket_path(self) -> Path:
        """Where the engine of this file listens."""
        if self.config.service.socket_path is not None:
            return Path(self.config.service.socket_path)
        digest = hashlib.sha256(os.fsencode(self.path.resolve())).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"bros-{os.getuid()}" / f"{digest}.sock"


def load_config(path: Path | None = None, model_directory: Path | None = None) -> ConfigFile:
    """Read the configuration from `path`, else from $BROS_ENGINE_CONFIG, else from `bros/engine.json` beside the model.

    `model_directory` is what Triton calls the model's repository; None stands for this checkout's. Raises ConfigError.
    """
    beside = _DEFAULT_FILE if model_directory is None else model_directory.parent / "bros" / "engine.json"
    chosen = path or Path(os.environ.get(CONFIG_VARIABLE) or beside)
    try:
        text = chosen.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {chosen}: {error}") from error
    try:
        return ConfigFile(chosen, parse_config(read_json(text)))
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"{chosen}: {error}") from error


def engine_command(file: ConfigFile, ready_fd: int) -> tuple[list[str], dict[str, str]]:
    """Return the command line and environment of an engine that a stub starts; see `backend.server.engine_process`.

    The interpreter that runs inside a stub is no program, so its installation's `python3` is taken.
    """
    own = Path(sys.prefix) / "bin" / "python3"
    python = file.config.engine_python or file.config.service.python or (str(own) if own.exists() else sys.executable)
    arguments = ["--config", str(file.path), "--exit-when-unused", "--ready-fd", str(ready_fd)]
    paths = [str(REPOSITORY_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return [python, "-m", "backend.server.engine_process", *arguments], {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
    }


def parse_config(values: object) -> EngineConfig:
    """Turn decoded JSON into a configuration. Raises ConfigError."""
    _refuse_unknown_keys(EngineConfig, values, "")
    try:
        return msgspec.convert(values, EngineConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from error


def read_json(text: str) -> object:
    """Return what JSON says that gives no key twice. Raises ValueError and ConfigError."""
    try:
        return json.loads(text, object_pairs_hook=_section)
    except RecursionError as error:
        raise ConfigError("lists and objects are nested too deep") from error


def _section(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object whose keys stand in it once; JSON itself takes the last of several. Raises ConfigError."""
    section = dict(pairs)
    if len(section) < len(pairs):
        names = [name for name, _ in pairs]
        raise ConfigError(f"{next(name for name in section if names.count(name) > 1)}: given twice")
    return section


def _refuse_unknown_keys(section: type[Any], values: object, where: str) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'the configuration'}: expected a JSON object, got {type(values).__name__}")
    hints = get_type_hints(section)
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{where + '.' if where else ''}{key}: unknown key; allowed: {', '.join(hints)}")
        if (inner := _section_class(hints[key])) is not None and value is not None:
            _refuse_unknown_keys(inner, value, f"{where}{key}")


def _section_class(hint: object) -> type[Any] | None:
    """Return the dataclass that a field holds (also `X | None`), None for plain values."""
    choices = getattr(hint, "__args__", (hint,))
    return next((choice for choice in choices if isinstance(choice, type) and is_dataclass(choice)), None)


def render_reference() -> str:
    """Return docs/configuration.md: every section, key, type and default, with the words of the docstrings."""
    lines = [
        "# Configuration",
        "",
        "Generated by `python -m backend.config` from the settings classes; a test compares. The engine reads one JSON",
        f"file: `model_repository/bros/engine.json`, or the one that `{CONFIG_VARIABLE}` names. Others are refused.",
        "",
    ]
    hints = get_type_hints(EngineConfig)
    lines += _render_section("Top level", EngineConfig)
    for item in fields(EngineConfig):
        if (section := _section_class(hints[item.name])) is not None:
            lines += _render_section(f"`{item.name}`", section)
    return "\n".join(lines).rstrip() + "\n"


def _render_section(title: str, section: type[Any]) -> list[str]:
    hints = get_type_hints(section)
    rows = [f"| `{f.name}` | {_type_words(hints[f.name])} | {_default_words(f)} |" for f in fields(section)]
    words = (section.__doc__ or "").strip().splitlines()
    text = [
        words[0],
        *(["", "```text", *(line.removeprefix("    ") for line in words[2:]), "```"] if words[2:] else []),
    ]
    return [f"## {title}", "", *text, "", "| key | type | default |", "|---|---|---|", *rows, ""]


def _type_words(hint: Any) -> str:
    if isinstance(hint, type) and issubclass(hint, Enum):
        return ", ".join(f"`{member.value}`" for member in hint)
    if (section := _section_class(hint)) is not None:
        return f"object ({section.__name__})"
    name = hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)
    return f"`{name.replace('collections.abc.', '')}`".replace("|", "\\|")


def _default_words(item: Any) -> str:
    if item.default_factory is not MISSING:
        return "its defaults"
    if item.default is MISSING:
        return "required"
    value = item.default.value if isinstance(item.default, Enum) else item.default
    return f"`{json.dumps(value)}`"


if __name__ == "__main__":
    print(render_reference(), end="")
