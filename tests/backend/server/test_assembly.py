"""A tokenizer beside a model that knows fewer ids: served with a bound, or refused where no prompt could be."""

from __future__ import annotations

import logging

import pytest

from backend.config import parse_config
from backend.core.errors import ConfigError
from backend.server.assembly import check_vocabulary, load_runtime, make_tokenizer
from backend.text.sim_tokenizer import SimTokenizer


class WithBos(SimTokenizer):
    """Puts its last id in front of every prompt."""

    def encode(self, text: str) -> list[int]:
        return [self.vocab_size - 1, *super().encode(text)]


def test_ids_that_the_model_lacks_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_vocabulary(SimTokenizer(257, 2), 256)
    assert "ids up to 256, the model knows 256: prompts with others are refused" in caplog.text


def test_a_tokenizer_that_fits_is_not_spoken_of(caplog: pytest.LogCaptureFixture) -> None:
    check_vocabulary(WithBos(256, 2), 256)
    assert not caplog.records


def test_a_model_that_can_serve_no_prompt_is_refused() -> None:
    with pytest.raises(ConfigError, match="puts token 256 into every prompt; the model knows 256 ids"):
        check_vocabulary(WithBos(257, 2), 256)


def test_a_pool_beyond_what_can_be_numbered_is_refused_by_name() -> None:
    config = parse_config({"executor": "sim", "sim": {"num_blocks": 999_999_999_999}})
    with pytest.raises(ConfigError, match=r"num_blocks.* 999999999999 "):
        load_runtime(config, make_tokenizer(config), print, print, print)
