"""The model as a Hugging Face directory, which is all that vLLM loads here: GGUF files are written out once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from backend.core.ownership import make_own_folder
from backend.executors.vllm.settings import VllmSettings
from backend.text.model_files import resolve_model

Progress = Callable[[str, float | None], None]


def model_directory(settings: VllmSettings, report: Progress) -> str | Path:
    """Return the model for vLLM to load. Raises ConfigError where it is a GGUF file of no plain Llama."""
    files = resolve_model(settings.model)
    if not files.is_gguf:
        return files.path
    folder = Path(settings.cache_dir) if settings.cache_dir else Path.home() / ".cache" / "bros"
    stat = files.path.stat()
    digest = hashlib.sha256(f"{files.path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    directory = folder / "vllm" / f"{files.path.stem}-{digest}"
    make_own_folder(directory)
    if not (directory / "config.json").is_file():
        report(f"writing {files.path.name} out as a Hugging Face directory", None)
        from backend.executors.torch_engine.export import export_llama  # imports torch

        export_llama(files, directory)
    return directory
