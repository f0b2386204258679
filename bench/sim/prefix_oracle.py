"""What a cache of whole blocks finds that drops the least recently used one: two oracles to compare the engine with.

    oracle              requests come in order of arrival, are over at once, and take no slot from the cache
    oracle_beside       requests come, compute and end when they did in a run, and the cache has the slots they leave

The first one is out of reach where requests overlap: it finds what another request still computes, and has all slots.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.sim.gpu_executor import TOKEN_ID

BLOCK_SIZE = 16
_ROOM, _END, _FIRST_TOKEN, _BEGIN = range(4)  # what happens first of all that happens at a time
Rates = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Turn:
    """A request of a trace."""

    arrival_s: float
    is_rt: bool
    prompt: tuple[int, ...]
    num_output: int


class Served(NamedTuple):
    """When a request began, got its first token, and ended."""

    turn: Turn
    begin_s: float
    first_token_s: float
    end_s: float


def oracle(turns: Sequence[Turn], num_slots: int) -> Rates:
    """Return the hit rates by class of a cache with all slots, and requests that are over at once."""
    cache, found = _Blocks(num_slots), _Found()
    for turn in turns:
        chain = _chain(turn)
        found.note(turn, cache.num_found(chain))
        cache.use(chain)
    return found.rates()


def oracle_beside(served: Iterable[Served], taken: Iterable[tuple[float, int]], num_slots: int) -> Rates:
    """Return the hit rates by class of a cache that has what running requests leave.

    taken: the slots that requests held from a time on. A prompt is found from its first token on. The blocks of a
    running request are among those taken; the cache has them from its end on.
    """
    chains = [(each, _chain(each.turn)) for each in served]
    events = [(at_s, _ROOM, num_slots - held) for at_s, held in taken]
    for index, (each, _) in enumerate(chains):
        events += [(each.begin_s, _BEGIN, index), (each.first_token_s, _FIRST_TOKEN, index), (each.end_s, _END, index)]
    cache, found = _Blocks(num_slots), _Found()
    for _, kind, number in sorted(events):
        if kind == _ROOM:
            cache.fit(number)
            continue
        turn, chain = chains[number][0].turn, chains[number][1]
        prompt = chain[: len(turn.prompt) // BLOCK_SIZE]
        if kind == _BEGIN:
            found.note(turn, num_found := cache.num_found(chain))
            cache.touch(chain[:num_found])
        elif kind == _FIRST_TOKEN:
            cache.running.update(prompt)
        else:
            cache.running.subtract(prompt)
            cache.use(chain)
    return found.rates()


class _Found:
    """Tokens that were found, and tokens of prompts, by class."""

    def __init__(self) -> None:
        self.num_found, self.num_tokens = Counter[bool](), Counter[bool]()

    def note(self, turn: Turn, num_blocks: int) -> None:
        self.num_found[turn.is_rt] += min(num_blocks * BLOCK_SIZE, len(turn.prompt) - 1)
        self.num_tokens[turn.is_rt] += len(turn.prompt)

    def rates(self) -> Rates:
        names, tokens = {True: "rt", False: "be"}, self.num_tokens
        return {name: self.num_found[is_rt] / tokens[is_rt] if tokens[is_rt] else None for is_rt, name in names.items()}


class _Blocks:
    """Blocks that can be found: those of running requests, and others, the least recently used one first."""

    def __init__(self, num_slots: int) -> None:
        self.running = Counter[int]()
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._most = num_slots // BLOCK_SIZE

    def num_found(self, chain: Sequence[int]) -> int:
        missing = (index for index, block in enumerate(chain) if block not in self._idle and not self.running[block])
        return next(missing, len(chain))

    def touch(self, chain: Sequence[int]) -> None:
        for block in reversed(chain):  # a prefix outlives what follows it
            if block in self._idle:
                self._idle.move_to_end(block)

    def use(self, chain: Sequence[int]) -> None:
        self._idle.update(dict.fromkeys(chain))
        self.touch(chain)
        self._drop()

    def fit(self, num_slots: int) -> None:
        self._most = num_slots // BLOCK_SIZE
        self._drop()

    def _drop(self) -> None:
        while len(self._idle) > self._most:
            self._idle.popitem(last=False)


def _chain(turn: Turn) -> list[int]:
    """Return a name for each whole block of the prompt and of what followed it."""
    token_ids = turn.prompt + (TOKEN_ID,) * (turn.num_output - 1)
    chain, last = [], 0
    for start in range(0, len(token_ids) - BLOCK_SIZE + 1, BLOCK_SIZE):
        last = hash((last, token_ids[start : start + BLOCK_SIZE]))
        chain.append(last)
    return chain
