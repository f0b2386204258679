"""Vocabularies inside GGUF files: tokenised as the model's own tokenizer does, or refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from backend.core.errors import ConfigError
from backend.text.tokenizer import Tokenizer, load_tokenizer
from tests.backend.text.gguf_files import write_gguf

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
# "cab" is a word that the merges do not lead to: only "ab" is merged.
TOKENS = [*ALPHABET, "ab", "cab", "<|bos|>", "<|eos|>", "<|eot|>"]
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
BOS, EOS, EOT = (len(TOKENS) - i for i in (3, 2, 1))
FIELDS: dict[str, object] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "llama-bpe",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [NORMAL] * (len(TOKENS) - 3) + [CONTROL] * 3,
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": BOS,
    "tokenizer.ggml.eos_token_id": EOT,
    "tokenizer.ggml.eom_token_id": EOS,
    "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
}


def vocabulary(path: Path, **changes: object) -> Tokenizer:
    """Load a vocabulary with other values of `tokenizer.ggml.*`; None takes a key out."""
    fields = FIELDS | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    fields = {key: value for key, value in fields.items() if value is not None}
    return load_tokenizer(str(write_gguf(path / "m.gguf", fields)))


def ids(*tokens: str) -> list[int]:
    return [TOKENS.index(token) for token in tokens]


def test_words_of_llama_3_stay_whole_after_its_bos(tmp_path: Path) -> None:
    assert vocabulary(tmp_path).encode("cab abc") == [BOS, *ids("cab", "Ġ", "ab", "c")]


def test_others_follow_the_merges_and_have_no_bos(tmp_path: Path) -> None:
    assert vocabulary(tmp_path, pre="qwen2").encode("cab") == ids("c", "ab")


@pytest.mark.parametrize(("pre", "adds"), [("llama-bpe", False), ("qwen2", True)])
def test_the_file_decides_about_bos_where_it_says(pre: str, adds: bool, tmp_path: Path) -> None:
    assert (vocabulary(tmp_path, pre=pre, add_bos_token=adds).encode("b")[0] == BOS) is adds


def test_qwen_composes_characters(tmp_path: Path) -> None:
    tokenizer = vocabulary(tmp_path, pre="qwen2")
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")


def test_template_ends_by_the_eos_that_the_file_names(tmp_path: Path) -> None:
    tokenizer = vocabulary(tmp_path)
    assert tokenizer.encode_chat([{"role": "user", "content": "c"}]) == [BOS, *ids("c"), EOT]
    assert tokenizer.eos_token_ids == frozenset({EOS, EOT})


def test_tools_have_the_template_that_the_file_names_for_them(tmp_path: Path) -> None:
    source = "{{ tools[0].function.name }}<tool_call>{'name': ..}"
    fields = FIELDS | {"tokenizer.chat_template.tool_use": source, "tokenizer.chat_templates": ["tool_use"]}
    tokenizer = load_tokenizer(str(write_gguf(tmp_path / "m.gguf", fields)))
    messages = [{"role": "user", "content": "c"}]
    assert tokenizer.render_chat(messages, [{"function": {"name": "f"}}]).startswith("f<tool_call>")
    assert tokenizer.render_chat(messages) == "<|bos|>c<|eot|>"


@pytest.mark.parametrize("kind", [NORMAL, USER_DEFINED])
def test_ends_are_no_text_whatever_kind_of_token_the_file_calls_them(kind: int, tmp_path: Path) -> None:
    tokenizer = vocabulary(tmp_path, token_type=[NORMAL] * (len(TOKENS) - 3) + [kind] * 3)
    assert tokenizer.encode_chat([{"role": "user", "content": "c"}]) == [BOS, *ids("c"), EOT]
    assert tokenizer.decode([BOS, *ids("c"), EOS, EOT]) == "c"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "default"}, r"pre-tokenizer 'default' is not supported from GGUF"),
        ({"pre": None}, r"pre-tokenizer None is not supported from GGUF"),
        ({"model": "llama"}, r"tokenizer 'llama' with pre-tokenizer 'llama-bpe' is not supported"),
        ({"add_eos_token": True}, r"'tokenizer\.ggml\.add_eos_token' True is not supported"),
        ({"precompiled_charsmap": [1, 2]}, r"'tokenizer\.ggml\.precompiled_charsmap' \[1, 2\] is not supported"),
        ({"token_type": [1, 2]}, rf"{len(TOKENS)} tokens have 2 types"),
    ],
)
def test_what_would_not_be_exact_is_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        vocabulary(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": [*TOKENS[:-4], "ab", *TOKENS[-3:]]}, "two of its tokens have the text 'ab'"),
        ({"merges": None}, "no 'tokenizer.ggml.merges'"),
        ({"merges": ["a b", "a \u0141\u0141"]}, "its merges do not fit its tokens"),
        ({"bos_token_id": None}, "no 'tokenizer.ggml.bos_token_id'"),
        ({"bos_token_id": len(TOKENS)}, f"'tokenizer.ggml.bos_token_id' {len(TOKENS)} is none of its"),
        ({"padding_token_id": 10**6}, "'tokenizer.ggml.padding_token_id' 1000000 is none of its"),
        ({"eos_token_id": None}, "no 'tokenizer.ggml.eos_token_id'"),
        ({"eos_token_id": "<|eos|>"}, "'tokenizer.ggml.eos_token_id' '<|eos|>' is none of its"),
        ({"eos_token_id": [EOS, EOT]}, "is none of its"),
        ({"add_bos_token": "no"}, "'tokenizer.ggml.add_bos_token' is neither true nor false"),
    ],
    ids=str,
)
def test_vocabulary_that_contradicts_itself_is_refused(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        vocabulary(tmp_path, **changes)


def test_file_without_bos_is_taken_where_no_prompt_has_one(tmp_path: Path) -> None:
    assert vocabulary(tmp_path, bos_token_id=None, add_bos_token=False).encode("b") == ids("b")


def test_keys_without_effect_are_taken(tmp_path: Path) -> None:
    changes = {"add_eos_token": False, "add_space_prefix": False, "scores": [0.0], "fim_pre_token_id": 3}
    assert vocabulary(tmp_path, **changes).encode("a") == [BOS, *ids("a")]
