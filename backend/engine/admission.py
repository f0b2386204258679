"""Admission: the reasons to refuse a request at once."""

from __future__ import annotations

import math

from backend.core.errors import InvalidRequestError, OverloadedError, RequestTooLargeError
from backend.core.request import Request
from backend.policy.state.latency_model import LatencyModel
from backend.policy.state.objectives import time_alone_s
from backend.policy.view import Policy, SchedulerView

_MIN_RETRY_S, _MAX_RETRY_S = 0.1, 60.0


def check_admissible(view: SchedulerView, policy: Policy, request: Request, now_s: float, begun_per_s: float) -> None:
    """Raise InvalidRequestError, RequestTooLargeError or OverloadedError for a request that is not to be queued.

    begun_per_s: requests of its class that begin per second; 0 where none did yet.
    """
    name = f"request {request.request_id!r}"
    if request.sampling.max_tokens < 1:
        raise InvalidRequestError(f"{name}: max_tokens {request.sampling.max_tokens} is below 1")
    if request.is_rt and request.slo is None:
        raise InvalidRequestError(f"{name}: a real-time request needs an SLO")
    _check_size(view, request, name)
    if view.settings.refuse_hopeless_rt and policy.is_late(request, view.latency, now_s):
        raise InvalidRequestError(f"{name}: its TTFT SLO cannot be met with a prompt of {request.num_prompt} tokens")
    _check_queue(view, request, name, begun_per_s)


def _check_size(view: SchedulerView, request: Request, name: str) -> None:
    sizes = f"prompt of {request.num_prompt} and max_tokens {request.sampling.max_tokens}"
    if request.max_total_tokens > view.limits.max_seq_len:
        raise RequestTooLargeError(f"{name}: {sizes} exceed the context of {view.limits.max_seq_len} tokens")
    if request.max_total_tokens - 1 > view.limits.num_slots:  # the last token is never computed
        raise RequestTooLargeError(f"{name}: {sizes} exceed the KV pool of {view.limits.num_slots} slots")


def _check_queue(view: SchedulerView, request: Request, name: str, begun_per_s: float) -> None:
    settings = view.settings
    if request.is_rt:
        queue, limit = view.rt_waiting, settings.max_waiting_rt
    else:
        queue, limit = view.be_waiting, settings.max_waiting_be
    per_s = begun_per_s or view.limits.max_seqs / view.traffic.step_s  # nothing began yet: a guess
    which = f"{request.priority_class.value} requests"
    if len(queue) >= limit:
        raise OverloadedError(f"{name}: {limit} {which} are waiting", retry_after_s(len(queue), per_s))
    if len(queue) and queue.num_bytes + request.num_bytes > settings.max_waiting_bytes:
        raise OverloadedError(
            f"{name}: {which} of {queue.num_bytes} bytes are waiting; with its {request.num_bytes} they exceed "
            f"max_waiting_bytes {settings.max_waiting_bytes}",
            retry_after_s(len(queue), per_s),
        )


def retry_after_s(num_waiting: int, per_s: float) -> float:
    """Return when a queue will be empty of which `per_s` (> 0) requests begin per second."""
    return min(_MAX_RETRY_S, max(_MIN_RETRY_S, num_waiting / per_s))


def is_hopeless(request: Request, latency: LatencyModel) -> bool:
    """Return whether a new request asks for more than a machine with nothing else to do could give."""
    slo = request.slo
    if slo is None:
        return False
    can_decode = latency.c0 + latency.c1 <= min(slo.tpot_slo_s, slo.itl_slo_s or math.inf)
    return time_alone_s(request, latency) > slo.ttft_slo_s or not can_decode
