"""What the clients of another engine get: tokens in order, and exactly one end each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backend.core.errors import BrosError, ExecutorError
from backend.core.plan import EmittedToken, FailedRequest, RankedLogProb, StepOutput
from backend.core.request import FinishReason, Request, RequestState


class Answers:
    """Collects the tokens and ends of a step. What comes for a request after its end is dropped: it was cancelled."""

    def __init__(self) -> None:
        self._tokens: list[EmittedToken] = []
        self._finished: list[Request] = []
        self._failed: list[FailedRequest] = []

    def __len__(self) -> int:
        return len(self._tokens) + len(self._finished) + len(self._failed)

    def note_token(self, request: Request, token_id: int, log_prob: float | None, now_s: float) -> None:
        """Take in an output token."""
        if request.finish_reason is not None:
            return
        request.token_ids.append(token_id)
        request.num_computed = len(request.token_ids) - 1
        request.first_token_s = now_s if request.first_token_s is None else request.first_token_s
        self._tokens.append((request, token_id, log_prob))

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request, unless it has had its end."""
        if reason is FinishReason.ERROR:
            self.fail(request, ExecutorError(f"the engine ended {request.request_id!r} without a reason"))
        elif request.finish_reason is None:
            request.state = RequestState.FINISHED
            request.finish_reason = reason
            self._finished.append(request)

    def fail(self, request: Request, error: BrosError) -> None:
        """End a request by an error, unless it has had its end."""
        if request.finish_reason is None:
            request.state = RequestState.FINISHED
            request.finish_reason = FinishReason.ERROR
            self._failed.append(FailedRequest(request, error))

    def take(self) -> StepOutput:
        """Return what came since the last call."""
        output = StepOutput(tuple(self._tokens), tuple(self._finished), tuple(self._failed))
        self._tokens, self._finished, self._failed = [], [], []
        return output


def log_prob_at(
    log_probs: Sequence[Mapping[int, Any]] | None, position: int, token_id: int, num_top: int = 0
) -> float | None:
    """Return the log-probability of the token chosen at an output position; None where the engine gave none.

    `log_probs[position]` maps token ids to objects that have a `logprob`, in vLLM and in TensorRT-LLM. `num_top`: of
    its likeliest tokens that are wanted, too.
    """
    if not log_probs or position >= len(log_probs):
        return None
    entry = log_probs[position].get(token_id)
    if entry is None or not num_top:
        return None if entry is None else float(entry.logprob)
    likeliest = sorted(log_probs[position].items(), key=lambda item: -item[1].logprob)[:num_top]
    return RankedLogProb(entry.logprob, [(token_id, float(other.logprob)) for token_id, other in likeliest])
