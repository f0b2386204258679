"""Text to token ids and back: the model's tokenizer, incremental detokenisation, stop strings. Imports no torch."""

from __future__ import annotations

import codecs
import os
from collections.abc import Mapping, Sequence
from typing import Protocol

from backend.text.chat_template import choose_template
from backend.text.model_files import resolve_model
from backend.text.panics import panics_as_errors
from backend.text.token_bytes import byte_decoder, byte_level_bytes
from backend.text.tokenizer_files import TokenizerParts, read_tokenizer

# The library would hand a text to a pool of threads of its own, where one may wait behind another's.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_NORMALIZER_SHRINKS = 4  # times at most: composed characters and look-alikes take fewer bytes than what they stand for


def load_tokenizer(model_path: str | None) -> Tokenizer:
    """Load the tokenizer of a model (a path as `model_files.resolve_model` takes it). Raises ConfigError."""
    return Tokenizer(read_tokenizer(resolve_model(model_path)))


class Tokenizer:
    """The model's tokenizer. Immutable after construction; made by `load_tokenizer`."""

    def __init__(self, parts: TokenizerParts) -> None:
        self.eos_token_ids = parts.eos_token_ids
        self.bos_token_id = parts.bos_token_id
        self._parts = parts
        self._backend = parts.backend
        added = parts.backend.get_added_tokens_decoder()
        self.special_token_ids = {token_id for token_id, token in added.items() if token.special}
        self._added_ids = set(added)
        self._bytes_of, self.strips_first_space = byte_decoder(parts.backend)
        token_ids = parts.backend.get_vocab().values()
        self.vocab_size = max(token_ids, default=-1) + 1
        longest = max((len(self._text_of(token_id)) for token_id in token_ids), default=0)
        self.max_token_bytes = longest * (1 if parts.backend.normalizer is None else _NORMALIZER_SHRINKS)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a prompt, with the tokens (such as bos) that the model wants around one."""
        token_ids = self._encode(text, add_special_tokens=True)
        if self._parts.adds_bos and self.bos_token_id is not None:
            return [self.bos_token_id, *token_ids]
        return token_ids

    def encode_chat(self, messages: Sequence[Mapping[str, object]]) -> list[int]:
        """Return the token ids of a conversation, as `render_chat` writes it."""
        return self.encode_chat_text(self.render_chat(messages))

    def render_chat(self, messages: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]] = ()) -> str:
        """Return a conversation (`role` and `content` each) as text, up to where the assistant speaks.

        Raises InvalidRequestError where the model has no chat template for them or they do not fit it.
        """
        return choose_template(self._parts.chat_templates, has_tools=bool(tools)).render(messages, tools)

    def encode_chat_text(self, text: str) -> list[int]:
        """Return the token ids of what `render_chat` gave, which names its special tokens itself."""
        return self._encode(text, add_special_tokens=False)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """A batch of one, since that lets other threads run meanwhile: `encode` holds Python's lock for seconds."""
        with panics_as_errors("tokenizers"):
            (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoding.ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids`: special tokens left out, bytes that form no character replaced by U+FFFD."""
        text = b"".join(map(self.token_bytes, token_ids)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strips_first_space else text

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for; none for special tokens and for ids outside the vocabulary."""
        return b"" if token_id in self.special_token_ids else self._text_of(token_id)

    def vocabulary(self) -> list[bytes]:
        """Return the bytes of every token by id, special ones too; none for ids that stand for no token."""
        return [self._text_of(token_id) for token_id in range(self.vocab_size)]

    def _text_of(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for in a prompt, special tokens too.

        A SentencePiece decoder reads added tokens like any other: Gemma's runs of spaces are such, written as marks.
        """
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        is_plain = token_id in self._added_ids and self._bytes_of is byte_level_bytes
        return token.encode() if is_plain else self._bytes_of(token)


class TokenTexts(Protocol):
    """What a detokenizer asks of a tokenizer."""

    strips_first_space: bool

    def token_bytes(self, token_id: int) -> bytes: ...


class IncrementalDetokenizer:
    """Turns tokens into text as they come, holding back the bytes of a character until it is whole."""

    def __init__(self, tokenizer: TokenTexts, follows_text: bool = False) -> None:
        """`follows_text`: other text stands in front, so that a first space is one between words."""
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strips_next_space = tokenizer.strips_first_space and not follows_text

    def push(self, token_ids: Sequence[int]) -> str:
        """Return the characters that `token_ids` complete."""
        return self._emit(self._decoder.decode(b"".join(map(self._tokenizer.token_bytes, token_ids))))

    def flush(self) -> str:
        """Return what an unfinished character gives at the end of the text: nothing, or U+FFFD."""
        return self._emit(self._decoder.decode(b"", final=True))

    def _emit(self, text: str) -> str:
        if self._strips_next_space and text:
            self._strips_next_space = False
            return text.removeprefix(" ")
        return text


class StopStrings:
    """Cuts a text at the first stop string, holding back what may be the beginning of one.

    A character costs the same whatever was held back (Knuth, Morris, Pratt): one thread does this for all clients.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(string for string in strings if string)
        self._borders = tuple(map(_borders, self._strings))
        self._num_begun = [0] * len(self._strings)  # characters of each that the text ends with
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str, may_match: bool = True) -> str:
        """Return the text that is safe to send; on a match (`matched` names it) what stands before it, then nothing.

        `may_match` False: a string that ends in `text` is no match. One that begins there may still become one.
        """
        if self.matched is not None:
            return ""
        num_held = len(self._held)
        new, text = text, self._held + text
        if may_match and (found := self._matches(text, num_held)):
            end, self.matched = min(found)
            self._held = ""
            return text[:end]
        for index, (string, borders) in enumerate(zip(self._strings, self._borders, strict=True)):
            self._num_begun[index] = _advance(string, borders, self._num_begun[index], new)
        num_sent = len(text) - max(self._num_begun, default=0)
        self._held = text[num_sent:]
        return text[:num_sent]

    def flush(self) -> str:
        """Return the text held back; called at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _matches(self, text: str, num_old: int) -> list[tuple[int, str]]:
        """Return where each string stands first in `text`, of those that end beyond its first `num_old` characters."""
        firsts = ((text.find(string, max(0, num_old - len(string) + 1)), string) for string in self._strings)
        return [first for first in firsts if first[0] >= 0]


def _borders(string: str) -> list[int]:
    """Return, for each beginning of `string`, the length of its longest end that also begins the string."""
    borders = [0]
    for char in string[1:]:
        borders.append(_advance(string, borders, borders[-1], char))
    return borders


def _advance(string: str, borders: Sequence[int], num_begun: int, text: str) -> int:
    """Return how many characters of `string` a text ends with that ended with `num_begun`, and goes on with `text`.

    Fewer than all: of a whole `string`, its longest end that also begins it.
    """
    for char in text:
        while num_begun and string[num_begun] != char:
            num_begun = borders[num_begun - 1]
        num_begun += string[num_begun] == char
        if num_begun == len(string):
            num_begun = borders[num_begun - 1]
    return num_begun
