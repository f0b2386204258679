"""A file that is not all of a model is refused in words, wherever it was cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backend.core.errors import ConfigError
from backend.text.gguf_file import read_gguf
from backend.text.model_files import resolve_model
from tests.backend.text.gguf_files import write_gguf


@pytest.fixture(scope="module")
def head() -> bytes:
    """The header of the packaged model and a little of its first tensor."""
    whole = read_gguf(resolve_model(None).path)
    start = min(info.offset for info in whole.tensors.values())
    with whole.path.open("rb") as file:
        return file.read(start + 100)


@pytest.mark.parametrize("num_bytes", [0, 3, 4, 23, 24, 40, 99, 100_000, -101, -1])
def test_a_file_that_ends_early_is_one_clear_line(num_bytes: int, head: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(head[:num_bytes])
    with pytest.raises(ConfigError, match=r"^model '.*cut\.gguf' is (empty|cut short|not a GGUF file)[^\n]*$"):
        read_gguf(path)


def test_a_tensor_that_ends_early_is_named(head: bytes, tmp_path: Path) -> None:
    whole = read_gguf(resolve_model(None).path)
    first = min(whole.tensors.values(), key=lambda info: info.offset)
    (tmp_path / "cut.gguf").write_bytes(head)
    cut = type(whole)(tmp_path / "cut.gguf", whole.fields, whole.tensors)
    assert len(cut.read_bytes(first, 100)) == 100
    with pytest.raises(ConfigError, match=f"cut short: tensor '{first.name}' lies beyond its end"):
        cut.read_bytes(first, 101)


@pytest.mark.parametrize("position", range(4, 64, 7))
def test_a_damaged_header_is_one_clear_line_or_reads(position: int, head: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(head[:position] + b"\xff" * 8 + head[position + 8 :])
    with pytest.raises(ConfigError, match=r"^model '.*damaged\.gguf'[^\n]*$"):
        read_gguf(path)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (b"blk.0.attn_norm", b"blk.1.attn_norm", "the tensor 'blk.0.attn_norm.weight' comes twice"),
        (b"llama.block_count", b"llama.blockscount", "the field 'llama.block_count' comes twice"),
    ],
)
def test_a_name_that_comes_twice_is_refused(first: bytes, second: bytes, message: str, tmp_path: Path) -> None:
    """Else the last of the two would count, and llama.cpp refuses both."""
    fields = {"llama.block_count": 2, "llama.blockscount": 3}
    tensors = {f"blk.{index}.attn_norm.weight": np.ones(8) for index in range(2)}
    path = write_gguf(tmp_path / "m.gguf", fields, tensors)
    assert len(read_gguf(path).tensors) == 2
    path.write_bytes(path.read_bytes().replace(second, first))
    with pytest.raises(ConfigError, match=message):
        read_gguf(path)
