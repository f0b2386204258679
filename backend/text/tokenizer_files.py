"""Builds a `tokenizers.Tokenizer` from a Hugging Face directory or from the vocabulary inside a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.core.errors import ConfigError
from backend.text.chat_template import DEFAULT, ChatTemplate
from backend.text.gguf_file import GGUFFile, read_gguf
from backend.text.gguf_vocabulary import GGUFVocabulary, gguf_eos_ids
from backend.text.model_files import ModelFiles
from backend.text.panics import panics_as_errors

if TYPE_CHECKING:
    import tokenizers

_MORE_TEMPLATES = "additional_chat_templates"  # the library's folder of those that are not the default one
_GGUF_TEMPLATE = "tokenizer.chat_template"  # the default one's key; `.NAME` follows in those of others
_GENERATION = "generation_config.json"
_OLDER = "special_tokens_map.json"
_MORE_SPECIAL = ("extra_special_tokens", "additional_special_tokens")  # the first that has any counts
_IGNORE_PREFIX = frozenset({"PreTrainedTokenizerFast", "TokenizersBackend"})  # the library's classes that keep the file
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
_SPECIAL_NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """What a model's files say about its tokens. `adds_bos`: the backend itself puts no bos in front, but we must."""

    backend: tokenizers.Tokenizer
    eos_token_ids: frozenset[int]
    bos_token_id: int | None
    adds_bos: bool
    chat_templates: Mapping[str, ChatTemplate]  # by name


def read_tokenizer(files: ModelFiles) -> TokenizerParts:
    """Read the tokenizer of a model; raises ConfigError where it has none that we can build exactly."""
    return _from_gguf(read_gguf(files.path)) if files.is_gguf else _from_directory(files.path)


def read_eos_ids(files: ModelFiles) -> frozenset[int]:
    """Return every token id that ends a text, as the model's configuration (not its tokenizer) has it."""
    return gguf_eos_ids(read_gguf(files.path)) if files.is_gguf else _configured_eos_ids(files.path)


def read_generation_config(files: ModelFiles) -> dict[str, object]:
    """Return what the model's files set for the library's `generate`; older ones have it in `config.json`."""
    if files.is_gguf:
        return {}
    return _read_json(files.path / _GENERATION) or _read_json(files.path / "config.json")


def _from_directory(directory: Path) -> TokenizerParts:
    import tokenizers

    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"model {str(directory)!r} has no tokenizer.json")
    try:
        with panics_as_errors("tokenizers"):
            backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(f"{str(path)!r} cannot be read: {error}") from error
    _switch_off_training(backend)
    config = _read_json(directory / "tokenizer_config.json")
    _require_same_prefix(directory, backend, config)
    backend.encode_special_tokens = bool(config.get("split_special_tokens"))  # "</s>" in a prompt is then plain text
    named = _named_tokens(directory, config)
    _add_named_tokens(backend, _read_json(directory / _OLDER) | config, named)
    special = {name: _token_text(value) for name, value in named.items()}
    bos = special.get("bos_token")
    return TokenizerParts(
        backend=backend,
        eos_token_ids=_configured_eos_ids(directory) | _known_ids(backend, special.get("eos_token")),
        bos_token_id=backend.token_to_id(bos) if bos else None,
        adds_bos=False,
        chat_templates=_with_tokens(_directory_templates(directory, config), special),
    )


def _read_json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ConfigError(f"{str(path)!r} does not hold a JSON object")
    return content


def _switch_off_training(backend: tokenizers.Tokenizer) -> None:
    """Undo what a training script left in the file: prompts are never cut, filled up or split at random."""
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None):
        backend.model.dropout = None


def _require_same_prefix(directory: Path, backend: tokenizers.Tokenizer, config: Mapping[str, object]) -> None:
    """Raise ConfigError where the configuration says otherwise than the tokenizer whether a space begins a prompt.

    Most of the library's classes follow the configuration, and build the steps of the tokenizer anew.
    """
    wanted, actual = config.get("add_prefix_space"), _adds_prefix_space(backend)
    if isinstance(wanted, bool) and wanted != actual and config.get("tokenizer_class") not in _IGNORE_PREFIX:
        raise ConfigError(
            f"model {str(directory)!r}: 'add_prefix_space' is {wanted} in tokenizer_config.json but {actual} in "
            "tokenizer.json; make them agree"
        )


def _adds_prefix_space(backend: tokenizers.Tokenizer) -> bool:
    steps = [step for part in (backend.normalizer, backend.pre_tokenizer) if part is not None for step in _steps(part)]
    return any(
        step["type"] == "Prepend"
        or bool(step.get("add_prefix_space"))
        or step.get("prepend_scheme", "never") != "never"
        for step in steps
    )


def _steps(part: Any) -> list[dict[str, Any]]:
    state = json.loads(part.__getstate__())
    steps: list[dict[str, Any]] = state.get("normalizers") or state.get("pretokenizers") or [state]
    return steps


def _named_tokens(directory: Path, config: Mapping[str, object]) -> dict[str, object]:
    """Return each named special token, as the files write it: a string, or an object with `content` and flags.

    `special_tokens_map.json` is the older file. It counts first if the configuration lists no added tokens.
    """
    older = _read_json(directory / _OLDER)
    first, second = (config, older) if "added_tokens_decoder" in config else (older, config)
    named = {name: first.get(name) or second.get(name) for name in _SPECIAL_NAMES}
    own = {name: value for name, value in config.items() if name.endswith("_token") and isinstance(value, str)}
    extra = config.get("extra_special_tokens")
    named = own | named | (extra if isinstance(extra, dict) else {})
    return {name: value for name, value in named.items() if value}


def _add_named_tokens(backend: tokenizers.Tokenizer, config: Mapping[str, object], named: Mapping[str, object]) -> None:
    """Make the tokens of the configuration tokens of their own, as the library does.

    Flags that it lists win over those of `tokenizer.json`. A token with a purpose is special, whatever either says: an
    end that is not would stand in every answer.
    """
    from tokenizers import AddedToken

    known = list(backend.get_added_tokens_decoder().values())
    flags = {repr(token) for token in known}
    if isinstance(listed := config.get("added_tokens_decoder"), dict):
        known = [AddedToken(**entry) for _, entry in sorted(listed.items(), key=lambda item: int(item[0]))]
    purposes = {_token_text(value) for value in named.values()}
    for token in known:
        token.special = token.special or token.content in purposes
    backend.add_tokens([token for token in known if repr(token) not in flags])
    lists = (each for name in _MORE_SPECIAL if isinstance(each := config.get(name), list) and each)
    for value in (*named.values(), *next(lists, ())):
        if _token_text(value) not in {token.content for token in backend.get_added_tokens_decoder().values()}:
            backend.add_tokens([_special(value)])


def _special(value: object) -> tokenizers.AddedToken:
    from tokenizers import AddedToken

    flags = {name: bool(value[name]) for name in _FLAGS if name in value} if isinstance(value, dict) else {}
    return AddedToken(_token_text(value), special=True, **flags)


def _token_text(value: object) -> str:
    """A special token is written as a string or as `{"content": …}`."""
    return str(value["content"]) if isinstance(value, dict) else str(value)


def _configured_eos_ids(directory: Path) -> frozenset[int]:
    """A generation config may name several ids. The library ends at these alone; we, as vLLM does, at any."""
    ids: set[int] = set()
    for name in (_GENERATION, "config.json"):
        value = _read_json(directory / name).get("eos_token_id")
        ids.update([value] if isinstance(value, int) else value if isinstance(value, list) else [])
    return frozenset(ids)


def _known_ids(backend: tokenizers.Tokenizer, token: str | None) -> frozenset[int]:
    token_id = None if token is None else backend.token_to_id(token)
    return frozenset() if token_id is None else frozenset({token_id})


def _with_tokens(sources: Mapping[str, str], special: Mapping[str, str]) -> dict[str, ChatTemplate]:
    return {name: ChatTemplate(source, special) for name, source in sources.items() if source}


def _directory_templates(directory: Path, config: Mapping[str, object]) -> dict[str, str]:
    """Return the chat templates by name. Where any file holds one, those of the configuration do not count."""
    files = {DEFAULT: directory / "chat_template.jinja"} if (directory / "chat_template.jinja").is_file() else {}
    files |= {file.stem: file for file in sorted((directory / _MORE_TEMPLATES).glob("*.jinja"))}
    if files:
        return {name: file.read_text(encoding="utf-8") for name, file in files.items()}
    source = config.get("chat_template")
    if isinstance(source, list):
        source = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
    named = source if isinstance(source, dict) else {DEFAULT: source}
    return {str(name): str(template) for name, template in named.items() if template}


def _from_gguf(gguf: GGUFFile) -> TokenizerParts:
    vocabulary = GGUFVocabulary(gguf)
    special = vocabulary.special_tokens()
    keys = [key for key in gguf.fields if key == _GGUF_TEMPLATE or key.startswith(f"{_GGUF_TEMPLATE}.")]
    sources = {key.removeprefix(_GGUF_TEMPLATE).removeprefix(".") or DEFAULT: str(gguf.fields[key]) for key in keys}
    return TokenizerParts(
        backend=vocabulary.backend(),
        eos_token_ids=gguf_eos_ids(gguf),
        bos_token_id=vocabulary.bos_id,
        adds_bos=vocabulary.adds_bos,
        chat_templates=_with_tokens(sources, special),
    )
