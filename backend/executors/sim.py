"""SimExecutor: a latency model instead of a model, seeded tokens, injected faults.

The scheduler, the KV manager and the engine in front of it are the production ones; only time and tokens are made up. On
a VirtualClock a step takes no real time; on any other clock it sleeps, so a server can be tried without a model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SimSettings:
    """Capacity, speed and faults of the simulated executor.

    coefficients: c0..c4 of the step time (seconds per unit; backend.policy.latency). noise_ratio: relative standard
    deviation of a step's time. fault_rate: part of the steps that raise ExecutorError. stall_rate, stall_s: part of the
    steps that take `stall_s` longer. A token is a function of (seed, request id, position), never `eos_token_id` but
    where the request's output is to end. verify: check that every attended slot holds what was written for it.
    """

    num_blocks: int = 1024
    block_size: int = 16
    num_host_slots: int = 4096
    max_seq_len: int = 8192
    max_tokens_per_step: int = 2048
    max_seqs_per_step: int = 256
    host_copy_s_per_token: float = 5e-6
    fills_from_right: bool = True
    coefficients: tuple[float, float, float, float, float] = (8e-3, 60e-6, 20e-9, 2e-9, 5e-6)
    noise_ratio: float = 0.0
    fault_rate: float = 0.0
    stall_rate: float = 0.0
    stall_s: float = 0.5
    vocab_size: int = 32_000
    eos_token_id: int = 2
    seed: int = 0
    verify: bool = False
