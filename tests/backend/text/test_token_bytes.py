"""Decoders: what we decode gives the library's own text, and what we would decode otherwise is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tokenizers
from tokenizers import Tokenizer, models

from backend.core.errors import ConfigError
from backend.text.token_bytes import byte_decoder

WORDS = ["<0xC3>", "<0xA9>", "▁a", "b", "Ġc", "é", "▁"]
_d = tokenizers.decoders
_REPLACE, _FUSE, _BYTES, _STRIP = _d.Replace("▁", " "), _d.Fuse(), _d.ByteFallback(), _d.Strip(" ", 1, 0)

KNOWN: dict[str, object] = {
    "ByteLevel": _d.ByteLevel(),
    "ByteLevel, Fuse": _d.Sequence([_d.ByteLevel(), _FUSE]),
    "Llama": _d.Sequence([_REPLACE, _BYTES, _FUSE, _STRIP]),
    "Gemma": _d.Sequence([_REPLACE, _BYTES, _FUSE]),
    "Metaspace": _d.Metaspace(),
    "Metaspace, no first space": _d.Metaspace(prepend_scheme="never"),
    "Metaspace, ByteFallback": _d.Sequence([_d.Metaspace(), _BYTES, _FUSE]),
    "Replace, without bytes": _d.Sequence([_REPLACE, _FUSE]),
}
UNKNOWN: dict[str, tuple[object, str]] = {
    "none": (None, r"decodes by \['None'\]"),
    "WordPiece": (_d.WordPiece(), "WordPiece"),
    "another mark": (_d.Metaspace(replacement="_"), "'replacement': '_'"),
    "another text": (_d.Sequence([_d.Replace("▁", "-"), _BYTES, _FUSE]), "'content': '-'"),
    "another pattern": (_d.Sequence([_d.Replace("b", " "), _BYTES, _FUSE]), "'String': 'b'"),
    "two spaces": (_d.Sequence([_REPLACE, _BYTES, _FUSE, _d.Strip(" ", 2, 0)]), "'start': 2"),
    "last space": (_d.Sequence([_REPLACE, _BYTES, _FUSE, _d.Strip(" ", 1, 1)]), "'stop': 1"),
    "spaces of each token": (_d.Sequence([_REPLACE, _BYTES, _STRIP]), "'Strip' without 'Fuse'"),
    "another order": (_d.Sequence([_FUSE, _REPLACE, _BYTES]), "in order"),
    "a step too many": (_d.Sequence([_d.ByteLevel(), _d.Strip(" ", 1, 0)]), r"\['ByteLevel', 'Strip'\]"),
    "a step before": (_d.Sequence([_d.Replace("Ġ", "-"), _d.ByteLevel()]), r"\['Replace', 'ByteLevel'\]"),
    "marks that stay": (_d.Sequence([_BYTES, _FUSE]), r"decodes by \['ByteFallback', 'Fuse'\]"),
}


def with_decoder(decoder: object) -> Tokenizer:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "b"))
    if decoder is not None:
        backend.decoder = decoder  # type: ignore[assignment] # any of the library's
    return backend


def decoded(bytes_of: Callable[[str], bytes], strips: bool, words: list[str]) -> str:
    text = b"".join(map(bytes_of, words)).decode("utf-8", "replace")
    return text.removeprefix(" ") if strips else text


@pytest.mark.parametrize("words", [WORDS, ["▁a", "b", "▁a"], ["b", "▁a", "▁"], ["Ġc", "▁a"]], ids=str)
@pytest.mark.parametrize("name", KNOWN)
def test_decoded_text_is_the_librarys(name: str, words: list[str]) -> None:
    backend = with_decoder(KNOWN[name])
    assert decoded(*byte_decoder(backend), words) == backend.decode([WORDS.index(word) for word in words])


@pytest.mark.parametrize("name", UNKNOWN)
def test_decoder_with_a_step_that_we_do_not_do_is_refused(name: str) -> None:
    decoder, message = UNKNOWN[name]
    with pytest.raises(ConfigError, match=message):
        byte_decoder(with_decoder(decoder))
