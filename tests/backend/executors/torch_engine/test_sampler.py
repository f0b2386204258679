"""Sampling: parameters cut and reshape the distribution as they say, and nothing but seed and position is random."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backend.core.plan import RankedLogProb
from backend.core.request import Request
from backend.executors.torch_engine.sampler import Sampler, uniform
from tests.backend.executors.torch_engine.schedules import make_request

EOS = 7
LOGITS = [0.5, 3.0, 2.0, 1.0, -1.0, 2.5, 0.0, 4.0]


def sample(*requests: Request) -> list[int]:
    return Sampler({EOS}).sample(torch.tensor([LOGITS] * len(requests)), requests).token_ids


def draws(num_draws: int = 400, **sampling: object) -> list[int]:
    return [sample(make_request("r", [0], temperature=1.0, seed=seed, **sampling))[0] for seed in range(num_draws)]


def test_greedy_takes_the_most_likely() -> None:
    assert sample(make_request("r", [0])) == [EOS]


def test_ends_are_forbidden_before_min_tokens() -> None:
    assert sample(make_request("r", [0], min_tokens=1, stop_token_ids=frozenset({1}))) == [5]
    done = make_request("r", [0], min_tokens=1)
    done.token_ids.append(3)
    assert sample(done) == [EOS]


def test_same_seed_and_position_give_the_same_token_in_any_batch() -> None:
    requests = [make_request(f"r{i}", [0] * (1 + i % 3), temperature=1.3, seed=i) for i in range(20)]
    alone = [sample(request)[0] for request in requests]
    assert sample(*requests) == alone
    assert sample(*requests[::-1])[::-1] == alone
    assert len(set(alone)) > 2


def test_draws_follow_the_softmax() -> None:
    counts = np.bincount(draws(4000), minlength=len(LOGITS)) / 4000
    expected = torch.softmax(torch.tensor(LOGITS), -1).numpy()
    assert np.abs(counts - expected).max() < 0.03


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        ({"top_k": 2}, {7, 1}),
        ({"top_p": 0.7}, {7, 1}),
        ({"top_p": 1e-9}, {7}),
        ({"min_p": 0.2}, {7, 1, 5}),
        ({"top_k": 3, "top_p": 0.9}, {7, 1, 5}),
    ],
)
def test_cuts_leave_the_most_likely_tokens(sampling: dict[str, object], allowed: set[int]) -> None:
    assert set(draws(**sampling)) == allowed


def kept_by_sorting(probabilities: list[float], top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> list[int]:
    """The slow twin: the tokens that the cuts leave, of equals the first ones."""
    order = sorted(range(len(probabilities)), key=lambda token_id: (-probabilities[token_id], token_id))
    order = order[: top_k or None]
    total, before, kept = sum(probabilities[token_id] for token_id in order), 0.0, []
    for token_id in order:
        own = probabilities[token_id]
        if kept and (before >= top_p * total or own < min_p * probabilities[order[0]]):
            break
        kept.append(token_id)
        before += own
    return kept


@pytest.mark.parametrize(
    "cut",
    [
        {"top_k": 300},
        {"top_p": 0.97},
        {"min_p": 0.02},
        {"top_k": 300, "top_p": 0.9, "min_p": 0.001},
        {"top_k": 599, "top_p": 0.999},
        {"top_k": 400, "top_p": 1e-9},
    ],
    ids=str,
)
def test_cuts_that_leave_many_tokens_leave_those_that_sorting_would(cut: dict[str, float]) -> None:
    """Many are equally likely: there the first ones count as likelier."""
    logits = torch.from_numpy(np.random.default_rng(5).normal(size=600).round(1)).float()
    probabilities = torch.softmax(logits.double(), -1)
    kept = kept_by_sorting(probabilities.tolist(), **cut)
    requests = [make_request("r", [0], temperature=1.0, seed=seed, **cut) for seed in range(6000)]
    counts = np.bincount(Sampler({EOS}).sample(logits.repeat(6000, 1), requests).token_ids, minlength=600)
    assert set(counts.nonzero()[0]) <= set(kept)
    expected = np.zeros(600)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()
    order = np.argsort(expected, kind="stable")
    assert np.abs(counts[order].cumsum() / 6000 - expected[order].cumsum()).max() < 0.025, "Kolmogorov, p < 0.1 %"


def test_low_temperature_is_nearly_greedy() -> None:
    assert sample(make_request("r", [0], temperature=0.01)) == [EOS]


@pytest.mark.parametrize("cut", [{}, {"top_k": 3}, {"top_p": 0.5}])
@pytest.mark.parametrize("temperature", [1e-306, 1e-308, 5e-324])
def test_the_lowest_temperature_is_greedy(temperature: float, cut: dict[str, object]) -> None:
    """Logits over such a temperature are infinite: the last token of the vocabulary came, whatever the model said."""
    request = make_request("r", [0], temperature=temperature, **cut)
    logits = torch.tensor([[900.0, 800.0, -900.0]])
    assert Sampler({EOS}).sample(logits, [request]).token_ids == [0]


@pytest.mark.parametrize("penalty", [1e-37, 1e-44, 5e-324])
def test_the_smallest_repetition_penalty_draws_what_was_seen(penalty: float) -> None:
    assert set(draws(20, repetition_penalty=penalty)) == {0}


def test_repetition_penalty_covers_prompt_and_output() -> None:
    assert sample(make_request("r", [EOS], repetition_penalty=2.0)) == [1]


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
def test_penalties_cover_the_output_only(penalty: str) -> None:
    request = make_request("r", [EOS], **{penalty: 0.6})
    assert sample(request) == [EOS]
    request.token_ids += [EOS, EOS]
    assert sample(request) == ([1] if penalty == "frequency_penalty" else [EOS])
    request = make_request("r", [0], **{penalty: 1.5})
    request.token_ids += [EOS]
    assert sample(request) == [1]


def test_log_probability_is_the_models_own() -> None:
    request = make_request("r", [EOS], wants_log_probs=True, repetition_penalty=2.0)
    token_ids, log_probs, _ = Sampler({EOS}).sample(torch.tensor([LOGITS]), [request])
    assert log_probs[0] == pytest.approx(float(torch.log_softmax(torch.tensor(LOGITS), -1)[token_ids[0]]))


def test_uniform_numbers_differ_by_seed_and_by_position() -> None:
    numbers = [next(uniform(seed, position)) for seed in range(30) for position in range(30)]
    assert len(set(numbers)) == 900
    assert 0.45 < np.mean(numbers) < 0.55
    assert next(uniform(-1, 3)) == next(uniform(2**64 - 1, 3))


def test_the_likeliest_tokens_come_with_a_log_probability_where_they_are_wanted() -> None:
    wants = make_request("wants", [0], wants_log_probs=True, num_top_log_probs=3, top_k=1, temperature=1.0)
    others = [make_request("none", [0]), make_request("own", [0], wants_log_probs=True)]
    ranked, none, own = Sampler({EOS}).sample(torch.tensor([LOGITS] * 3), [wants, *others]).log_probs
    log_probs = torch.log_softmax(torch.tensor(LOGITS), -1).tolist()
    assert isinstance(ranked, RankedLogProb)
    assert ranked == pytest.approx(log_probs[7])
    assert [token_id for token_id, _ in ranked.top] == [7, 1, 5]
    assert [log_prob for _, log_prob in ranked.top] == pytest.approx([log_probs[7], log_probs[1], log_probs[5]])
    assert none is None
    assert not isinstance(own, RankedLogProb)


def test_a_vocabulary_has_no_more_tokens_than_it_has() -> None:
    request = make_request("r", [0], wants_log_probs=True, num_top_log_probs=20)
    (ranked,) = Sampler({EOS}).sample(torch.tensor([LOGITS]), [request]).log_probs
    assert isinstance(ranked, RankedLogProb)
    assert len(ranked.top) == len(LOGITS)
