"""Chooses the next token, statelessly: from logits, parameters, seed and position, never from the rest of the batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from backend.core.errors import BrosError, InvalidRequestError
from backend.core.plan import RankedLogProb, Sequenced
from backend.core.request import SamplingParams

_FIRST_SORTED = 256  # tokens; top_p and min_p rarely keep more, and all would take 4 ms


class Choices(NamedTuple):
    """The choice for each row. `errors`: by index, why a row has no token; its entries mean nothing."""

    token_ids: list[int]
    log_probs: list[float | None]
    errors: dict[int, BrosError]


class Sampler:
    """Samples from logits; `eos_token_ids` end a text unless the request ignores them."""

    def __init__(self, eos_token_ids: Collection[int]) -> None:
        self._eos_token_ids = sorted(eos_token_ids)

    def sample(self, logits: torch.Tensor, sequences: Sequence[Sequenced]) -> Choices:
        """Choose a token per row of `logits` [len(sequences), vocabulary], with its log-probability where wanted.

        The log-probability is the model's own, before grammar, penalties, temperature and cuts. `logits` may be
        overwritten.
        """
        raw = [
            _log_softmax(row) if s.sampling.wants_log_probs else None for row, s in zip(logits, sequences, strict=True)
        ]
        errors: dict[int, BrosError] = {}
        for index, sequence in enumerate(sequences):
            if sequence.sampling.is_restricted:
                try:
                    self._restrict(logits[index], sequence)
                except BrosError as error:
                    errors[index] = error
        token_ids = _most_likely(logits)
        for index, sequence in enumerate(sequences):
            if sequence.sampling.temperature > 0.0 and index not in errors:
                token_ids[index] = _draw(logits[index], sequence)
        log_probs = [
            None if row is None else _log_prob(row, token_id, sequence.sampling.num_top_log_probs)
            for row, token_id, sequence in zip(raw, token_ids, sequences, strict=True)
        ]
        return Choices(token_ids, log_probs, errors)

    def _restrict(self, logits: torch.Tensor, sequence: Sequenced) -> None:
        """Apply penalties and grammar and, before `min_tokens`, forbid the ends; in place."""
        params = sequence.sampling
        if params.has_penalties:
            _penalise(logits, sequence)
        if sequence.grammar is not None:
            _forbid(logits, sequence.grammar.allowed(sequence.token_ids[sequence.num_prompt :]))
        if len(sequence.token_ids) - sequence.num_prompt < params.min_tokens:
            ends = {*self._eos_token_ids, *params.stop_token_ids}
            logits[sorted(end for end in ends if end < len(logits))] = float("-inf")


def _most_likely(logits: torch.Tensor) -> list[int]:
    """Return each row's highest token, the first of equals; numpy's search is vectorised, torch's on the CPU is not."""
    token_ids: list[int] = (logits.numpy() if logits.device.type == "cpu" else logits).argmax(-1).tolist()
    return token_ids


def _forbid(logits: torch.Tensor, is_allowed: NDArray[np.bool_]) -> None:
    """Leave only tokens that are allowed. Raises InvalidRequestError where the model has none of them."""
    num_known = min(len(logits), len(is_allowed))
    if not is_allowed[:num_known].any():
        raise InvalidRequestError("json_schema: no token of the model may come next")
    is_forbidden = torch.from_numpy(~is_allowed[:num_known]).to(logits.device)
    logits[:num_known].masked_fill_(is_forbidden, float("-inf"))
    logits[num_known:] = float("-inf")


def _penalise(logits: torch.Tensor, sequence: Sequenced) -> None:
    """Repetition penalty over prompt and output (Keskar et al. 2019, §4.1), presence and frequency over the output."""
    params = sequence.sampling
    seen = torch.from_numpy(np.unique(np.array(sequence.token_ids, np.int64))).to(logits.device)
    values = logits[seen]
    penalised = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    largest = torch.finfo(logits.dtype).max  # a tiny penalty makes infinities, which have no probability
    logits[seen] = penalised.clamp(-largest, largest)
    output = np.array(sequence.token_ids[sequence.num_prompt :], np.int64)
    ids, counts = np.unique(output, return_counts=True)
    penalty = params.presence_penalty + params.frequency_penalty * counts
    logits[torch.from_numpy(ids).to(logits.device)] -= torch.from_numpy(penalty.astype(np.float32)).to(logits.device)


def _log_prob(log_probs: torch.Tensor, token_id: int, num_top: int) -> float:
    own = float(log_probs[token_id])
    if not num_top:
        return own
    values, token_ids = torch.topk(log_probs, min(num_top, len(log_probs)))
    return RankedLogProb(own, list(zip(token_ids.tolist(), values.tolist(), strict=True)))


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits, -1, dtype=torch.float32)


def _draw(logits: torch.Tensor, sequence: Sequenced) -> int:
    """Draw by inverse transform: the token where the sum of the probabilities passes a uniform number."""
    params = sequence.sampling
    below = logits.double() - logits.max()  # before the division: a tiny temperature would make infinities
    probabilities = torch.softmax(below / params.temperature, -1)
    numbers = uniform(params.seed, len(sequence.token_ids))
    if not (0 < params.top_k < len(logits) or params.top_p < 1.0 or params.min_p > 0.0):
        return _at(probabilities, next(numbers))
    if (candidates := _candidates(probabilities, params)) is None:
        return _draw_among_many(probabilities.cpu().numpy(), params, numbers)
    values, token_ids = candidates
    return int(token_ids[_at(values, next(numbers))])


def _at(values: torch.Tensor, number: float) -> int:
    """Return where the sum of `values` passes `number` of the whole."""
    cumulative = values.cumsum(-1)
    index = torch.searchsorted(cumulative, number * float(cumulative[-1]), right=True)
    return min(int(index), len(values) - 1)


def _candidates(probabilities: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the probabilities that top_k, then top_p (a share of what top_k left), then min_p leave, and their tokens.

    The token that crosses top_p stays in. None where more than the first few may stay: sorting them takes long.
    """
    num_most = params.top_k if 0 < params.top_k < len(probabilities) else len(probabilities)
    num_sorted = min(num_most, _FIRST_SORTED)
    values, token_ids = torch.topk(probabilities, num_sorted)
    total = float(values.sum()) if num_sorted == num_most else float(probabilities.sum())
    if num_sorted < num_most and (params.top_k > 0 or not _ends_within(values, total, params)):
        return None
    is_kept = (values.cumsum(-1) - values < params.top_p * total) & (values >= params.min_p * values[0])
    num_kept = max(1, int(is_kept.sum()))
    return values[:num_kept], token_ids[:num_kept]


def _ends_within(values: torch.Tensor, total: float, params: SamplingParams) -> bool:
    """True where top_p or min_p cuts inside the sorted `values`."""
    return float(values.sum()) >= params.top_p * total or float(values[-1]) < params.min_p * float(values[0])


def _draw_among_many(probabilities: NDArray[np.float64], params: SamplingParams, numbers: Iterator[float]) -> int:
    """Draw from what the cuts leave, as from `_candidates`, in a few passes instead of a sort (Ye et al. 2025,
    "Sorting-Free GPU Kernels for LLM Sampling").

    A draw tells by the tokens that are likelier whether the cuts leave it. If not, they leave none that is less likely
    either, and the next draw is among the likelier ones. Of equals the first counts as the likelier.
    """
    num_all = len(probabilities)
    num_most = params.top_k if 0 < params.top_k < num_all else num_all
    likeliest = probabilities if num_most == num_all else np.partition(probabilities, -num_most)[-num_most:]
    most = params.top_p * likeliest.sum() if params.top_p < 1.0 else np.inf
    least = params.min_p * probabilities.max()
    left = probabilities
    for number in numbers:
        cumulative = left.cumsum()
        token_id = min(int(cumulative.searchsorted(number * cumulative[-1], side="right")), num_all - 1)
        own = probabilities[token_id]
        is_likelier = probabilities > own
        is_likelier[:token_id] |= probabilities[:token_id] == own
        left = np.where(is_likelier, probabilities, 0.0)
        num_likelier = np.count_nonzero(is_likelier)
        if not num_likelier or (num_likelier < num_most and left.sum() < most and own >= least):
            return token_id
    raise AssertionError("uniform numbers do not end")


def uniform(seed: int, position: int) -> Iterator[float]:
    """Yield numbers in [0, 1) that depend on seed and position only (Philox, a counter-based generator)."""
    generator = np.random.Generator(np.random.Philox(key=seed & (2**64 - 1), counter=position))
    while True:
        yield float(generator.random())
