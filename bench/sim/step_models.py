"""Step times of TensorRT-LLM on real GPUs, as a function of what a step computes.

step_models.json contains the coefficients, their source, licence and held-out errors. `python -m tools.fit_step_models`
fits them again from the same public package. The form is a roofline: reading the weights costs a floor, and tokens
beyond the knee cost arithmetic.

    t = base + below·min(N, k) + above·softplus(N − k; width = smooth·k) + context·Cd + pair·Ap + seq·D + (any prefill)

N: new tokens; k: the knee; Cd, D: sum of contexts and number of decoding sequences. Ap = Σ p·(q + p/2) over chunks of p
prefill tokens after q cached ones. Copies to and from the host are added, not hidden behind compute: the cautious
assumption.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DOCUMENT_PATH = Path(__file__).with_name("step_models.json")


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one step computes. `prefill_pairs` counts query-key pairs of prefill chunks (see the module's formula)."""

    num_new_tokens: int = 0
    num_decodes: int = 0
    decode_context: int = 0
    num_prefills: int = 0
    prefill_pairs: float = 0.0
    num_copied: int = 0

    @classmethod
    def of_sequences(cls, starts: Sequence[int], counts: Sequence[int], num_copied: int = 0) -> StepWork:
        """Add up sequences of which each computes `counts[i]` new tokens (> 0) after `starts[i]` cached ones."""
        chunks = [index for index, num_new in enumerate(counts) if num_new > 1]  # the few that are no decodes
        return cls(
            num_new_tokens=sum(counts),
            num_decodes=len(counts) - len(chunks),
            decode_context=sum(starts) - sum(starts[index] for index in chunks),
            num_prefills=len(chunks),
            prefill_pairs=sum(counts[index] * (starts[index] + counts[index] / 2) for index in chunks),
            num_copied=num_copied,
        )


@dataclass(frozen=True, slots=True)
class Coefficients:
    """The roofline's coefficients, in milliseconds per unit as in the JSON file; `smooth` has no unit."""

    base_ms: float
    below_knee_ms_per_token: float
    above_knee_ms_per_token: float
    decode_context_ms_per_token: float
    prefill_ms_per_pair: float
    decode_ms_per_seq: float
    any_prefill_ms: float
    knee_tokens: float
    smooth: float


@dataclass(frozen=True, slots=True)
class Pair:
    """A model on its GPUs: step times, KV capacity and copy speed."""

    name: str
    description: str
    coefficients: Coefficients
    kv_tokens: int
    host_overhead_s: float
    host_copy_s_per_token: float

    def step_s(self, work: StepWork) -> float:
        """Return the time of one step in seconds."""
        c = self.coefficients
        exec_ms = (
            self.token_ms(work.num_new_tokens)
            + c.decode_context_ms_per_token * work.decode_context
            + c.prefill_ms_per_pair * work.prefill_pairs
            + c.decode_ms_per_seq * work.num_decodes
            + c.any_prefill_ms * (work.num_prefills > 0)
        )
        return exec_ms * 1e-3 + self.host_overhead_s + self.host_copy_s_per_token * work.num_copied

    def token_ms(self, num_new_tokens: float) -> float:
        """Return the part of the step time that depends on the number of new tokens alone, in ms."""
        c = self.coefficients
        below, above = token_basis(num_new_tokens, c.knee_tokens, c.smooth)
        return c.base_ms + c.below_knee_ms_per_token * below + c.above_knee_ms_per_token * above


def token_basis(num_new_tokens: float, knee_tokens: float, smooth: float) -> tuple[float, float]:
    """Return the tokens below the knee and, smoothed, those above it."""
    width = smooth * knee_tokens
    beyond = (num_new_tokens - knee_tokens) / width
    softplus = beyond if beyond > 30.0 else math.log1p(math.exp(beyond))
    return min(num_new_tokens, knee_tokens), width * softplus


@cache
def load_pairs() -> dict[str, Pair]:
    """Return the shipped pairs by name."""
    document = json.loads(DOCUMENT_PATH.read_text())
    copy_bytes_per_s = document["host_copy_bytes_per_s_per_gpu"]
    return {
        name: Pair(
            name=name,
            description=entry["description"],
            coefficients=Coefficients(**entry["coefficients"]),
            kv_tokens=entry["kv_tokens"],
            host_overhead_s=document["host_overhead_ms"] * 1e-3,
            host_copy_s_per_token=entry["kv_bytes_per_token"] / (copy_bytes_per_s * entry["num_gpus"]),
        )
        for name, entry in document["pairs"].items()
    }
