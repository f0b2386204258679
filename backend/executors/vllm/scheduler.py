"""BrosScheduler: vLLM's own scheduler, which asks our policy first. Named to vLLM by `scheduler_cls`.

vLLM makes it, and in the workers' configuration only its name travels; `loading` gives it its steering then. Without
one it is vLLM's own.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue

from backend.executors.vllm.steering import Steering


class BrosScheduler(AsyncScheduler):  # type: ignore[misc]  # vLLM's class, of no type here
    """vLLM's asynchronous scheduler with a `Steering`; vLLM's plain one would switch asynchronous scheduling off."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.steering: Steering | None = None

    def schedule(self, throttle_prefills: bool = False) -> Any:
        if self.steering is None:
            return super().schedule(throttle_prefills)
        return self.steering.schedule(lambda: super(BrosScheduler, self).schedule(throttle_prefills))

    def add_request(self, request: Any) -> None:
        super().add_request(request)
        if self.steering is not None:
            self.steering.note_arrival(request)

    def fall_back(self) -> None:
        """Let vLLM schedule by class and arrival: by its own priorities, which each request has."""
        self.policy = SchedulingPolicy.PRIORITY
        waiting: Any = self.waiting
        self.waiting: Any = create_request_queue(self.policy)
        for request in waiting:
            self.waiting.add_request(request)

    def _free_request(self, request: Any, *arguments: Any, **options: Any) -> Any:
        if self.steering is not None:
            self.steering.note_end(request)
        return super()._free_request(request, *arguments, **options)

    def bind_caps(self, do_bind: bool) -> None:
        """Let our caps bind, or spare vLLM the question for each request in a step without any."""
        if do_bind:
            self.__dict__.pop("_reserve_prefill_lookahead", None)
        else:
            self._reserve_prefill_lookahead = super()._reserve_prefill_lookahead  # type: ignore[method-assign]

    def _reserve_prefill_lookahead(self, request: Any, num_computed_tokens: int, num_new_tokens: int) -> int:
        """vLLM asks this, last of all, how many tokens of a request a step gets: here our caps bind."""
        if self.steering is not None:
            num_new_tokens = self.steering.cap(request, num_new_tokens)
        return int(super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens))
