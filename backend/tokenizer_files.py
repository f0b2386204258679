"""Builds a `tokenizers.Tokenizer` from a Hugging Face directory or from the vocabulary inside a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backend.chat_template import ChatTemplate
from backend.errors import ConfigError
from backend.gguf_file import GGUFFile, read_gguf
from backend.model_files import ModelFiles

if TYPE_CHECKING:
    import tokenizers

_GGUF_CONTROL, _GGUF_USER_DEFINED = 3, 4
# llama.cpp's names of pre-tokenizers (src/llama-vocab.cpp) and the pattern each splits by; None is GPT-2's own.
_GGUF_SPLIT_PATTERNS = {
    "default": None,
    "gpt-2": None,
    "smollm": None,
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
_SPLITS_DIGITS = frozenset({"smollm"})


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """What a model's files say about its tokens. `adds_bos`: the backend itself puts no bos in front, but we must."""

    backend: tokenizers.Tokenizer
    eos_token_ids: frozenset[int]
    bos_token_id: int | None
    adds_bos: bool
    chat_template: ChatTemplate | None


def read_tokenizer(files: ModelFiles) -> TokenizerParts:
    """Read the tokenizer of a model; raises ConfigError where it has none that we can build."""
    return _from_gguf(read_gguf(files.path)) if files.is_gguf else _from_directory(files.path)


def read_eos_ids(files: ModelFiles) -> frozenset[int]:
    """Return every token id that ends a text, as the model's configuration (not its tokenizer) has it."""
    return _gguf_eos_ids(read_gguf(files.path)) if files.is_gguf else _configured_eos_ids(files.path)


def _from_directory(directory: Path) -> TokenizerParts:
    import tokenizers

    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"model {str(directory)!r} has no tokenizer.json")
    backend = tokenizers.Tokenizer.from_file(str(path))
    config = _read_json(directory / "tokenizer_config.json")
    special = {name: _token_text(config[name]) for name in ("bos_token", "eos_token", "pad_token") if config.get(name)}
    bos = special.get("bos_token")
    return TokenizerParts(
        backend=backend,
        eos_token_ids=_configured_eos_ids(directory) | _known_ids(backend, special.get("eos_token")),
        bos_token_id=backend.token_to_id(bos) if bos else None,
        adds_bos=False,
        chat_template=_directory_template(directory, config, special),
    )


def _read_json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ConfigError(f"{str(path)!r} does not hold a JSON object")
    return content


def _token_text(value: object) -> str:
    """A special token is written as a string or as `{"content": …}`."""
    return str(value["content"]) if isinstance(value, dict) else str(value)


def _configured_eos_ids(directory: Path) -> frozenset[int]:
    """A generation config may name several ids."""
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value = _read_json(directory / name).get("eos_token_id")
        ids.update([value] if isinstance(value, int) else value if isinstance(value, list) else [])
    return frozenset(ids)


def _known_ids(backend: tokenizers.Tokenizer, token: str | None) -> frozenset[int]:
    token_id = None if token is None else backend.token_to_id(token)
    return frozenset() if token_id is None else frozenset({token_id})


def _directory_template(
    directory: Path, config: Mapping[str, object], special: Mapping[str, str]
) -> ChatTemplate | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return ChatTemplate(file.read_text(encoding="utf-8"), special)
    source = config.get("chat_template")
    if isinstance(source, list):  # several named templates
        source = next((entry["template"] for entry in source if entry["name"] == "default"), None)
    return ChatTemplate(str(source), special) if source else None


def _from_gguf(gguf: GGUFFile) -> TokenizerParts:
    model, pre = gguf.fields.get("tokenizer.ggml.model"), gguf.fields.get("tokenizer.ggml.pre", "default")
    if model != "gpt2" or pre not in _GGUF_SPLIT_PATTERNS:
        raise ConfigError(
            f"model {str(gguf.path)!r}: tokenizer {model!r} with pre-tokenizer {pre!r} is not supported from GGUF "
            f"(only 'gpt2' with one of {sorted(_GGUF_SPLIT_PATTERNS)}); use the model's Hugging Face directory"
        )
    tokens = gguf.strings("tokenizer.ggml.tokens")
    bos = gguf.fields.get("tokenizer.ggml.bos_token_id")
    bos_id = bos if isinstance(bos, int) else None
    eos_ids = _gguf_eos_ids(gguf)
    special = {"bos_token": tokens[bos_id]} if bos_id is not None else {}
    if eos_ids:
        special["eos_token"] = tokens[min(eos_ids)]
    template = gguf.fields.get("tokenizer.chat_template")
    return TokenizerParts(
        backend=_byte_level_bpe(gguf, tokens, str(pre)),
        eos_token_ids=eos_ids,
        bos_token_id=bos_id,
        adds_bos=bool(gguf.fields.get("tokenizer.ggml.add_bos_token", False)),
        chat_template=ChatTemplate(str(template), special) if template else None,
    )


def _gguf_eos_ids(gguf: GGUFFile) -> frozenset[int]:
    ends = (gguf.fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return frozenset(end for end in ends if isinstance(end, int))


def _byte_level_bpe(gguf: GGUFFile, tokens: list[str], pre: str) -> tokenizers.Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    merges = [(left, right) for left, _, right in (m.partition(" ") for m in gguf.strings("tokenizer.ggml.merges"))]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    pattern = _GGUF_SPLIT_PATTERNS[pre]
    splits: list[pre_tokenizers.PreTokenizer] = []
    if pre in _SPLITS_DIGITS:
        splits.append(pre_tokenizers.Digits(individual_digits=True))
    if pattern is not None:
        splits.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    backend.decoder = decoders.ByteLevel()
    kinds = gguf.integers("tokenizer.ggml.token_type")
    for kind, is_special in ((_GGUF_CONTROL, True), (_GGUF_USER_DEFINED, False)):
        names = [token for token, token_kind in zip(tokens, kinds, strict=True) if token_kind == kind]
        backend.add_tokens([AddedToken(name, special=is_special, normalized=False) for name in names])
    return backend
