"""A scenario: everything that decides a simulated run, as one value that a result file can hold."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from backend.policy.settings import SchedulerSettings
from bench.common.score import Slos
from bench.common.workload import (
    NAMED_LENGTHS,
    Arrival,
    Lengths,
    closed_loop,
    gamma_arrivals,
    open_loop,
    parse_lengths,
    parse_trace,
    scale_rate,
)
from bench.sim.limit import Machine
from bench.sim.step_models import load_pairs

SCENARIOS = Path(__file__).parents[1] / "scenarios"
_SUPPLY_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Scenario:
    """One simulated run. Lengths and traces are names of files in bench/scenarios, paths, or named distributions.

    pair                  model and GPUs (bench/sim/step_models.json)
    policy, settings      policy name; other fields of SchedulerSettings that differ from their defaults
    rt_rate, rt_cv        real-time arrivals per second, and the coefficient of variation of their gaps (1: Poisson)
    rt_trace              instead: arrivals of this CSV file, sped up by `rt_trace_speed`
    rt_lengths            prompt and output lengths where there is no trace
    be_outstanding        best-effort requests kept in the system: the next arrives when one completes
    be_backlog            instead: so many at time 0; be_rate: so many per second, Poisson
    be_lengths, be_trace  their lengths: a distribution, or a CSV file taken in order and from the start again
    ttft_slo_s, tpot_slo_s   objectives of every real-time request
    kv_tokens, host_kv_tokens, max_seqs, max_tokens_per_step   limits; kv_tokens None: the pair's,
                          host_kv_tokens None: as many as kv_tokens
    warmup_s, duration_s  real-time requests arrive in [0, duration_s) and are scored from warmup_s on
    drain_s               how long after duration_s unfinished real-time requests may run on before they count as missed
    """

    pair: str = "llama8b-a100"
    policy: str = "bros"
    settings: Mapping[str, Any] = field(default_factory=dict)
    rt_rate: float = 0.0
    rt_cv: float = 1.0
    rt_trace: str | None = None
    rt_trace_speed: float = 1.0
    rt_lengths: str = "lengths_sharegpt.csv"
    be_outstanding: int = 0
    be_backlog: int = 0
    be_rate: float = 0.0
    be_lengths: str = "paper_be"
    be_trace: str | None = None
    ttft_slo_s: float = 0.4
    tpot_slo_s: float = 0.2
    kv_tokens: int | None = None
    host_kv_tokens: int | None = None
    max_seqs: int = 256
    max_tokens_per_step: int = 2048
    warmup_s: float = 100.0
    duration_s: float = 300.0
    drain_s: float = 300.0
    seed: int = 0

    @property
    def slos(self) -> Slos:
        return Slos(self.ttft_slo_s, self.tpot_slo_s)

    @property
    def machine(self) -> Machine:
        pair = load_pairs()[self.pair]
        kv_tokens = pair.kv_tokens if self.kv_tokens is None else self.kv_tokens
        return Machine(pair, kv_tokens, self.max_seqs, self.max_tokens_per_step)

    @property
    def scheduler_settings(self) -> SchedulerSettings:
        return SchedulerSettings(policy=self.policy, **self.settings)

    @property
    def max_be_outstanding(self) -> int:
        """Best-effort requests that may be in the system at once."""
        return self.be_outstanding or self.be_backlog or 10**9

    def rt_arrivals(self) -> list[Arrival]:
        """Real-time requests in [0, duration_s), by arrival. They depend on the seed only, not on policy or BE load."""
        rng = np.random.default_rng([self.seed, 1])
        if self.rt_trace is not None:
            trace = scale_rate(parse_trace(_read(self.rt_trace)), self.rt_trace_speed)
            return [arrival for arrival in trace if arrival.arrival_s < self.duration_s]
        times_s = gamma_arrivals(self.rt_rate, self.duration_s, self.rt_cv, rng)
        return open_loop(times_s, _lengths(self.rt_lengths), rng)

    def be_supply(self) -> Iterator[Arrival]:
        """Best-effort requests in order: endless in a closed loop, where they carry no arrival times."""
        rng = np.random.default_rng([self.seed, 2])
        if self.be_rate > 0.0:
            times_s = gamma_arrivals(self.be_rate, self.duration_s, 1.0, rng)
            return iter(open_loop(times_s, _lengths(self.be_lengths), rng))
        if self.be_trace is not None:
            rows = parse_trace(_read(self.be_trace))
            supply: Iterator[Arrival] = (replace(row, arrival_s=0.0) for row in itertools.cycle(rows))
        else:
            lengths = _lengths(self.be_lengths)
            chunks = (closed_loop(_SUPPLY_CHUNK, lengths, rng) for _ in itertools.count())
            supply = itertools.chain.from_iterable(chunks)
        return itertools.islice(supply, None if self.be_outstanding else self.be_backlog)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Scenario:
        """Read fields as `to_json` gives them; absent ones take their defaults, unknown ones raise ValueError."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"scenario: unknown fields {', '.join(unknown)}")
        return cls(**values)

    @classmethod
    def named(cls, name: str) -> Scenario:
        """Return the scenario of bench/scenarios/{name}.json."""
        return cls.from_json(json.loads((SCENARIOS / f"{name}.json").read_text()))


def _lengths(name: str) -> Lengths:
    return NAMED_LENGTHS[name] if name in NAMED_LENGTHS else parse_lengths(_read(name))


def _read(name: str) -> str:
    packaged = SCENARIOS / name
    return (packaged if packaged.exists() else Path(name)).read_text()
