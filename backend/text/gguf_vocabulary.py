"""Builds a `tokenizers.Tokenizer` from the vocabulary inside a GGUF file: byte-level BPE of a known pre-tokenizer.

The header is read strictly: each key of the tokenizer is one that we use or one without effect, or the file is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backend.core.errors import ConfigError
from backend.text.gguf_file import GGUFFile

if TYPE_CHECKING:
    import tokenizers

_PREFIX = "tokenizer.ggml."
_CONTROL, _USER_DEFINED = 3, 4
_CONTROLS = ("bos", "eos", "eot", "eom")
# llama.cpp's names of pre-tokenizers (src/llama-vocab.cpp) and the pattern each splits by; None is GPT-2's own. Its
# "default", for files that name none, is no model's own.
_SPLIT_PATTERNS = {
    "gpt-2": None,
    "smollm": None,
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
_SPLITS_DIGITS = frozenset({"smollm"})
# Words that are tokens stay whole, whatever the merges say, and prompts begin with bos unless the file says otherwise.
_LIKE_LLAMA_3 = frozenset({"llama-bpe"})
_NORMALISES = frozenset({"qwen2"})  # by NFC, which llama.cpp leaves out and the model's own tokenizer does not
_READ = frozenset(
    {"model", "pre", "tokens", "token_type", "merges", "add_bos_token"}
    | {f"{name}_token_id" for name in ("bos", "eos", "eot", "eom", "unknown", "padding")}
)
_HARMLESS = frozenset(
    {"scores"}
    | {f"{name}_token_id" for name in ("seperator", "separator", "cls", "mask", "prefix", "suffix", "middle")}
    | {f"fim_{name}_token_id" for name in ("pre", "suf", "mid", "pad", "rep", "sep")}
)
_HARMLESS_WHERE_FALSE = frozenset({"add_eos_token", "add_sep_token", "add_space_prefix", "remove_extra_whitespaces"})


def gguf_eos_ids(gguf: GGUFFile) -> frozenset[int]:
    """Return every token id that ends a text."""
    ends = (gguf.fields.get(f"{_PREFIX}{name}_token_id") for name in _CONTROLS if name != "bos")
    return frozenset(end for end in ends if isinstance(end, int))


@dataclass(frozen=True, slots=True)
class GGUFVocabulary:
    """The vocabulary of a GGUF file; raises ConfigError where we cannot build its tokenizer exactly."""

    gguf: GGUFFile

    def __post_init__(self) -> None:
        fields, path = self.gguf.fields, str(self.gguf.path)
        if fields.get(f"{_PREFIX}model") != "gpt2" or self.pre not in _SPLIT_PATTERNS:
            raise ConfigError(
                f"model {path!r}: tokenizer {fields.get(_PREFIX + 'model')!r} with pre-tokenizer {self.pre!r} is not "
                f"supported from GGUF (only 'gpt2' with one of {sorted(_SPLIT_PATTERNS)}); use the model's Hugging "
                "Face directory"
            )
        for problem in self._problems():
            raise ConfigError(f"model {path!r}: {problem}; use its Hugging Face directory")

    def _problems(self) -> Iterator[str]:
        """Name what would give other tokens than the model's own tokenizer, or other text."""
        fields, tokens = self.gguf.fields, self.tokens
        for key, value in fields.items():
            name = key.removeprefix(_PREFIX)
            is_known = name == key or name in _READ | _HARMLESS or (name in _HARMLESS_WHERE_FALSE and value is False)
            if not is_known:
                yield f"{key!r} {value!r:.60} is not supported"
            if name != key and name.endswith("_token_id") and not (type(value) is int and 0 <= value < len(tokens)):
                yield f"{key!r} {value!r:.60} is none of its {len(tokens)} tokens"
        if len(kinds := self.gguf.integers(f"{_PREFIX}token_type")) != len(tokens):
            yield f"{len(tokens)} tokens have {len(kinds)} types"
        if len(ids := {token: token_id for token_id, token in enumerate(tokens)}) != len(tokens):
            first = next(token for token_id, token in enumerate(tokens) if ids[token] != token_id)
            yield f"two of its tokens have the text {first!r:.60}"
        if not isinstance(fields.get(f"{_PREFIX}add_bos_token", False), bool):
            yield f"'{_PREFIX}add_bos_token' is neither true nor false"
        for name, is_needed in (("bos", self.adds_bos), ("eos", True)):
            if is_needed and self._id(name) is None:  # llama.cpp would take token 11
                yield f"it has no '{_PREFIX}{name}_token_id'"
        if f"{_PREFIX}merges" not in fields:
            yield f"it has no '{_PREFIX}merges'"

    @property
    def pre(self) -> str | None:
        """The name of the pre-tokenizer."""
        value = self.gguf.fields.get(f"{_PREFIX}pre")
        return None if value is None else str(value)

    @property
    def tokens(self) -> list[str]:
        return self.gguf.strings(f"{_PREFIX}tokens")

    @property
    def bos_id(self) -> int | None:
        return self._id("bos")

    @property
    def adds_bos(self) -> bool:
        """True where prompts begin with bos."""
        return bool(self.gguf.fields.get(f"{_PREFIX}add_bos_token", self.pre in _LIKE_LLAMA_3))

    def special_tokens(self) -> dict[str, str]:
        """Return the tokens that a chat template may name."""
        names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        ids = {name: self._id(key) for name, key in names.items()}
        tokens = self.tokens
        return {name: tokens[token_id] for name, token_id in ids.items() if token_id is not None}

    def backend(self) -> tokenizers.Tokenizer:
        """Build the tokenizer."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

        tokens = self.tokens
        merges = self.gguf.strings(f"{_PREFIX}merges")
        pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
        vocabulary = {token: i for i, token in enumerate(tokens)}
        try:
            backend = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=self.pre in _LIKE_LLAMA_3))
        except Exception as error:  # the library raises nothing narrower
            raise ConfigError(f"model {str(self.gguf.path)!r}: its merges do not fit its tokens: {error}") from error
        if self.pre in _NORMALISES:
            backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = self._pre_tokenizer()
        backend.decoder = decoders.ByteLevel()
        kinds = self.gguf.integers(f"{_PREFIX}token_type")
        for name in _CONTROLS:  # some files call them words: prompts would spell them, and answers show them
            if (token_id := self._id(name)) is not None:
                kinds[token_id] = _CONTROL
        for kind, is_special in ((_CONTROL, True), (_USER_DEFINED, False)):
            names = [token for token, token_kind in zip(tokens, kinds, strict=True) if token_kind == kind]
            backend.add_tokens([AddedToken(name, special=is_special, normalized=False) for name in names])
        return backend

    def _pre_tokenizer(self) -> tokenizers.pre_tokenizers.PreTokenizer:
        from tokenizers import Regex, pre_tokenizers

        assert self.pre is not None, "checked at construction"
        pattern = _SPLIT_PATTERNS[self.pre]
        splits: list[pre_tokenizers.PreTokenizer] = []
        if self.pre in _SPLITS_DIGITS:
            splits.append(pre_tokenizers.Digits(individual_digits=True))
        if pattern is not None:
            splits.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
        return pre_tokenizers.Sequence([*splits, byte_level])

    def _id(self, name: str) -> int | None:
        value = self.gguf.fields.get(f"{_PREFIX}{name}_token_id")
        return value if isinstance(value, int) else None
