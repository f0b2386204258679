"""A scenario: everything that decides a simulated run, as one value that a result file can hold."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from backend.policy.settings import SchedulerSettings
from bench.common.score import Slos, Window
from bench.common.workload import (
    NAMED_LENGTHS,
    Arrival,
    Lengths,
    closed_loop,
    gamma_arrivals,
    on_off_arrivals,
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
    rt_burst              factor of the rate in the first 10 s of each minute (then rt_cv is 1)
    rt_trace              instead: arrivals of this CSV file, sped up by `rt_trace_speed`
    rt_lengths            prompt and output lengths without a trace
    rt_max_tokens         max_tokens of real-time requests, whose outputs end before; 0: as long as the output is
    be_outstanding        best-effort requests kept in the system: the next arrives when one completes
    be_backlog            instead: their number at time 0; be_rate: instead, per second, Poisson
    be_lengths, be_trace  their lengths: a distribution, or a CSV file taken in order and from the start again. Without
                          `be_outstanding`, `be_backlog` and `be_rate` the file's requests arrive at its times
    be_finish_by_s        deadline of each best-effort request, in seconds after its arrival
    ttft_slo_s, tpot_slo_s   objectives of real-time requests, but for
    other_slo_share       this part of them (0-1), which asks `other_ttft_slo_s` and `other_tpot_slo_s`
    other_prompt_tokens, other_output_tokens   lengths of these; 0: as drawn
    kv_tokens, host_kv_tokens, max_seqs, max_tokens_per_step   limits; kv_tokens None: the pair's,
                          host_kv_tokens None: as many as kv_tokens
    block_size            positions of KV in a block
    step_noise            standard deviation of the lognormal factor by which steps differ from the pair's step model
    stall_s               one step in 500 takes this many seconds longer
    slowdown              factor on the time of steps in the second 10 s of each 20 s
    warmup_s, duration_s  real-time requests arrive in [0, duration_s) and are scored from warmup_s on
    drain_s               time after duration_s in which unfinished real-time requests may still finish
    """

    pair: str = "llama8b-a100"
    policy: str = "bros"
    settings: Mapping[str, Any] = field(default_factory=dict)
    rt_rate: float = 0.0
    rt_cv: float = 1.0
    rt_burst: float = 1.0
    rt_trace: str | None = None
    rt_trace_speed: float = 1.0
    rt_lengths: str = "lengths_sharegpt.csv"
    rt_max_tokens: int = 0
    be_outstanding: int = 0
    be_backlog: int = 0
    be_rate: float = 0.0
    be_lengths: str = "paper_be"
    be_trace: str | None = None
    be_finish_by_s: float | None = None
    ttft_slo_s: float = 0.4
    tpot_slo_s: float = 0.2
    other_slo_share: float = 0.0
    other_ttft_slo_s: float = 0.4
    other_tpot_slo_s: float = 0.2
    other_prompt_tokens: int = 0
    other_output_tokens: int = 0
    kv_tokens: int | None = None
    host_kv_tokens: int | None = None
    block_size: int = 16
    max_seqs: int = 256
    max_tokens_per_step: int = 2048
    step_noise: float = 0.0
    slowdown: float = 1.0
    stall_s: float = 0.0
    warmup_s: float = 100.0
    duration_s: float = 300.0
    drain_s: float = 300.0
    seed: int = 0

    def check(self) -> None:
        """Raise ValueError where nothing would be scored, or where a field contradicts another."""
        for name, value in asdict(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} {value:g} is not finite")
        if self.duration_s <= self.warmup_s:
            raise ValueError(
                f"duration_s {self.duration_s:g} must be above warmup_s {self.warmup_s:g}: nothing is scored"
            )
        sources = {name: getattr(self, name) for name in ("be_outstanding", "be_backlog", "be_rate")}
        given = [f"{name} {value:g}" for name, value in sources.items() if value]
        if len(given) > 1:
            raise ValueError(f"best-effort requests come from one of be_outstanding, be_backlog, be_rate; got {given}")
        if self.rt_burst > 1.0 and self.rt_cv != 1.0:
            raise ValueError(f"rt_burst {self.rt_burst:g} needs rt_cv 1, not {self.rt_cv:g}")
        if self.slowdown < 1.0 or min(self.step_noise, self.stall_s) < 0.0:
            raise ValueError(
                f"slowdown {self.slowdown:g} is below 1, or step_noise {self.step_noise:g} or stall_s "
                f"{self.stall_s:g} below 0"
            )
        if not 0.0 <= self.other_slo_share <= 1.0:
            raise ValueError(f"other_slo_share {self.other_slo_share:g} must be from 0 to 1")
        if self.machine.kv_tokens < self.block_size:
            raise ValueError(f"kv_tokens {self.machine.kv_tokens} is less than a block of {self.block_size}")

    @property
    def is_be_timed(self) -> bool:
        """Whether best-effort requests come at times of their own, whatever has been served."""
        return self.be_rate > 0.0 or (self.be_trace is not None and not self.be_outstanding and not self.be_backlog)

    @property
    def window(self) -> Window:
        return Window(self.warmup_s, self.duration_s)

    @property
    def slos(self) -> Slos:
        return Slos(self.ttft_slo_s, self.tpot_slo_s)

    @property
    def loosest_slos(self) -> Slos:
        """What every real-time request asks at least: bounds on all of them hold for these."""
        if not self.other_slo_share:
            return self.slos
        return Slos(max(self.ttft_slo_s, self.other_ttft_slo_s), max(self.tpot_slo_s, self.other_tpot_slo_s))

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
        drawn = self._drawn_rt_arrivals()
        if not (self.other_prompt_tokens or self.other_output_tokens):
            return drawn
        return [
            replace(
                arrival,
                num_prompt=self.other_prompt_tokens or arrival.num_prompt,
                num_output=self.other_output_tokens or arrival.num_output,
            )
            if is_other
            else arrival
            for arrival, is_other in zip(drawn, self._are_others(len(drawn)), strict=True)
        ]

    def _drawn_rt_arrivals(self) -> list[Arrival]:
        rng = np.random.default_rng([self.seed, 1])
        if self.rt_trace is not None:
            trace = scale_rate(read_trace(self.rt_trace), self.rt_trace_speed)
            return [arrival for arrival in trace if arrival.arrival_s < self.duration_s]
        if self.rt_burst > 1.0:
            times_s = on_off_arrivals(self.rt_rate, self.duration_s, self.rt_burst, rng)
        else:
            times_s = gamma_arrivals(self.rt_rate, self.duration_s, self.rt_cv, rng)
        return open_loop(times_s, read_lengths(self.rt_lengths), rng)

    def rt_slos(self, num_requests: int) -> list[Slos]:
        """The objectives of the first `num_requests` real-time requests, in order of arrival."""
        other = Slos(self.other_ttft_slo_s, self.other_tpot_slo_s)
        return [other if is_other else self.slos for is_other in self._are_others(num_requests)]

    def _are_others(self, num_requests: int) -> list[bool]:
        others: list[bool] = (
            np.random.default_rng([self.seed, 3]).random(num_requests) < self.other_slo_share
        ).tolist()
        return others

    def without_be(self) -> Scenario:
        """The same with real-time requests alone."""
        return replace(self, be_outstanding=0, be_backlog=0, be_rate=0.0, be_trace=None)

    def be_supply(self) -> Iterator[Arrival]:
        """Best-effort requests in order: endless in a closed loop, where they carry no arrival times of their own."""
        rng = np.random.default_rng([self.seed, 2])
        if self.be_rate > 0.0:
            times_s = gamma_arrivals(self.be_rate, self.duration_s, 1.0, rng)
            return iter(open_loop(times_s, read_lengths(self.be_lengths), rng))
        if self.be_trace is not None:
            rows = read_trace(self.be_trace)
            if self.is_be_timed:
                return (row for row in rows if row.arrival_s < self.duration_s)
            supply: Iterator[Arrival] = (replace(row, arrival_s=0.0) for row in itertools.cycle(rows))
        else:
            lengths = read_lengths(self.be_lengths)
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


def read_lengths(name: str) -> Lengths:
    """Return a named distribution, or that of a file. Raises OSError and ValueError."""
    return NAMED_LENGTHS[name] if name in NAMED_LENGTHS else parse_lengths(_read(name))


def read_trace(name: str) -> list[Arrival]:
    """Return the arrivals of a file. Raises OSError and ValueError."""
    return parse_trace(_read(name))


def _read(name: str) -> str:
    packaged = SCENARIOS / name
    return (packaged if packaged.exists() else Path(name)).read_text()
