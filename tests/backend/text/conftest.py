"""A tokenizer of bytes and its grammars, for the tests of what a schema lets through."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backend.text.grammar import Grammars
from backend.text.tokenizer import Tokenizer, load_tokenizer
from tests.backend.text.test_tokenizer import save_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(str(save_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Iterator[Grammars]:
    grammars = Grammars(tokenizer)
    yield grammars
    grammars.close()
