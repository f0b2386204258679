"""Traces whose prompts share prefixes, at the scale of a GPU, and the hit rates of the production engine on them.

    chat        conversations: each turn repeats all before it
    documents   questions about long documents, a few of which are asked about often (the shape of Mooncake's trace)
    flood       `chat`, with best-effort prompts that share nothing in as many tokens as the pool has, again and again
    jobs        `chat`, with a best-effort file whose prompts begin with one of many system prompts, in any order

`scale` makes the number of requests and the pool smaller alike. Two oracles (bench/sim/prefix_oracle.py) drop the least
recently used block, whichever class used it. On `flood` they stand for a cache without classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.random import Generator

from backend.core.clock import VirtualClock
from backend.core.executor import ExecutorCapacity
from backend.core.plan import StepOutput
from backend.core.request import PrefixSource, PriorityClass, Request, RequestId, SamplingParams, Slo
from backend.engine.engine import Engine, Submit
from backend.engine.scheduler import make_scheduler
from backend.policy.settings import SchedulerSettings
from bench.common.stats import share
from bench.sim.gpu_executor import TOKEN_ID, GpuExecutor
from bench.sim.prefix_oracle import BLOCK_SIZE, Served, Turn, oracle, oracle_beside
from bench.sim.step_models import load_pairs

PAIR = "llama8b-h100"
MAX_SEQ_LEN = 16_384
MAX_SEQS = 256
TTFT_SLO_S, TPOT_SLO_S = 1.0, 0.1
_NUM_CHATS, _CHATS_PER_S, _TURN_GAP_S = 600, 2.0, 30.0
_NUM_DOCUMENTS, _NUM_QUESTIONS, _QUESTIONS_PER_S = 120, 1_500, 3.0
_NUM_SYSTEM_PROMPTS, _NUM_LINES = 400, 10_000


def chat(rng: Generator, scale: float) -> list[Turn]:
    """Conversations of five turns on average."""
    turns = []
    starts_s = np.cumsum(rng.exponential(1 / _CHATS_PER_S, max(1, round(_NUM_CHATS * scale))))
    for start_s in starts_s.tolist():
        history: tuple[int, ...] = ()
        at_s = start_s
        for _ in range(int(rng.geometric(0.2))):
            history += _tokens(rng, _length(rng, 150, 1_500))
            num_output = _length(rng, 200, 800)
            if len(history) + num_output > MAX_SEQ_LEN:
                break
            turns.append(Turn(at_s, True, history, num_output))
            history += (TOKEN_ID,) * num_output
            at_s += 5.0 + float(rng.exponential(_TURN_GAP_S))
    return turns


def documents(rng: Generator, scale: float) -> list[Turn]:
    """Questions about documents of some thousand tokens; half of them are best-effort."""
    texts = [_tokens(rng, _length(rng, 6_000, 14_000)) for _ in range(max(2, round(_NUM_DOCUMENTS * scale)))]
    popularity = 1 / np.arange(1, len(texts) + 1)
    number = max(1, round(_NUM_QUESTIONS * scale))
    chosen = rng.choice(len(texts), number, p=popularity / popularity.sum())
    times_s = np.cumsum(rng.exponential(1 / _QUESTIONS_PER_S, number))
    return [
        Turn(at_s, bool(rng.random() < 0.5), texts[index] + _tokens(rng, _length(rng, 60, 300)), _length(rng, 80, 400))
        for at_s, index in zip(times_s.tolist(), chosen.tolist(), strict=True)
    ]


def flood(rng: Generator, scale: float) -> list[Turn]:
    """Conversations beside best-effort prompts that nobody sends again."""
    turns = chat(rng, scale)
    end_s = max(turn.arrival_s for turn in turns)
    times_s = np.arange(0.0, end_s, 1.0)
    return turns + [Turn(at_s, False, _tokens(rng, 4_000), 20) for at_s in times_s.tolist()]


def jobs(rng: Generator, scale: float) -> list[Turn]:
    """Conversations beside a file that is there from the start. Its system prompts do not fit into the pool at once."""
    turns = chat(rng, scale)
    systems = [_tokens(rng, _length(rng, 1_500, 6_000)) for _ in range(max(2, round(_NUM_SYSTEM_PROMPTS * scale)))]
    return turns + [
        Turn(0.0, False, systems[index] + _tokens(rng, _length(rng, 100, 400)), _length(rng, 60, 200))
        for index in rng.integers(0, len(systems), round(_NUM_LINES * scale)).tolist()
    ]


TRACES: dict[str, Callable[[Generator, float], list[Turn]]] = {
    "chat": chat,
    "documents": documents,
    "flood": flood,
    "jobs": jobs,
}


WITH_HOST = "by class, host part"  # of as many slots as the pool; checkpoints have as many beside it
CACHES: Mapping[str, SchedulerSettings] = {
    "by class": SchedulerSettings(prefix_caching=True),
    "by last use": SchedulerSettings(prefix_caching=True, evict_by_class=False),
    "by class, order of arrival": SchedulerSettings(prefix_caching=True, cached_first=False),
    WITH_HOST: SchedulerSettings(prefix_caching=True),
    "none": SchedulerSettings(prefix_caching=False),
}

COMPARED: Mapping[str, Sequence[str]] = {  # `chat` has one class
    "chat": ("by class", "none"),
    "documents": ("by class", "by last use", "by class, order of arrival", WITH_HOST, "none"),
    "flood": ("by class", "by last use", WITH_HOST, "none"),
    "jobs": ("by class", "by class, order of arrival", WITH_HOST, "none"),
}


def simulate(name: str, seed: int, cache: str, scale: float = 1.0) -> dict[str, Any]:
    """Run a trace; return hit rates by class, the oracles', and the share of real-time requests within both SLOs."""
    turns = sorted(TRACES[name](np.random.default_rng([seed, 7]), scale), key=lambda turn: turn.arrival_s)
    run = _Run(turns, CACHES[cache], scale, has_host_part=cache == WITH_HOST)
    run.run()
    oracles = {"oracle_hit_rate": oracle(turns, run.num_slots), "beside_hit_rate": run.oracle_beside()}
    return {"num_requests": len(turns), **run.result(), **oracles}


@dataclass(slots=True, eq=False)
class _Run:
    turns: Sequence[Turn]
    settings: SchedulerSettings
    scale: float
    has_host_part: bool = False
    clock: VirtualClock = field(default_factory=VirtualClock)
    num_failed: int = 0
    ends_s: dict[str, float] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    taken: list[tuple[float, int]] = field(default_factory=list)  # slots that requests hold, by time
    prefix_tokens: Mapping[tuple[PriorityClass, PrefixSource], int] = field(default_factory=dict)

    @property
    def num_slots(self) -> int:
        return int(load_pairs()[PAIR].kv_tokens * self.scale) // BLOCK_SIZE * BLOCK_SIZE

    def run(self) -> None:
        """Let all turns come and end."""
        pair = load_pairs()[PAIR]
        capacity = ExecutorCapacity(
            block_size=BLOCK_SIZE,
            num_blocks=self.num_slots // BLOCK_SIZE,
            num_host_slots=self.num_slots * (1 + self.has_host_part),
            max_seq_len=MAX_SEQ_LEN,
            max_tokens_per_step=2_048,
            max_seqs_per_step=MAX_SEQS,
            host_copy_s_per_token=pair.host_copy_s_per_token,
        )
        num_for_prefixes = self.num_slots * self.has_host_part
        scheduler = make_scheduler(replace(self.settings, prefix_host_tokens=num_for_prefixes), capacity)
        engine = Engine(scheduler, GpuExecutor(pair, capacity, self.clock), self.clock, self._note)
        arrivals = self._arrivals()
        waiting = next(arrivals, None)
        while True:
            while waiting is not None and waiting.arrival_s <= self.clock.now_s():
                engine.post(Submit(waiting))
                waiting = next(arrivals, None)
            did_step = engine.step()
            usage = scheduler.kv.usage()
            self.taken.append((self.clock.now_s(), usage.num_head_slots + usage.num_tail_slots))
            if not did_step:
                if waiting is None:
                    break
                self.clock.advance(max(0.0, waiting.arrival_s - self.clock.now_s()))
        self.prefix_tokens = scheduler.stats().total_prefix_tokens

    def result(self) -> dict[str, Any]:
        """Return the scores of a run that ended."""
        rates, from_host = {}, {}
        for cls in PriorityClass:
            tokens = {source: self.prefix_tokens.get((cls, source), 0) for source in PrefixSource}
            num_tokens = sum(tokens.values())
            rates[cls.value] = (num_tokens - tokens[PrefixSource.MISS]) / num_tokens if num_tokens else None
            from_host[cls.value] = tokens[PrefixSource.HOST] / num_tokens if num_tokens else None
        ends_s = [self.ends_s[request.request_id] for request in self.requests if not request.is_rt]
        return {
            "hit_rate": rates,
            "host_hit_rate": from_host,  # of all prompt tokens; they are among the hits
            "be_requests_per_s": len(ends_s) / max(ends_s) if ends_s else None,
            "rt_attainment": share([self._is_met(request) for request in self.requests if request.is_rt]),
            "num_failed": self.num_failed,
            "duration_s": self.clock.now_s(),
        }

    def oracle_beside(self) -> dict[str, float | None]:
        """Return the hit rates of the oracle with the slots and the moments of this run."""
        served = []
        for turn, request in zip(self.turns, self.requests, strict=True):
            begin_s, first_s, end_s = request.first_scheduled_s, request.first_token_s, self.ends_s[request.request_id]
            assert begin_s is not None, f"request {request.request_id!r} never began"
            assert first_s is not None, f"request {request.request_id!r} got no token"
            served.append(Served(turn, begin_s, first_s, end_s))
        return oracle_beside(served, self.taken, self.num_slots)

    def _arrivals(self) -> Iterator[Request]:
        for index, turn in enumerate(self.turns):
            request = Request(
                request_id=RequestId(str(index)),
                priority_class=PriorityClass.REAL_TIME if turn.is_rt else PriorityClass.BEST_EFFORT,
                prompt_token_ids=turn.prompt,
                sampling=SamplingParams(max_tokens=turn.num_output, ignore_eos=True),
                arrival_s=turn.arrival_s,
                slo=Slo(TTFT_SLO_S, TPOT_SLO_S) if turn.is_rt else None,
            )
            self.requests.append(request)
            yield request

    def _note(self, output: StepOutput) -> None:
        self.num_failed += len(output.failed)
        for request in output.finished:
            self.ends_s[request.request_id] = self.clock.now_s()

    def _is_met(self, request: Request) -> bool:
        end_s, first_s = self.ends_s.get(request.request_id), request.first_token_s
        if end_s is None or first_s is None:
            return False
        num_gaps = max(1, request.num_output - 1)
        return first_s - request.arrival_s <= TTFT_SLO_S and (end_s - first_s) / num_gaps <= TPOT_SLO_S


def _tokens(rng: Generator, number: int) -> tuple[int, ...]:
    token_ids: list[int] = rng.integers(1_000, 100_000, number).tolist()
    return tuple(token_ids)


def _length(rng: Generator, middle: float, most: int) -> int:
    return int(min(max(rng.lognormal(np.log(middle), 0.7), 1), most))
