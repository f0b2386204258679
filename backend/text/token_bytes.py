"""Which bytes a token stands for, as the tokenizer's own decoder has it.

Two kinds exist among decoder-only models: byte-level BPE (GPT-2), and SentencePiece with a mark for spaces and mostly
with tokens for single bytes. A decoder that does anything else is refused: each of its fields is looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from backend.core.errors import ConfigError

if TYPE_CHECKING:
    import tokenizers

_MARK = "▁"  # SentencePiece's, for a space
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_REPLACE_MARK = {"pattern": {"String": _MARK}, "content": " "}
_STRIP_FIRST_SPACE = {"content": " ", "start": 1, "stop": 0}
_WITHOUT_FIELDS = frozenset({"ByteLevel", "ByteFallback", "Fuse"})  # whose fields, if any, change no decoding
# What may follow what: each kind of step at most once, in this order.
_BYTE_LEVEL = ("ByteLevel", "Fuse")
_SENTENCEPIECE = ("Replace", "Metaspace", "ByteFallback", "Fuse", "Strip")


def byte_decoder(backend: tokenizers.Tokenizer) -> tuple[Callable[[str], bytes], bool]:
    """Return how a token's text becomes bytes, and whether the first space of a text is dropped.

    Raises ConfigError for a decoder with a step that we do not do.
    """
    state = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {}
    steps = state.get("decoders", [state])
    kinds = [str(step.get("type")) for step in steps]
    if "ByteLevel" in kinds:
        _require_known(steps, _BYTE_LEVEL)
        return byte_level_bytes, False
    if "Replace" in kinds or "Metaspace" in kinds:
        _require_known(steps, _SENTENCEPIECE)
        strips = "Strip" in kinds or any(_strips(step) for step in steps)
        return _sentencepiece_bytes if "ByteFallback" in kinds else _marked_bytes, strips
    raise ConfigError(f"the model's tokenizer decodes by {kinds}; supported: {_BYTE_LEVEL} and {_SENTENCEPIECE}")


def _require_known(steps: Sequence[Mapping[str, Any]], order: Sequence[str]) -> None:
    """Raise ConfigError unless the steps are some of `order`, each as we do it."""
    kinds = [step.get("type") for step in steps]
    if kinds != [kind for kind in order if kind in kinds]:
        raise ConfigError(f"the model's tokenizer decodes by {kinds}; supported are some of {list(order)}, in order")
    if "Strip" in kinds and "Fuse" not in kinds:
        raise ConfigError("the model's tokenizer strips each token ('Strip' without 'Fuse'), which is not supported")
    for step in steps:
        if not _is_known(step):
            raise ConfigError(f"the model's tokenizer decodes by {dict(step)}, which is not supported")


def _is_known(step: Mapping[str, Any]) -> bool:
    kind = str(step["type"])
    fields = {name: value for name, value in step.items() if name != "type"}
    if kind == "Metaspace":
        return bool(fields["replacement"] == _MARK)
    return kind in _WITHOUT_FIELDS or fields == {"Replace": _REPLACE_MARK, "Strip": _STRIP_FIRST_SPACE}.get(kind)


def _strips(step: Mapping[str, Any]) -> bool:
    return bool(step["type"] == "Metaspace" and step["prepend_scheme"] != "never")


def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte (github.com/openai/gpt-2, src/encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_ALPHABET = byte_level_alphabet()


def byte_level_bytes(token: str) -> bytes:
    """Return a token's bytes. One with a character outside of GPT-2's alphabet stands for its own text."""
    if all(character in _ALPHABET for character in token):
        return bytes(_ALPHABET[character] for character in token)
    return token.encode()


def _sentencepiece_bytes(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else _marked_bytes(token)


def _marked_bytes(token: str) -> bytes:
    return token.replace(_MARK, " ").encode()
