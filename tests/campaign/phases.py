"""The phases, in their order: how much each does in the short and in the full form, and which ends it makes itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.campaign.course import Course, Run
from tests.campaign.crowd import OVERLOAD_OPTIONS, ROOM_OPTIONS, overload, slow, soak, visitors
from tests.campaign.killing import LOST, killing
from tests.campaign.limits import ATTACKS, triton_limits
from tests.campaign.places import disk, shared_memory
from tests.campaign.wire import wire


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase. `short` and `full`: how many of `unit`; `allowed`: ends of good requests that it brings about."""

    run: Run
    short: int
    full: int
    unit: str
    what: str
    allowed: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


async def _limits(course: Course) -> None:
    course.facts["num_errors"] = 50 if course.num < len(ATTACKS) else 100_000
    await triton_limits(course)


PHASES: Mapping[str, Phase] = {
    "wire": Phase(wire, 200, 5_000, "cases", "anything a client may send, over gRPC and HTTP"),
    "visitors": Phase(visitors, 100, 5_000, "clients", "clients that vanish"),
    "slow": Phase(slow, 10, 60, "clients", "clients that read nothing", options=ROOM_OPTIONS),
    "overload": Phase(
        overload, 600, 10_000, "requests", "ten times the limit of open requests", ("overloaded",), OVERLOAD_OPTIONS
    ),
    "engine": Phase(killing("engine"), 1, 50, "strikes", "the engine stopped, continued, killed", LOST["engine"]),
    "stub": Phase(killing("stub"), 1, 20, "strikes", "a stub stopped, continued, killed", LOST["stub"]),
    "triton": Phase(killing("triton"), 1, 10, "strikes", "Triton stopped, continued, killed", LOST["triton"]),
    "launcher": Phase(
        killing("launcher"), 1, 5, "strikes", "the launcher stopped, continued, killed", LOST["launcher"]
    ),
    "shared_memory": Phase(
        shared_memory, 16, 200, "requests", "long prompts through 64 MiB of shared memory", ("refused by triton",)
    ),
    "disk": Phase(disk, 1, 3, "strikes", "a full disk, and the engine killed on it", LOST["engine"]),
    "triton_limits": Phase(_limits, 3, len(ATTACKS), "attacks", "attacks that Triton 2.51 may not survive"),
    "soak": Phase(soak, 10, 1_800, "seconds", "all of it for half an hour", LOST["engine"]),
}
