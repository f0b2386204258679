"""Finds the tensors of a directory of safetensors files, in the order that `transformers` looks for them.

`model.safetensors` comes first. Without it, the index names the shards. The library then reads every tensor of those
shards, wherever the index says that it lies. It takes the last of two with one name; such a directory is refused here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from backend.core.errors import ConfigError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
DTYPES = ("F64", "F32", "F16", "BF16")  # as safetensors spells them


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies, and its shape and dtype."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def read_headers(directory: Path) -> dict[str, Entry]:
    """Return the tensors by name. Raises ConfigError where a file is absent or damaged, or a name comes twice."""
    if (directory / SINGLE).is_file():
        return _entries([directory / SINGLE])
    if not (directory / INDEX).is_file():
        raise ConfigError(f"model {str(directory)!r} has no {SINGLE}")
    return _entries([directory / name for name in _shards(directory / INDEX)])


def require_plain_folder(directory: Path) -> None:
    """Raise ConfigError where the library would read one tensor twice, or put an adapter on top."""
    if (directory / ADAPTER).is_file():
        raise ConfigError(f"model {str(directory)!r} holds an adapter ({ADAPTER}): merge it into the weights first")
    if (directory / INDEX).is_file():
        read_headers(directory)


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values()))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{str(index)!r} has no 'weight_map' from tensors to files: {error}") from error


def _entries(files: Iterable[Path]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in _read_header(file).items():
            if name in entries:
                raise ConfigError(
                    f"model {str(file.parent)!r}: tensor {name!r} is in two files, {entries[name].file.name!r} and "
                    f"{file.name!r}"
                )
            entries[name] = entry
    return entries


def _read_header(file: Path) -> dict[str, Entry]:
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(file):  # a Path raises for a name that is too long
        raise ConfigError(f"model {str(file.parent)!r}: {INDEX} names the file {file.name[:60]!r}, which is absent")
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
            return {name: Entry(file, tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except SafetensorError as error:
        raise ConfigError(f"model {str(file)!r} is cut short or damaged: {error}") from error
