"""RequestTable: requests that hold KV rows, as columns, so that a step is a handful of array operations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backend.request import Request, RequestState

Rows = NDArray[np.int64]
_INITIAL_ROWS = 64


class RowGroups(NamedTuple):
    """The rows in use by class and by what they need next: one token (decode), or more (prefill, also after a loss)."""

    rt_decodes: Rows
    rt_prefills: Rows
    be_decodes: Rows
    be_prefills: Rows


class RequestTable:
    """Columns over requests in a row of the KV slot table: running and preempted ones. Column index = KV row.

    The scheduler writes, policies read. Columns mirror the requests (`check_invariants` compares them):

        is_active, is_rt, is_preempted   bool
        num_known, num_computed          int64, as in Request
        num_ever_computed                int64: the most that num_computed had been when KV was lost last
        num_prompt, max_total            int64
        deadline_s                       float64: RT, of the next token; BE, of the end; infinite when there is none
        first_token_s                    float64, infinite before it
        ttft_slo_s, tpot_slo_s, itl_slo_s   float64, infinite where there is no objective
        arrival_index, admission_index   int64: order of arrival, order of the first step
    """

    def __init__(self) -> None:
        self._objects: NDArray[np.object_] = np.full(_INITIAL_ROWS, None, object)
        self.is_active = np.zeros(_INITIAL_ROWS, bool)
        self.is_rt = np.zeros(_INITIAL_ROWS, bool)
        self.is_preempted = np.zeros(_INITIAL_ROWS, bool)
        self.num_known = np.zeros(_INITIAL_ROWS, np.int64)
        self.num_computed = np.zeros(_INITIAL_ROWS, np.int64)
        self.num_ever_computed = np.zeros(_INITIAL_ROWS, np.int64)
        self.num_prompt = np.zeros(_INITIAL_ROWS, np.int64)
        self.max_total = np.zeros(_INITIAL_ROWS, np.int64)
        self.deadline_s = np.zeros(_INITIAL_ROWS)
        self.first_token_s = np.zeros(_INITIAL_ROWS)
        self.ttft_slo_s = np.zeros(_INITIAL_ROWS)
        self.tpot_slo_s = np.zeros(_INITIAL_ROWS)
        self.itl_slo_s = np.zeros(_INITIAL_ROWS)
        self.arrival_index = np.zeros(_INITIAL_ROWS, np.int64)
        self.admission_index = np.zeros(_INITIAL_ROWS, np.int64)
        self._num_admitted = 0

    def rows(self) -> Rows:
        """Return the rows in use, ascending."""
        return self.is_active.nonzero()[0]

    def groups(self) -> RowGroups:
        """Return the rows in use by class and need, each ascending."""
        is_decode = self.num_known - self.num_computed == 1
        is_rt = self.is_active & self.is_rt
        is_be = self.is_active ^ is_rt
        # a > b is "a and not b" of truth values
        masks = (is_rt & is_decode, is_rt > is_decode, is_be & is_decode, is_be > is_decode)
        return RowGroups(*[mask.nonzero()[0] for mask in masks])

    def request(self, row: int) -> Request:
        """Return the request in `row`, which must be in use."""
        request: Request | None = self._objects[row]
        assert request is not None, f"row {row} is empty"
        return request

    def requests_in(self, rows: Rows) -> list[Request]:
        """Return the requests in `rows`, all of which must be in use."""
        requests: list[Request] = self._objects[rows].tolist()
        return requests

    def enter(self, request: Request, row: int, max_total: int) -> None:
        """Put `request` into `row`; it may become `max_total` tokens long."""
        while row >= len(self._objects):
            self._double()
        assert not self.is_active[row], f"row {row} is taken"
        self._objects[row] = request
        self.is_active[row] = True
        self.is_rt[row] = request.is_rt
        self.is_preempted[row] = False
        self.num_known[row] = len(request.token_ids)
        self.num_computed[row] = request.num_computed
        self.num_ever_computed[row] = request.num_computed
        self.num_prompt[row] = request.num_prompt
        self.max_total[row] = max_total
        self.first_token_s[row] = np.inf if request.first_token_s is None else request.first_token_s
        slo = request.slo
        self.ttft_slo_s[row] = np.inf if slo is None else slo.ttft_slo_s
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

    def compute(self, rows: Rows, num_tokens: NDArray[np.int64]) -> int:
        """Count `num_tokens` more computed tokens for each of `rows`; return how many of them were computed before."""
        before = self.num_computed[rows]
        self.num_computed[rows] = before + num_tokens
        num_lost = self.num_ever_computed[rows] - before
        if not np.count_nonzero(num_lost > 0):
            return 0
        return int(np.minimum(num_lost, num_tokens).clip(min=0).sum())

    def emit(self, rows: Rows, now_s: float) -> None:
        """Count one new token for each of `rows` at `now_s`, and set the deadlines of the next ones (design §3)."""
        num_known = self.num_known[rows] + 1
        self.num_known[rows] = num_known
        self.is_preempted[rows] = False
        num_output = num_known - self.num_prompt[rows]
        first_s = np.minimum(self.first_token_s[rows], now_s)
        self.first_token_s[rows] = first_s
        next_s = np.minimum(first_s + num_output * self.tpot_slo_s[rows], now_s + self.itl_slo_s[rows])
        self.deadline_s[rows] = np.where(self.is_rt[rows], next_s, self.deadline_s[rows])

    def cut(self, row: int, num_computed: int) -> None:
        """Note that `row` lost its KV from position `num_computed` on."""
        self.num_ever_computed[row] = max(self.num_ever_computed[row], self.num_computed[row])
        self.num_computed[row] = num_computed
        self.is_preempted[row] = True

    def check_invariants(self) -> None:
        """Assert that the columns say what the requests say."""
        for row, request in enumerate(self._objects.tolist()):
            assert self.is_active[row] == (request is not None), f"row {row}: is_active is wrong"
            if request is None:
                continue
            name = f"request {request.request_id!r} in row {row}"
            assert request.row == row, f"{name}: it thinks it is in {request.row}"
            assert self.num_known[row] == len(request.token_ids), f"{name}: num_known"
            assert self.num_computed[row] == request.num_computed, f"{name}: num_computed"
            assert 0 <= request.num_computed < len(request.token_ids), f"{name}: computed past known"
            assert self.is_preempted[row] == (request.state is RequestState.PREEMPTED), f"{name}: {request.state}"

    def _double(self) -> None:
        for name, column in vars(self).items():
            if isinstance(column, np.ndarray):
                setattr(
                    self, name, np.concatenate((column, np.full_like(column, None if column.dtype == object else 0)))
                )


def first_deadline_s(request: Request) -> float:
    """Return when the first token is due (RT), or the whole answer (BE); infinite when nothing was asked."""
    if request.slo is not None:
        return request.arrival_s + request.slo.ttft_slo_s
    return float("inf") if request.deadline_s is None else request.deadline_s
