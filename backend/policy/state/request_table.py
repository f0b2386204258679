"""RequestTable: requests that hold KV rows, as columns, so that a step is a handful of array operations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backend.core.request import Request, RequestState, first_deadline_s
from backend.policy.state import table_loops
from backend.policy.state.latency_model import LatencyModel
from backend.policy.state.table_loops import Rows


class Running(NamedTuple):
    """The requests of one class that run: all but the preempted ones. most_slots: that they could ever own together."""

    num: int
    most_slots: int


class RowGroups(NamedTuple):
    """The rows in use by class and by what they need next: one token (decode), or more (prefill, also after a loss)."""

    rt_decodes: Rows
    rt_prefills: Rows
    be_decodes: Rows
    be_prefills: Rows
    rt_running: Running
    be_running: Running
    num_rt_known: int  # tokens
    num_be_deadlines: int


class RequestTable:
    """Columns over requests in a row of the KV slot table: running and preempted ones. Column index = KV row.

    The scheduler writes, policies read. Columns mirror the requests (`check_invariants` compares them). They are views
    of `counts`, `times` and `flags`, which `table_loops` take; enlarging replaces them all.
    """

    num_known: NDArray[np.int64]  # as in Request
    num_computed: NDArray[np.int64]  # as in Request
    num_ever_computed: NDArray[np.int64]  # the most that num_computed had been when KV was lost last
    num_prompt: NDArray[np.int64]
    max_total: NDArray[np.int64]
    arrival_index: NDArray[np.int64]  # order of arrival
    admission_index: NDArray[np.int64]  # order of the first step
    num_borrowed: NDArray[np.int64]  # leading tokens at slots that others own
    deadline_s: NDArray[np.float64]  # RT, of the next token; BE, of the end; infinite when there is none
    first_token_s: NDArray[np.float64]  # infinite before it
    last_token_s: NDArray[np.float64]  # infinite before the first one
    tpot_slo_s: NDArray[np.float64]  # infinite where there is no objective, like the next one
    itl_slo_s: NDArray[np.float64]
    is_active: NDArray[np.bool_]
    is_rt: NDArray[np.bool_]
    is_preempted: NDArray[np.bool_]

    def __init__(self) -> None:
        self._objects: NDArray[np.object_] = np.full(1, None, object)
        self.counts: table_loops.Counts = np.zeros((8, 1), np.int64)
        self.times: table_loops.Times = np.zeros((5, 1))
        self.flags: table_loops.Flags = np.zeros((3, 1), bool)
        self._num_admitted = 0
        self._bind()

    def _bind(self) -> None:
        """Make the columns, in the order above, views of the rows of `counts`, `times` and `flags`."""
        for name, column in zip(RequestTable.__annotations__, (*self.counts, *self.times, *self.flags), strict=True):
            setattr(self, name, column)

    def rows(self) -> Rows:
        """Return the rows in use, ascending."""
        return self.is_active.nonzero()[0]

    def groups(self) -> RowGroups:
        """Return the rows in use by class and need, each ascending, and what a plan asks of all of them."""
        rows, numbers = table_loops.groups(self.counts, self.times, self.flags)
        a, b, c, d, num_rt, num_be, rt_slots, be_slots, num_rt_known, num_be_deadlines = numbers.tolist()
        return RowGroups(
            *(rows[0, :a], rows[1, :b], rows[2, :c], rows[3, :d]),
            Running(num_rt, rt_slots),
            Running(num_be, be_slots),
            num_rt_known,
            num_be_deadlines,
        )

    def request(self, row: int) -> Request:
        """Return the request in `row`, which must be in use."""
        request: Request | None = self._objects[row]
        assert request is not None, f"row {row} is empty"
        return request

    def requests_in(self, rows: Rows) -> list[Request]:
        """Return the requests in `rows`, all of which must be in use."""
        requests: list[Request] = self._objects[rows].tolist() if len(rows) else []
        return requests

    def enter(self, request: Request, row: int, max_total: int) -> None:
        """Put `request` into `row`; it may become `max_total` tokens long."""
        while row >= len(self._objects):
            self._add_rows()
        assert not self.is_active[row], f"row {row} is taken"
        self._objects[row] = request
        self.is_active[row] = True
        self.is_rt[row] = request.is_rt
        self.is_preempted[row] = False
        self.num_known[row] = len(request.token_ids)
        self.num_computed[row] = request.num_computed
        self.num_ever_computed[row] = request.num_computed
        self.num_borrowed[row] = request.num_cached
        self.num_prompt[row] = request.num_prompt
        self.max_total[row] = max_total
        self.first_token_s[row] = np.inf if request.first_token_s is None else request.first_token_s
        self.last_token_s[row] = np.inf
        slo = request.slo
        self.tpot_slo_s[row] = np.inf if slo is None else slo.tpot_slo_s
        self.itl_slo_s[row] = np.inf if slo is None or slo.itl_slo_s is None else slo.itl_slo_s
        self.deadline_s[row] = first_deadline_s(request)
        self.arrival_index[row] = request.arrival_index
        self.admission_index[row] = self._num_admitted
        self._num_admitted += 1

    def leave(self, row: int) -> None:
        """Empty `row`."""
        assert self.is_active[row], f"row {row} is empty"
        self._objects[row] = None
        self.is_active[row] = False

    def num_rt_known(self) -> int:
        """Return the known tokens of all real-time requests."""
        return int(self.num_known[self.is_active & self.is_rt].sum())

    def compute(self, rows: Rows, num_tokens: NDArray[np.int64]) -> int:
        """Count `num_tokens` more computed tokens for each of `rows`; return how many of them were computed before."""
        return table_loops.compute(self.counts, rows, num_tokens)

    def emit(self, rows: Rows, now_s: float) -> tuple[list[int], list[int], list[int]]:
        """Count one new token for each of `rows` at `now_s`, and set the deadlines of the next ones (design §3).

        Return indices into `rows`: of those that were preempted, that had no token yet, that are as long as may be.
        """
        resumed, first, full = table_loops.emit(self.counts, self.times, self.flags, rows, now_s)
        return resumed.tolist(), first.tolist(), full.tolist()

    def follow(self, held: Rows, rows: Rows, stands: table_loops.Counts, now_s: float) -> tuple[Rows, Rows]:
        """Bring `rows` up to where another engine has them (see `table_loops.follow`)."""
        return table_loops.follow(self.counts, self.times, self.flags, held, rows, stands, now_s)

    def cut(self, row: int, num_computed: int) -> None:
        """Note that `row` lost its KV from position `num_computed` on."""
        self.num_ever_computed[row] = max(self.num_ever_computed[row], self.num_computed[row])
        self.num_computed[row] = num_computed
        self.num_borrowed[row] = min(self.num_borrowed[row], num_computed)
        self.is_preempted[row] = True

    def rt_step_s(self, latency: LatencyModel, rows: Rows | None = None) -> float:
        """Return the time of a step of the real-time decodes (`rows`), and of nothing else."""
        rows = self.groups().rt_decodes if rows is None else rows
        return latency.c0 + latency.c1 * len(rows) + latency.c2 * table_loops.context(self.counts, rows)

    def share_of_steps(self, rows: Rows, step_s: float) -> NDArray[np.float64]:
        """Return the part of the steps, of `step_s` on average, in which each of `rows` needs its slots.

        One that asks for a token in S seconds needs them in one of S / step_s steps.
        """
        share: NDArray[np.float64] = np.minimum(1.0, step_s / self.tpot_slo_s[rows])
        return share

    def check_invariants(self) -> None:
        """Assert that the columns say what the requests say."""
        requests = {row: request for row, request in enumerate(self._objects.tolist()) if request is not None}
        assert self.rows().tolist() == list(requests), "is_active is wrong"
        for row, request in requests.items():
            name = f"request {request.request_id!r} in row {row}"
            assert request.row == row, f"{name}: it thinks it is in {request.row}"
            assert self.num_known[row] == len(request.token_ids), f"{name}: num_known"
            assert self.num_computed[row] == request.num_computed, f"{name}: num_computed"
            assert 0 <= request.num_computed < len(request.token_ids), f"{name}: computed past known"
            assert self.is_preempted[row] == (request.state is RequestState.PREEMPTED), f"{name}: {request.state}"

    def _add_rows(self) -> None:
        """Enlarge the table by half: loops run over all rows."""
        num_added = len(self._objects) // 2 + 1
        self._objects = np.concatenate((self._objects, np.full(num_added, None, object)))
        added = ((0, 0), (0, num_added))
        self.counts, self.times, self.flags = (
            np.pad(self.counts, added),
            np.pad(self.times, added),
            np.pad(self.flags, added),
        )
        self._bind()
