"""Settings of the scheduler: what an operator may choose, with units and defaults."""

from __future__ import annotations

from dataclasses import dataclass

from backend.core.errors import ConfigError

POLICY_NAMES = ("bros", "fcfs", "priority", "priority_tuned", "tgi", "round_robin", "bros_paper")


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """How requests are queued, packed and preempted. Every field has a JSON form; unknown values raise ConfigError.

    Queues
        policy                  one of POLICY_NAMES
        max_waiting_rt          real-time requests waiting for their first step; more are refused as overloaded
        max_waiting_be          the same for best-effort requests
        max_waiting_bytes       memory that the waiting requests of one class may take, about; more are refused too
        refuse_hopeless_rt      refuse a real-time request whose TTFT SLO cannot be met even alone (else: served late)
    Step limits
        max_tokens_per_step     new tokens; None: what the executor can do
        max_seqs_per_step       requests; None: what the executor can do
        responsiveness_cap_s    longest step, because a real-time request may arrive just after it starts. None: half of
                                the tightest TTFT SLO of the last seconds, of those that can be met at all
        budget_margin           0–1, part of each step budget left unspent against errors of the latency model
    Best-effort
        be_min_share            0–1, part of the step time that best-effort work gets under any real-time load, until
                                real-time fills the KV slots by itself
        kv_headroom_ratio       0–1, part of the KV slots that best-effort admission leaves free for real-time growth
    Latency model
        latency_coefficients    c0..c5 of an offline fit (seconds; see `latency_model`); None: a cautious prior
        latency_forgetting      0–1, weight of past steps per new step
    Ablations, each on by default
        sharing                 real-time and best-effort requests share a block from both ends
        checkpoints             preempted KV is kept in the host pool (else: recomputed)
        chunked_prefill         a prompt may be computed over several steps
        cached_first            of waiting best-effort requests that begin alike, those whose prefix is cached go first
        evict_by_class          of cached KV, what only best-effort used goes first (else: the one used longest ago)
    Off by default
        prefix_caching          prompts that begin alike share KV, and the rest stays until its slots are needed
        prefix_host_tokens      slots of the host pool for cached KV that real-time used, once its slots are needed
    Baselines only
        waiting_served_ratio    `tgi`: waiting / running requests that make it prefill
        paper_base_seqs         `bros_paper`: batch size that its controller falls back to
    """

    policy: str = "bros"
    max_waiting_rt: int = 10_000
    max_waiting_be: int = 100_000
    max_waiting_bytes: int = 1_000_000_000
    refuse_hopeless_rt: bool = False
    max_tokens_per_step: int | None = None
    max_seqs_per_step: int | None = None
    responsiveness_cap_s: float | None = None
    budget_margin: float = 0.05
    be_min_share: float = 0.02
    kv_headroom_ratio: float = 0.02
    latency_coefficients: tuple[float, float, float, float, float, float] | None = None
    latency_forgetting: float = 0.995
    sharing: bool = True
    checkpoints: bool = True
    prefix_caching: bool = False
    prefix_host_tokens: int = 0
    chunked_prefill: bool = True
    cached_first: bool = True
    evict_by_class: bool = True
    waiting_served_ratio: float = 0.3
    paper_base_seqs: int = 128

    def __post_init__(self) -> None:
        if self.policy not in POLICY_NAMES:
            raise ConfigError(f"policy: {self.policy!r} is not one of {', '.join(POLICY_NAMES)}")
        for name in (
            "max_waiting_rt",
            "max_waiting_be",
            "max_waiting_bytes",
            "max_tokens_per_step",
            "max_seqs_per_step",
            "paper_base_seqs",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value} is below 1")
        if self.prefix_host_tokens < 0:
            raise ConfigError(f"prefix_host_tokens: {self.prefix_host_tokens} is below 0")
        for name in ("budget_margin", "be_min_share", "kv_headroom_ratio"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name}: {getattr(self, name)} is outside [0, 1)")
        if not 0.5 <= self.latency_forgetting <= 1.0:
            raise ConfigError(f"latency_forgetting: {self.latency_forgetting} is outside [0.5, 1]")
        for name in ("responsiveness_cap_s", "waiting_served_ratio"):
            if (number := getattr(self, name)) is not None and not 0.0 < number < float("inf"):
                raise ConfigError(f"{name}: {number} is not above 0 and finite")
        if not all(0.0 <= number < float("inf") for number in self.latency_coefficients or ()):
            raise ConfigError(
                f"latency_coefficients: {self.latency_coefficients} has a negative value, or one that is not finite"
            )
