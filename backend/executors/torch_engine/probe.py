"""A model is served only where it is served exactly: a short run through our path must give the library's own logits.

Two sequences: the first in two chunks, the second beside its second chunk, then both decode. The compared logits have
thus passed the pool, steps of several sequences, and every kernel that serves. All tokens are fixed, so the library
computes each sequence at once, without a cache of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from backend.core.errors import ConfigError
from backend.core.executor import ExecutorCapacity
from backend.executors.torch_engine.executor import Model
from backend.executors.torch_engine.inputs import Segment, StepInputs

# Parts of a step: which of the two sequences, and how many tokens of it.
_STEPS = [[(0, 24)], [(0, 15), (1, 9)], *[[(0, 1), (1, 1)]] * 3]
_LENGTHS = [sum(n for step in _STEPS for index, n in step if index == row) for row in (0, 1)]
_NUM_SLOTS = 2 * max(_LENGTHS)
# Limit of the difference between logits after a token, as a share of their spread. Both are root mean squares over the
# vocabulary; unrelated logits differ by 1.4. The largest difference seen, over tiny models of thirty families and
# SmolLM2, is 6e-6 in float32. In bf16 it is 0.11 after all layers, 0.05 after two.
FLOAT32_LIMIT = 1e-3
BF16_LIMIT = 0.5
BF16_FEW_LAYERS_LIMIT = 0.15


@dataclass(frozen=True, slots=True)
class Difference:
    """How far our logits are from the library's after `num_tokens` tokens; `error` is a share of their spread."""

    num_tokens: int
    error: float
    token_id: int
    expected_token_id: int


def probe_capacity() -> ExecutorCapacity:
    """Return what a model needs to be probed, whatever it is to serve."""
    return ExecutorCapacity(
        block_size=1,
        num_blocks=_NUM_SLOTS,
        num_host_slots=0,
        max_seq_len=max(_LENGTHS),
        max_tokens_per_step=max(sum(n for _, n in step) for step in _STEPS),
        max_seqs_per_step=2,
    )


def probe_tokens(vocab_size: int) -> list[torch.Tensor]:
    """Return the two sequences, int64; the last token of the vocabulary is in the first."""
    random = np.random.default_rng(0)
    sequences = [torch.from_numpy(random.integers(0, vocab_size, length)) for length in _LENGTHS]
    sequences[0][3] = vocab_size - 1
    return sequences


def worst_difference(
    model: Model, vocab_size: int, expected: Sequence[torch.Tensor], rows: torch.Tensor | None = None
) -> Difference:
    """Run `model` and compare; `expected` has the tokens `rows` of the vocabulary, all where that is None."""
    return max(_differences(model, probe_tokens(vocab_size), expected, rows), key=_badness)


def require_small(difference: Difference, limit: float, name: str) -> None:
    """Raise ConfigError where the logits are further apart than `limit`, or are no numbers."""
    if not difference.error <= limit:
        raise ConfigError(
            f"{name} would be served wrong: after {difference.num_tokens} tokens its logits differ from the reference "
            f"by {difference.error:.2g} of their spread, the limit is {limit:g}; the greedy token is "
            f"{difference.token_id} instead of {difference.expected_token_id}"
        )


def _badness(difference: Difference) -> float:
    return float("inf") if np.isnan(difference.error) else difference.error


@torch.inference_mode()
def _differences(
    model: Model, sequences: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], rows: torch.Tensor | None
) -> Iterator[Difference]:
    done = [0, 0]
    for step in _STEPS:
        logits = model.forward(_inputs(step, done, sequences)).float().cpu()
        for (index, num_new), row in zip(step, logits, strict=True):
            done[index] += num_new
            mine, reference = row if rows is None else row[rows], expected[index][done[index] - 1]
            spread = (reference - reference.mean()).square().mean().sqrt()
            error = float((mine - reference).square().mean().sqrt() / spread)
            named = torch.arange(len(mine)) if rows is None else rows
            yield Difference(done[index], error, int(named[mine.argmax()]), int(named[reference.argmax()]))


def _inputs(step: Sequence[tuple[int, int]], done: Sequence[int], sequences: Sequence[torch.Tensor]) -> StepInputs:
    """Pack a step; each sequence has every other slot, from the end."""
    table = np.arange(_NUM_SLOTS, dtype=np.int32)[::-1].reshape(-1, 2).T.copy()
    counts = [num_new for _, num_new in step]
    ends = np.cumsum(counts)
    segments = [
        Segment(int(end) - num_new, num_new, done[row], row) for (row, num_new), end in zip(step, ends, strict=True)
    ]
    rows = np.repeat(np.array([row for row, _ in step], np.int32), counts)
    positions = np.concatenate([np.arange(s.start, s.num_context, dtype=np.int64) for s in segments])
    return StepInputs(
        token_ids=np.concatenate([sequences[s.row][s.start : s.num_context].numpy() for s in segments]),
        positions=positions,
        slots=table[rows, positions].astype(np.int64),
        rows=rows,
        segments=segments,
        sampled=list(range(len(segments))),
        sampled_tokens=(ends - 1).astype(np.int64),
        slot_table=table,
    )
