"""A request: the client's wishes (frozen), and the engine's progress with it (owned by the scheduler).

Known tokens are the prompt and the tokens sampled so far. Computed tokens have their K and V in the cache. One rule
covers the life of a request: computed tokens catch up with known tokens. A step that computes the last known token
samples the next one. Prefill, chunked prefill, decode and resumption after a preemption all follow this rule.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NewType, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kv.prefixes import Prefix

RequestId = NewType("RequestId", str)


class PriorityClass(enum.Enum):
    """Class of service: somebody waits for the tokens (`rt`), or only throughput counts (`be`)."""

    REAL_TIME = "rt"
    BEST_EFFORT = "be"


class RequestState(enum.Enum):
    """Where a request stands in the scheduler.

    WAITING holds no KV slots; RUNNING may be put in any step; PREEMPTED lost KV slots and has not caught up yet.
    """

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


class PrefixSource(enum.Enum):
    """Whether the cache had a token of a prompt, or the host pool, or it had to be computed."""

    HIT = "hit"
    HOST = "host"
    MISS = "miss"


class FinishReason(enum.Enum):
    """Why a request ended; the wire's `finish_reason`."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Slo:
    """Latency objectives of a real-time request, in seconds; `itl_slo_s` bounds the gap between two tokens."""

    ttft_slo_s: float
    tpot_slo_s: float
    itl_slo_s: float | None = None


class Grammar(Protocol):
    """Which outputs one request may have. It follows the tokens sampled so far; the engine's thread owns it."""

    def allowed(self, output: Sequence[int]) -> NDArray[np.bool_]:
        """Return by token id what may follow `output`; ids beyond its end may not. `output` only grows between calls.

        Raises InvalidRequestError where nothing may, or where to find out costs too much.
        """
        ...


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 keep the whole vocabulary.

    `num_top_log_probs`: how many of the likeliest tokens come with each token's own log-probability, where that is
    wanted. `json_schema`: the output conforms to it. An executor that cannot compile it reads `Request.grammar`.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    wants_log_probs: bool = False
    num_top_log_probs: int = 0
    json_schema: str | None = None
    is_restricted: bool = field(init=False, repr=False)  # some logits are to be changed: asked once a row and step

    def __post_init__(self) -> None:
        is_restricted = self.has_penalties or self.min_tokens > 0 or self.json_schema is not None
        object.__setattr__(self, "is_restricted", is_restricted)

    @property
    def has_penalties(self) -> bool:
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


_REQUEST_BYTES = 4_000  # measured on CPython 3.11: a request with its stream, apart from what follows
_TOKEN_BYTES = 52  # of a prompt token: an int, its entries in two sequences, and its text
_STOP_ID_BYTES = 150  # of a stop token id, in the sets it is in
_GRAMMAR_BYTES = 30_000  # of a copy of a compiled grammar; backend/text/grammar.py bounds what copies share


@dataclass(slots=True, eq=False)
class Request:
    """One generation request; mutated by the scheduler only.

    `prompt_token_ids` is never empty. `slo` is given for REAL_TIME, `deadline_s` (absolute, finish by) may be given for
    BEST_EFFORT. `arrival_index` is the total order of arrivals that ends every sort key. Requests of different
    `cache_salt` share no KV.
    """

    request_id: RequestId
    priority_class: PriorityClass
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    arrival_s: float
    slo: Slo | None = None
    deadline_s: float | None = None
    cache_salt: str = ""
    grammar: Grammar | None = None

    arrival_index: int = -1
    state: RequestState = RequestState.WAITING
    finish_reason: FinishReason | None = None
    token_ids: list[int] = field(default_factory=list)  # known tokens: prompt, then output
    num_computed: int = 0  # leading known tokens whose K and V are in the cache; as of the last look, while it waits
    num_cached: int = 0  # those that were there before its first step
    prefix: Prefix | None = None  # its tokens, as the cache looks for them; None where it does not
    row: int | None = None  # row of the slot table while it holds slots
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    num_preemptions: int = 0
    is_hopeless: bool = False  # its SLO is below what the machine could do alone; judged when it comes
    is_rt: bool = field(init=False, repr=False)  # a plan asks dozens of times

    def __post_init__(self) -> None:
        self.is_rt = self.priority_class is PriorityClass.REAL_TIME
        assert self.prompt_token_ids, f"request {self.request_id!r}: the prompt is empty"
        self.token_ids = list(self.prompt_token_ids)

    @property
    def num_prompt(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def num_bytes(self) -> int:
        """About what it takes of memory while it waits."""
        num_stop_ids, schema = len(self.sampling.stop_token_ids), self.sampling.json_schema
        grammar_bytes = 0 if schema is None else _GRAMMAR_BYTES + len(schema)
        return _REQUEST_BYTES + _TOKEN_BYTES * self.num_prompt + _STOP_ID_BYTES * num_stop_ids + grammar_bytes

    @property
    def num_output(self) -> int:
        return len(self.token_ids) - len(self.prompt_token_ids)

    @property
    def num_uncomputed(self) -> int:
        """Known tokens whose K and V are missing: 1 while decoding, more while (re)prefilling."""
        return len(self.token_ids) - self.num_computed

    @property
    def max_total_tokens(self) -> int:
        """The longest this request can become."""
        return len(self.prompt_token_ids) + self.sampling.max_tokens


def first_deadline_s(request: Request) -> float:
    """Return when the first token is due (RT), or the whole answer (BE); infinite when nothing was asked."""
    if request.slo is not None:
        return request.arrival_s + request.slo.ttft_slo_s
    return float("inf") if request.deadline_s is None else request.deadline_s
