"""What the served model says is what the library says, token for token, with both classes in one small cache."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from backend.text.model_files import resolve_model
from tests.backend.executors.torch_engine.models import library_llama_from_gguf, reference_tokens
from tests.backend.executors.torch_engine.schedules import random_prompts
from tests.backend.text.test_tokenizer import needs_default_model
from tests.triton.servers import serving
from tests.triton.streams import Stream

pytestmark = [pytest.mark.triton, needs_default_model]

NUM_TOKENS = 8
PROMPTS = list(random_prompts(12, 160, 49_152, seed=3))
KV_TOKENS = 256  # about half of what the 12 requests would hold at once


def test_greedy_float32_tokens_served_to_both_classes_equal_the_librarys(tmp_path: Path) -> None:
    model = library_llama_from_gguf(resolve_model(None).path)
    expected = [reference_tokens(model, prompt, NUM_TOKENS) for prompt in PROMPTS]
    options = ("--dtype", "float32", "--threads", "1", "--kv-tokens", str(KV_TOKENS))
    log = tmp_path / "log"
    with serving(log, *options) as server, Stream(server.grpc_url) as stream:
        asked = {"max_tokens": NUM_TOKENS, "ignore_eos": True, "stream": True}
        answers = [
            stream.send({"input_ids": prompt, **asked}, "bros_rt" if index % 2 else "bros_be")
            for index, prompt in enumerate(PROMPTS)
        ]
        assert all(answer.is_final.wait(200.0) for answer in answers)
    assert [answer.errors for answer in answers] == [[]] * len(PROMPTS)
    assert [answer.token_ids for answer in answers] == expected
    assert_memory_and_speed_were_said(log.read_text())


def assert_memory_and_speed_were_said(words: str) -> None:
    """The planned memory is that of the options: 46 KB a token in float32, and a quarter of a GiB on the host."""
    assert f"KV pool 12 MB ({KV_TOKENS} tokens), host pool 268 MB" in words
    assert re.search(r"alone, this machine decodes in [\d.]+ ms and computes a prompt of 128 tokens in \d+ ms", words)
