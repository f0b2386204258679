"""Drives a scheduler through steps that take what the latency model says."""

from __future__ import annotations

from backend.core.plan import StepPlan, StepResult
from backend.core.request import Request
from backend.engine.scheduler import Scheduler
from tests.backend.factories import make_scheduler_for_test

FIT = (10e-3, 100e-6, 0.0, 0.0, 1e-6, 0.0)  # 10 ms a step and 0.1 ms a token: times are easy to reckon


def make(**knobs: object) -> Scheduler:
    return make_scheduler_for_test(**{"latency_coefficients": FIT, "budget_margin": 0.0, **knobs})


def step(scheduler: Scheduler, now_s: float, end_s: float | None = None) -> StepPlan:
    """Run one step, which takes what the model predicts, or until `end_s`."""
    plan = scheduler.plan(now_s)
    batch = scheduler.commit(plan)
    pairs = zip(batch.sequences, batch.num_new_tokens, strict=True)
    tokens = [7 if seq.num_computed + num == len(seq.token_ids) else None for seq, num in pairs]
    duration_s = plan.predicted_s if end_s is None else end_s - now_s
    scheduler.complete(batch, StepResult(tokens, duration_s), now_s + duration_s)
    return plan


def start(scheduler: Scheduler, *requests: Request, now_s: float = 0.0) -> None:
    """Add requests and prefill them."""
    for request in requests:
        scheduler.add(request, now_s)
    while any(request.num_output == 0 for request in requests):
        step(scheduler, now_s, now_s + 1e-3)


def start_as_predicted(scheduler: Scheduler, *requests: Request) -> float:
    """Add requests at 0 and prefill them, each step as long as the model says, so that it stays; return the time."""
    now_s = 0.0
    for request in requests:
        scheduler.add(request, now_s)
    while any(request.num_output == 0 for request in requests):
        now_s += step(scheduler, now_s).predicted_s
    return now_s
