"""Chooses the next token, statelessly: from logits, parameters, seed and position, never from the rest of the batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch

from backend.plan import Sequenced
from backend.request import SamplingParams


class Sampler:
    """Samples from logits; `eos_token_ids` end a text unless the request ignores them."""

    def __init__(self, eos_token_ids: Collection[int]) -> None:
        self._eos_token_ids = sorted(eos_token_ids)

    def sample(self, logits: torch.Tensor, sequences: Sequence[Sequenced]) -> tuple[list[int], list[float | None]]:
        """Return a token and a log-probability (where wanted) per row of `logits` [len(sequences), vocabulary].

        The log-probability is the model's own, before penalties, temperature and cuts. `logits` may be overwritten.
        """
        raw = [
            _log_softmax(row) if s.sampling.wants_log_probs else None for row, s in zip(logits, sequences, strict=True)
        ]
        for row, sequence in zip(logits, sequences, strict=True):
            self._restrict(row, sequence)
        token_ids: list[int] = logits.argmax(-1).tolist()
        for index, sequence in enumerate(sequences):
            if sequence.sampling.temperature > 0.0:
                token_ids[index] = _draw(logits[index], sequence)
        log_probs = [None if row is None else float(row[token]) for row, token in zip(raw, token_ids, strict=True)]
        return token_ids, log_probs

    def _restrict(self, logits: torch.Tensor, sequence: Sequenced) -> None:
        """Apply penalties and, before `min_tokens`, forbid the ends; in place."""
        params = sequence.sampling
        if _has_penalties(params):
            _penalise(logits, sequence)
        if len(sequence.token_ids) - sequence.num_prompt < params.min_tokens:
            ends = {*self._eos_token_ids, *params.stop_token_ids}
            logits[sorted(end for end in ends if end < len(logits))] = float("-inf")


def _has_penalties(params: SamplingParams) -> bool:
    return (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1.0, 0.0, 0.0)


def _penalise(logits: torch.Tensor, sequence: Sequenced) -> None:
    """Repetition penalty over prompt and output (Keskar et al. 2019, §4.1), presence and frequency over the output."""
    params = sequence.sampling
    seen = torch.from_numpy(np.unique(np.array(sequence.token_ids, np.int64))).to(logits.device)
    values = logits[seen]
    logits[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    output = np.array(sequence.token_ids[sequence.num_prompt :], np.int64)
    ids, counts = np.unique(output, return_counts=True)
    penalty = params.presence_penalty + params.frequency_penalty * counts
    logits[torch.from_numpy(ids).to(logits.device)] -= torch.from_numpy(penalty.astype(np.float32)).to(logits.device)


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits, -1, dtype=torch.float32)


def _draw(logits: torch.Tensor, sequence: Sequenced) -> int:
    """Draw by inverse transform: sort by probability, cut, and take the token where the sum passes a uniform number."""
    params = sequence.sampling
    probabilities = torch.softmax(logits.double() / params.temperature, -1)
    num_candidates = params.top_k if 0 < params.top_k < len(logits) else len(logits)
    values, token_ids = torch.topk(probabilities, num_candidates)
    cumulative = values.cumsum(-1)
    # top_p is a share of what top_k left; the token that crosses it stays in.
    is_kept = (cumulative - values) < params.top_p * cumulative[-1]
    is_kept &= values >= params.min_p * values[0]
    num_kept = max(1, int(is_kept.sum()))
    threshold = uniform(params.seed, len(sequence.token_ids)) * float(cumulative[num_kept - 1])
    index = int(torch.searchsorted(cumulative[:num_kept], threshold, right=True))
    return int(token_ids[min(index, num_kept - 1)])


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) that depends on seed and position only (Philox, a counter-based generator)."""
    return float(np.random.Generator(np.random.Philox(key=seed & (2**64 - 1), counter=position)).random())
