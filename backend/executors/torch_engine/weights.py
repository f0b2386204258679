"""Reads a model's tensors under their Hugging Face names, from a safetensors directory or a GGUF file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from backend.core.errors import ConfigError
from backend.executors.torch_engine.safetensors_files import DTYPES, read_headers
from backend.text.gguf_file import GGUFFile, TensorInfo

_Q4_1, _F32, _F16 = 3, 0, 1  # gguf.GGMLQuantizationType
_Q4_1_BLOCK, _Q4_1_BYTES = 32, 20
_Q8_0, _Q8_0_BLOCK, _Q8_0_BYTES = 8, 32, 34

_GGUF_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GGUF_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_tensor_names(num_layers: int) -> set[str]:
    """Return the names of all tensors that `GGUFSource` reads of a model of `num_layers` layers."""
    layers = {f"blk.{i}.{part}.weight" for i in range(num_layers) for part in _GGUF_LAYER_NAMES.values()}
    return layers | {f"{name}.weight" for name in _GGUF_NAMES.values()}


@dataclass(frozen=True, slots=True)
class Quantised:
    """A 4-bit matrix [rows, columns]: value = codes * scales + minima, the last two per 32 columns of a row.

    codes: uint8 [rows, columns], 0 to 15; scales, minima: float32 [rows, columns / 32].
    """

    codes: torch.Tensor
    scales: torch.Tensor
    minima: torch.Tensor

    def dense(self) -> torch.Tensor:
        """Return the float32 matrix."""
        groups = self.codes.view(*self.scales.shape, _Q4_1_BLOCK).float()
        return groups.mul_(self.scales[..., None]).add_(self.minima[..., None]).view(self.codes.shape)


@dataclass(frozen=True, slots=True)
class EightBit:
    """An 8-bit matrix: value = codes * scales; codes int8 [rows, columns], scales float32 [rows, columns / 32]."""

    codes: torch.Tensor
    scales: torch.Tensor

    def dense(self) -> torch.Tensor:
        """Return the float32 matrix."""
        groups = self.codes.view(*self.scales.shape, _Q8_0_BLOCK).float()
        return groups.mul_(self.scales[..., None]).view(self.codes.shape)


def stack(parts: Sequence[Quantised | EightBit | None]) -> Quantised | EightBit | None:
    """Put matrices of equal width on top of each other; None where they are not all of the same format."""
    four_bit = [part for part in parts if isinstance(part, Quantised)]
    if len(four_bit) == len(parts):
        fields = (torch.cat([getattr(part, name) for part in four_bit]) for name in ("codes", "scales", "minima"))
        return Quantised(*fields)
    eight_bit = [part for part in parts if isinstance(part, EightBit)]
    if len(eight_bit) == len(parts):
        return EightBit(*(torch.cat([getattr(part, name) for part in eight_bit]) for name in ("codes", "scales")))
    return None


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as its file holds it: the name there, the shape, and in `where` the file or the directory."""

    name: str
    shape: tuple[int, ...]
    where: str

    def __str__(self) -> str:
        return f"model {self.where!r}: tensor {self.name!r}"


class TensorSource(Protocol):
    """Tensors by Hugging Face name."""

    def stored(self, name: str) -> Stored:
        """Return what the header says of a tensor. Raises ConfigError where it is absent, or of a dtype not read."""
        ...

    def dense(self, name: str) -> torch.Tensor:
        """Return a tensor in the dtype it is stored in, float32 where it is stored quantised. Raises ConfigError."""
        ...

    def codes(self, name: str) -> Quantised | EightBit | None:
        """Return a 4-bit or 8-bit tensor as it is stored; None where it is stored otherwise."""
        ...


class GGUFSource:
    """The tensors of a GGUF file. `num_heads` and `num_kv_heads` undo llama.cpp's interleaving of rotary pairs."""

    def __init__(self, gguf: GGUFFile, num_heads: int, num_kv_heads: int) -> None:
        self._gguf = gguf
        self._heads = {"attn_q": num_heads, "attn_k": num_kv_heads}

    def stored(self, name: str) -> Stored:
        return _named(self._gguf, self._info(name))

    def dense(self, name: str) -> torch.Tensor:
        codes = self.codes(name)
        if codes is not None:
            return codes.dense()
        info = self._info(name)
        return self._in_library_order(info, _dequantise(self._gguf, info))

    def codes(self, name: str) -> Quantised | EightBit | None:
        info = self._info(name)
        if info.type_id == _Q4_1:
            four_bit = read_q4_1(self._gguf, info)
            parts = (four_bit.codes, four_bit.scales, four_bit.minima)
            return Quantised(*(self._in_library_order(info, part) for part in parts))
        if info.type_id == _Q8_0:
            eight_bit = read_q8_0(self._gguf, info)
            return EightBit(*(self._in_library_order(info, part) for part in (eight_bit.codes, eight_bit.scales)))
        return None

    def _info(self, name: str) -> TensorInfo:
        stem, _, kind = name.rpartition(".")
        if stem.startswith("model.layers."):
            _, _, index, part = stem.split(".", 3)
            key = f"blk.{index}.{_GGUF_LAYER_NAMES[part]}.{kind}"
        else:
            key = f"{_GGUF_NAMES[stem]}.{kind}"
        if key not in self._gguf.tensors:
            raise ConfigError(f"model {str(self._gguf.path)!r} has no tensor {key!r}")
        return self._gguf.tensors[key]

    def _in_library_order(self, info: TensorInfo, rows: torch.Tensor) -> torch.Tensor:
        """llama.cpp stores the two halves of each q and k head interleaved; the library wants one after the other."""
        num_heads = self._heads.get(info.name.split(".")[-2])
        if num_heads is None:
            return rows
        return rows.view(num_heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


class DirectorySource:
    """The tensors of a directory of safetensors files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._entries = read_headers(directory)

    @property
    def names(self) -> set[str]:
        """The names of all tensors in the files."""
        return set(self._entries)

    def has_own_head(self) -> bool:
        """True where the file has a head that is not the embedding; the library then ties neither, whatever is said."""
        if "lm_head.weight" not in self._entries:
            return False
        head, embedding = self.dense("lm_head.weight"), self.dense("model.embed_tokens.weight")
        dtype = torch.promote_types(head.dtype, embedding.dtype)
        return not torch.equal(head.to(dtype), embedding.to(dtype))

    def stored(self, name: str) -> Stored:
        entry = self._entries.get(name)
        if entry is None:
            raise ConfigError(f"model {str(self._directory)!r} has no tensor {name!r}")
        stored = Stored(name, entry.shape, str(self._directory))
        if entry.dtype not in DTYPES:
            raise ConfigError(f"{stored} is stored as {entry.dtype}; supported are {', '.join(DTYPES)}")
        return stored

    def dense(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        self.stored(name)
        with safe_open(self._entries[name].file, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor.clone()  # of the mapped file, which may be written anew while we serve

    def codes(self, name: str) -> Quantised | EightBit | None:  # noqa: ARG002 - a directory's tensors are dense
        return None


def read_q4_1(gguf: GGUFFile, info: TensorInfo) -> Quantised:
    """Read a Q4_1 tensor: blocks of 32 values, as scale and minimum (float16) and 16 bytes of two codes each."""
    num_rows, num_groups = _rows_and_groups(gguf, info, _Q4_1_BLOCK)
    raw = torch.from_numpy(gguf.read_bytes(info, num_rows * num_groups * _Q4_1_BYTES).copy())
    blocks = raw.view(num_rows, num_groups, _Q4_1_BYTES)
    halves = blocks[..., :4].contiguous().view(torch.float16).float()
    pairs = blocks[..., 4:]
    codes = torch.cat([pairs & 0xF, pairs >> 4], -1).view(info.shape)
    return Quantised(codes, halves[..., 0].contiguous(), halves[..., 1].contiguous())


def read_q8_0(gguf: GGUFFile, info: TensorInfo) -> EightBit:
    """Read a Q8_0 tensor: blocks of 32 signed bytes after their scale (float16)."""
    num_rows, num_groups = _rows_and_groups(gguf, info, _Q8_0_BLOCK)
    raw = torch.from_numpy(gguf.read_bytes(info, num_rows * num_groups * _Q8_0_BYTES).copy())
    blocks = raw.view(num_rows, num_groups, _Q8_0_BYTES)
    scales = blocks[..., :2].contiguous().view(torch.float16).float().view(num_rows, num_groups)
    return EightBit(blocks[..., 2:].contiguous().view(torch.int8).view(info.shape), scales)


def _rows_and_groups(gguf: GGUFFile, info: TensorInfo, block_size: int) -> tuple[int, int]:
    """Return the number of rows of a matrix, and of blocks in each."""
    if len(info.shape) != 2 or info.shape[1] % block_size:
        raise ConfigError(f"{_named(gguf, info)} of the shape {list(info.shape)} has no rows of blocks of {block_size}")
    return info.shape[0], info.shape[1] // block_size


def _named(gguf: GGUFFile, info: TensorInfo) -> Stored:
    return Stored(info.name, info.shape, str(gguf.path))


def _dequantise(gguf: GGUFFile, info: TensorInfo) -> torch.Tensor:
    """Read any other tensor as float32."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        kind = GGMLQuantizationType(info.type_id)
    except ValueError as error:
        raise ConfigError(f"{_named(gguf, info)}: GGUF type {info.type_id} is not supported") from error
    block_size, block_bytes = GGML_QUANT_SIZES[kind]
    if info.shape[-1] % block_size:
        raise ConfigError(f"{_named(gguf, info)} of the shape {list(info.shape)} has no rows of blocks of {block_size}")
    row_bytes = info.shape[-1] // block_size * block_bytes
    num_rows = 1
    for size in info.shape[:-1]:
        num_rows *= size
    raw = gguf.read_bytes(info, num_rows * row_bytes).reshape(num_rows, row_bytes)
    if kind is GGMLQuantizationType.F32:
        return torch.from_numpy(raw.copy()).view(torch.float32).view(info.shape)
    try:
        return torch.from_numpy(dequantize(raw, kind)).view(info.shape)
    except NotImplementedError as error:
        raise ConfigError(f"{_named(gguf, info)}: GGUF type {kind.name} is not supported") from error
