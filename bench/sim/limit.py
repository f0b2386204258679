"""Bounds that no scheduler can exceed: most best-effort tokens, fewest missed first tokens.

The upper bound is a linear program over a run of `horizon_s` seconds that begins empty and in which real-time tokens
`served` are computed. It maximises best-effort tokens processed: prompt tokens computed once, plus output tokens. Any
schedule maps to a feasible point, because each constraint adds up something that is true of every step:

    GPU time   a step of N new tokens takes at least α + β·N for every line (α, β) below the model's curve (its lower
               convex hull), plus its attention terms; steps do not overlap, so their sum is at most the horizon
    KV         the contexts that a step reads are resident together: Σ contexts <= steps · kv_tokens
    seats      decodes and prefills of a step share max_seqs_per_step batch slots; BE decodes have max_outstanding
    tokens     new tokens <= steps · max_tokens_per_step
    SLOs       disjoint windows in which a request needs a step (for its whole life: one per token) force steps
    order      request i of a closed loop starts only after i − max_outstanding others have completed
    prefill    no output token before its prompt
    end        prompts computed ahead of their outputs at the end are no more than the run itself left: nothing is
               gained by leaving work half done

It is an upper bound and not a target. Best-effort work is fluid and knows the future. Real-time work is done when it is
cheapest. KV of requests outside the step is free, and so are copies, recomputation and scheduling. SLOs force only the
steps of requests that met them. A run is compared with a bound for its own real-time work.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog

from bench.common.score import Slos
from bench.common.workload import Arrival
from bench.sim.step_models import Pair

Line = tuple[float, float]  # (α in ms, β in ms per token)
_NUM_LINES = 24  # lines of the hull given to the program; fewer would only loosen the bound


@dataclass(frozen=True, slots=True)
class Machine:
    """The limits of a run."""

    pair: Pair
    kv_tokens: int
    max_seqs_per_step: int
    max_tokens_per_step: int


@dataclass(frozen=True, slots=True)
class Load:
    """The work of a run of `horizon_s` seconds.

    served           real-time requests that put out a token, with `num_output` as far as they came within the horizon
    num_forced_steps `min_steps` of those that met their SLOs
    be               best-effort requests in the order in which they may start; their arrival times are ignored
    max_outstanding  limit of unfinished ones at any time
    max_ahead_tokens at the end: prompt tokens computed, times the unfinished part of their request's output
    """

    horizon_s: float
    served: Sequence[Arrival]
    num_forced_steps: int
    be: Sequence[Arrival]
    max_outstanding: int
    max_ahead_tokens: float


def max_be_tokens(machine: Machine, work: Load) -> float | None:
    """Return the most best-effort tokens any schedule can process beside `work.served`; None: not even that fits."""
    program = _Program(work.be, work.max_outstanding)
    load = _RtLoad.of(work.served)
    c = machine.pair.coefficients
    host_ms = machine.pair.host_overhead_s * 1e3
    attention_ms = c.decode_context_ms_per_token * program.context + c.prefill_ms_per_pair * program.pairs
    rt_ms = (
        c.decode_context_ms_per_token * load.context
        + c.prefill_ms_per_pair * load.pairs
        + c.decode_ms_per_seq * load.num_decodes
    )
    rounding_ms = (
        c.decode_context_ms_per_token * program.context_rounding + c.prefill_ms_per_pair * program.pairs_rounding
    )
    free_ms = work.horizon_s * 1e3 - rt_ms + rounding_ms
    for alpha, beta in lines_below(machine.pair, machine.max_tokens_per_step):
        be_ms = beta * program.tokens + attention_ms + c.decode_ms_per_seq * program.decodes
        program.limit(alpha + host_ms, be_ms, at_most=free_ms - beta * load.num_tokens)
    program.limit(-machine.kv_tokens, program.context, at_most=program.context_rounding - load.context)
    seats = program.decodes + program.prefills
    program.limit(-machine.max_seqs_per_step, seats, at_most=-float(load.num_decodes + len(work.served)))
    program.limit(-work.max_outstanding, program.decodes, at_most=0.0)
    program.limit(0.0, program.ahead, at_most=work.max_ahead_tokens)
    program.limit(-machine.max_tokens_per_step, program.tokens, at_most=-float(load.num_tokens))
    return program.solve(min_steps=work.num_forced_steps)


def min_steps(rt: Sequence[Arrival], slos: Slos, horizon_s: float) -> int:
    """Return how many steps requests that meet their SLOs force at least, for the tokens they get by `horizon_s`.

    A request needs a step in (arrival, arrival + TTFT SLO], and one step per token within its whole allowed life.
    Windows that do not overlap cannot share steps: weighted interval scheduling finds the set that forces most.
    """
    windows: list[tuple[float, float, int]] = []
    for request in rt:
        first_token_s = request.arrival_s + slos.ttft_slo_s
        windows.append((min(first_token_s, horizon_s), request.arrival_s, 1))
        last_token_s = first_token_s + slos.tpot_slo_s * (request.num_output - 1)
        windows.append((min(last_token_s, horizon_s), request.arrival_s, request.num_output))
    windows.sort()
    ends = [end for end, _, _ in windows]
    best = [0]
    for index, (_, start, weight) in enumerate(windows):
        before = bisect.bisect_right(ends, start, hi=index)
        best.append(max(best[-1], best[before] + weight))
    return best[-1]


def min_ttft_misses(machine: Machine, rt: Sequence[Arrival], ttft_slo_s: float) -> int:
    """Return how many real-time requests must miss their TTFT under any schedule.

    Every prompt needs at least `β·p + pair·p²/2` of GPU time after its arrival. With one common TTFT SLO, deadlines are
    in arrival order. Earliest deadline first then misses fewest, if each miss drops the request whose absence helps
    most (Kise, Ibaraki and Mine, Operations Research 26(1), 1978).
    """
    beta = max(beta for alpha, beta in lines_below(machine.pair, machine.max_tokens_per_step) if alpha >= 0.0)
    pair_ms = machine.pair.coefficients.prefill_ms_per_pair
    work_s = [1e-3 * (beta * r.num_prompt + pair_ms * r.num_prompt**2 / 2) for r in rt]
    releases: list[float] = []
    sizes: list[float] = []
    end_s = 0.0
    misses = 0
    for request, size_s in sorted(zip(rt, work_s, strict=True), key=lambda pair: pair[0].arrival_s):
        if request.arrival_s >= end_s:  # idle until now: what ran before cannot matter any more
            releases, sizes = [], []
        releases.append(request.arrival_s)
        sizes.append(size_s)
        end_s = max(end_s, request.arrival_s) + size_s
        if end_s > request.arrival_s + ttft_slo_s:
            dropped = _most_helpful_drop(releases, sizes)
            del releases[dropped], sizes[dropped]
            misses += 1
            end_s = _busy_end_s(releases, sizes)
    return misses


def lines_below(pair: Pair, max_tokens: int) -> list[Line]:
    """Return lines (α, β) with α + β·N <= the step time of N new tokens, for every N in [0, max_tokens]."""
    hull: list[tuple[int, float]] = []
    for num_tokens in range(max_tokens + 1):
        point = (num_tokens, pair.token_ms(num_tokens))
        while len(hull) >= 2 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    edges = list(itertools.pairwise(hull))
    picked = {int(i) for i in np.unique(np.geomspace(1, len(edges), _NUM_LINES).astype(int) - 1)}
    lines = []
    for index in sorted(picked):
        left, right = edges[index]
        beta = _slope(left, right)
        lines.append((left[1] - beta * left[0], beta))
    return lines


def _slope(left: tuple[int, float], right: tuple[int, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])


def _most_helpful_drop(releases: Sequence[float], sizes: Sequence[float]) -> int:
    """Index of the job of one busy period whose removal ends the period earliest."""
    release, size = np.asarray(releases), np.asarray(sizes)
    starts = release[0] + np.concatenate(([0.0], np.cumsum(size)[:-1]))
    slack_after = np.minimum.accumulate(np.append(starts - release, np.inf)[::-1])[::-1][1:]
    return int(np.argmax(np.minimum(size, slack_after)))


def _busy_end_s(releases: Sequence[float], sizes: Sequence[float]) -> float:
    end_s = 0.0
    for release_s, size_s in zip(releases, sizes, strict=True):
        end_s = max(end_s, release_s) + size_s
    return end_s


@dataclass(frozen=True, slots=True)
class _RtLoad:
    """Sums over real-time requests. The first output token comes with the prefill, so a request decodes one less."""

    num_tokens: int
    num_decodes: int
    context: float
    pairs: float

    @classmethod
    def of(cls, rt: Sequence[Arrival]) -> _RtLoad:
        decodes = [r.num_output - 1 for r in rt]
        return cls(
            num_tokens=sum(r.num_prompt + d for r, d in zip(rt, decodes, strict=True)),
            num_decodes=sum(decodes),
            context=sum(_decode_context(r.num_prompt, d) for r, d in zip(rt, decodes, strict=True)),
            pairs=sum(r.num_prompt**2 / 2 for r in rt),
        )


def _decode_context(num_prompt: int, num_decodes: int) -> float:
    """Cached tokens read by `num_decodes` decode steps after a prompt: p + (p + 1) + … ."""
    return num_decodes * num_prompt + num_decodes * (num_decodes - 1) / 2


class _Program:
    """The linear program. Columns: steps, then for request i the parts prefilled s_i and decoded e_i, and Σ_{j<=i} e_j.

    `tokens`, `decodes`, … hold a request's whole demand in the columns (s, e). Contexts and pairs grow with the
    square, so a half done request has less of them than its share of the whole. At most `max_outstanding` half done
    requests owe `context_rounding` and `pairs_rounding` altogether.
    """

    def __init__(self, be: Sequence[Arrival], max_outstanding: int) -> None:
        self._n = n = len(be)
        prompts = np.asarray([r.num_prompt for r in be], np.float64)
        decodes = np.asarray([r.num_output - 1 for r in be], np.float64)
        nothing = np.zeros(n)
        self.tokens = np.concatenate((prompts, decodes))
        self.decodes = np.concatenate((nothing, decodes))
        self.prefills = np.concatenate((np.ones(n), nothing))
        self.ahead = np.concatenate((prompts, -prompts))
        self.pairs = np.concatenate((prompts**2 / 2, nothing))
        self.context = np.concatenate((nothing, decodes * prompts + decodes * (decodes - 1) / 2))
        num_partial = min(n, max_outstanding)
        self.context_rounding = num_partial * float(decodes.max(initial=0.0)) ** 2 / 8
        self.pairs_rounding = num_partial * float(prompts.max(initial=0.0)) ** 2 / 8
        self._order = self._order_rows(max_outstanding)
        self._rows: list[NDArray[np.float64]] = []
        self._bounds: list[float] = []

    def limit(self, steps_coefficient: float, demand: NDArray[np.float64], at_most: float) -> None:
        """Require steps_coefficient · steps + demand · (s, e) <= at_most."""
        self._rows.append(np.concatenate(([steps_coefficient], demand, np.zeros(self._n))))
        self._bounds.append(at_most)

    def solve(self, min_steps: int) -> float | None:
        """Return the most tokens, or None when even no best-effort work at all breaks a limit."""
        n = self._n
        prefix_rows, order_rows = self._order
        solution = linprog(
            c=-np.concatenate(([0.0], self.tokens, np.zeros(n))),
            A_ub=sparse.vstack([sparse.csr_matrix(np.array(self._rows)), order_rows], format="csr"),
            b_ub=np.concatenate((self._bounds, np.zeros(order_rows.shape[0]))),
            A_eq=prefix_rows,
            b_eq=np.zeros(n),
            bounds=[(min_steps, None), *[(0.0, 1.0)] * (2 * n), *[(0.0, None)] * n],
            method="highs-ipm",  # the same optimum as the simplex, in half the time where it takes long
        )
        return -float(solution.fun) if solution.success else None

    def _order_rows(self, max_outstanding: int) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        """Rows of "prefix sums are sums" (= 0); of e_i <= s_i, (i − max_outstanding)·s_i <= Σ_{j<i} e_j (<= 0)."""
        n = self._n
        prefilled, decoded, prefix = 1, 1 + n, 1 + 2 * n
        eye, width = sparse.identity(n, format="csr"), 1 + 3 * n
        shift = sparse.diags([np.ones(max(n - 1, 0))], [-1], shape=(n, n), format="csr")
        waits = np.maximum(np.arange(n) - max_outstanding, 0).astype(np.float64)

        def row_block(parts: dict[int, sparse.csr_matrix]) -> sparse.csr_matrix:
            columns = [sparse.csr_matrix((n, 1))]
            columns += [parts.get(first, sparse.csr_matrix((n, n))) for first in (prefilled, decoded, prefix)]
            block = sparse.hstack(columns, format="csr")
            assert block.shape == (n, width)
            return block

        prefix_rows = row_block({decoded: -eye, prefix: eye - shift})
        after_prefill = row_block({prefilled: -eye, decoded: eye})
        in_order = row_block({prefilled: sparse.diags([waits], [0], format="csr"), prefix: -shift})
        return prefix_rows, sparse.vstack([after_prefill, in_order], format="csr")
