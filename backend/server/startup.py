"""What an engine says of itself when it is ready: its memory, and its speed beside the default objectives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backend.core.executor import Executor, ExecutorCapacity
from backend.core.plan import StepBatch
from backend.core.request import PriorityClass, Request, RequestId, SamplingParams, Slo
from backend.policy.state.latency_model import LatencyModel, StepFeatures

_PREFILL_TOKENS = 128  # a short question's prompt; a longer one costs more for each token
_NUM_DECODES = 3
_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Speed:
    """Steps of one request alone, in seconds: one that decodes, and one that computes a prompt of `num_prompt`."""

    decode_s: float
    prefill_s: float
    num_prompt: int

    def longest_prompt(self, ttft_slo_s: float) -> int:
        """Return about how many prompt tokens are computed alone within `ttft_slo_s`."""
        return int(ttft_slo_s / self.prefill_s * self.num_prompt)


def measure_speed(executor: Executor) -> Speed:
    """Run steps of one made-up request on an executor that nobody uses yet; the first warms it up."""
    capacity = executor.capacity()
    num_slots = min(capacity.num_blocks * capacity.block_size, capacity.max_seq_len)
    num_prompt = min(_PREFILL_TOKENS, num_slots, capacity.max_tokens_per_step)
    prompt = (1,) * num_prompt
    request = Request(RequestId("speed"), PriorityClass.REAL_TIME, prompt, SamplingParams(), arrival_s=0.0, row=0)
    table = np.arange(num_slots, dtype=np.int32)[None]

    def step(num_tokens: int) -> float:
        return executor.execute(StepBatch([request], [num_tokens], table)).duration_s

    step(num_prompt)
    prefill_s = step(num_prompt)
    request.num_computed = num_prompt - 1  # its last token again, as if that had just been sampled
    return Speed(min(step(1) for _ in range(_NUM_DECODES)), prefill_s, num_prompt)


def speed_of(latency: LatencyModel) -> Speed:
    """Return what a model says of the same steps."""
    n = _PREFILL_TOKENS
    prefill = StepFeatures(new_tokens=n, prefill_pairs=0.5 * n * n, has_prefill=True)
    decode = StepFeatures(new_tokens=1, context_tokens=n)
    return Speed(latency.predict_s(decode), latency.predict_s(prefill), n)


def speed_line(speed: Speed, objectives: Slo) -> str:
    """Say how fast the machine is alone, and what of the default real-time objectives it can meet."""
    decode_ms, tpot_slo_ms = speed.decode_s * 1e3, objectives.tpot_slo_s * 1e3
    longest = speed.longest_prompt(objectives.ttft_slo_s)
    tpot = "is met" if decode_ms <= tpot_slo_ms else "CANNOT BE MET"
    return (
        f"alone, this machine decodes in {decode_ms:.1f} ms and computes a prompt of {speed.num_prompt} tokens in "
        f"{speed.prefill_s * 1e3:.0f} ms: the default TPOT objective of {tpot_slo_ms:g} ms {tpot}, "
        f"the TTFT objective of {objectives.ttft_slo_s * 1e3:g} ms by prompts of up to about {longest} tokens"
    )


def memory_line(capacity: ExecutorCapacity) -> str:
    """Return the planned memory by use, in words."""
    num_tokens = capacity.num_blocks * capacity.block_size
    return (
        f"memory: weights {_megabytes(capacity.weight_bytes)}, KV pool {_megabytes(capacity.kv_bytes)} "
        f"({num_tokens} tokens), host pool {_megabytes(capacity.host_kv_bytes)} ({capacity.num_host_slots} tokens)"
    )


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / _MB:,.0f} MB"
