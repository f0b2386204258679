"""Usage counts computed tokens, cached tokens, and each prompt once."""

from __future__ import annotations

from client.generation import Generation, Metrics
from client.openai.asked import Asked
from client.openai.usage import Tally
from tests.front.door import usage_of


def answer(num_cached: int) -> Generation:
    """Return the whole answer to a prompt of 40 tokens, of which the cache had some."""
    metrics = Metrics(None, None, None, 0, num_input_tokens=40, num_output_tokens=2, num_cached_tokens=num_cached)
    return Generation("a", "", [1, 2], None, "length", metrics)


def tally(n: int) -> Tally:
    return Tally(Asked("bros", [], {}, n=n))


def test_tokens_that_the_cache_had_are_told() -> None:
    counted = tally(1)
    counted.add(0, answer(32))
    assert counted.usage == usage_of(40, 2, 32)


def test_what_one_choice_leaves_to_the_next_of_its_prompt_is_no_cached_prompt() -> None:
    counted = tally(2)
    for choice, num_cached in enumerate((39, 0, 16, 39)):  # two prompts
        counted.add(choice, answer(num_cached))
    assert counted.usage == usage_of(80, 8, 16)
