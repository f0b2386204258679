"""Tickets carry a request's class and SLO to our scheduler inside TensorRT-LLM's loop. Their key is the client id.

None of our objects reaches the active list. `SchedulingParams` end at the executor's request, and `LlmRequest` keeps
none of them (read in 1.0 to main of autumn 2026). Both sides have the client id: it is the answer's `request_id` and
the active request's `py_client_id`.

The id is known only when `generate_async` returns. By then the request may be active. So a search for a ticket waits
for the submission under way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from backend.executors.foreign.source import Ticket
from backend.executors.trtllm.surface import RequestOutput


class Tickets:
    """The requests inside TensorRT-LLM by client id. The engine's thread submits and forgets; the step loop's finds."""

    def __init__(self) -> None:
        self._by_client_id: dict[int, Ticket] = {}
        self._lock = threading.Lock()

    def submit(self, ticket: Ticket, generate: Callable[[], RequestOutput]) -> RequestOutput:
        """Call `generate`, which hands a request to TensorRT-LLM, and keep its ticket under the id it got."""
        with self._lock:
            output = generate()
            self._by_client_id[output.request_id] = ticket
        return output

    def find(self, client_id: int | None) -> Ticket | None:
        """Return the ticket of a request, or None where it is not ours, such as a warm-up request."""
        if client_id is None:
            return None
        with self._lock:
            return self._by_client_id.get(client_id)

    @property
    def is_empty(self) -> bool:
        """Whether TensorRT-LLM holds no request of ours."""
        return not self._by_client_id

    def forget(self, output: RequestOutput) -> None:
        """Drop the ticket of a request that has ended."""
        with self._lock:
            self._by_client_id.pop(output.request_id, None)
