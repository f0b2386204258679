"""How a request's class and SLO travel through TensorRT-LLM to our scheduler: inside its own scheduling parameters.

`generate_async(scheduling_params=...)` puts the object on the active request as `py_scheduling_params`. It is not
pickled as long as one process holds all (inner mode).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backend.request import Request


@dataclass(slots=True, eq=False)
class Ticket:
    """What our scheduler needs to know of a request, and what it counts for it.

    `request` belongs to the engine's thread: of it, only what the client asked for may be read here.
    """

    request: Request
    num_preemptions: int = 0
    first_scheduled_s: float | None = None


def carrier_class(scheduling_params: type[Any]) -> type[Any]:
    """Return a subclass of TensorRT-LLM's `SchedulingParams` that carries a Ticket as `bros_ticket`."""

    class BrosSchedulingParams(scheduling_params):  # type: ignore[misc]  # the base is known only at run time
        __slots__ = ("bros_ticket",)

        def __init__(self, bros_ticket: Ticket) -> None:
            super().__init__()
            self.bros_ticket = bros_ticket

    return BrosSchedulingParams


def ticket_of(scheduling_params: object | None) -> Ticket | None:
    """Return the ticket a request carries; None for one that is not ours, such as a warm-up request."""
    return getattr(scheduling_params, "bros_ticket", None)
