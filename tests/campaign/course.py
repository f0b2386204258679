"""What one phase works with: a server, a ledger, the seed's chance, a time limit; and what it leaves as its result."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.campaign.canary import canary
from tests.campaign.house import SIM, House
from tests.campaign.ledger import Fault, Ledger, group
from tests.campaign.tokens import NameSearch

RECOVERY_S = 60.0  # in which everything must be served again, whatever was killed
IDLE_S = 20.0  # in which nothing may be held any more
MAX_MORE = {"memory_mib": 200.0, "descriptors": 24.0, "threads": 24.0, "dead_sockets": 24.0}  # than after the warm-up
REQUESTS_PER_DEAD_SOCKET = 500  # at least, of Triton 2.51 (docs/reliability.md)
_PAUSE_S = 0.1


@dataclass(slots=True)
class Course:
    """The run of one phase. `num` is how much to do; `until_s` (monotonic) when to stop doing it."""

    name: str
    house: House
    seed: int
    num: int
    until_s: float
    chance: random.Random
    ledger: Ledger = field(default_factory=lambda: Ledger(NameSearch(SIM)))
    faults: list[Fault] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    num_done: int = 0
    recoveries_s: list[float] = field(default_factory=list)
    started_s: float = field(default_factory=time.monotonic)

    @property
    def goes_on(self) -> bool:
        return self.num_done < self.num and time.monotonic() < self.until_s

    def done(self, num: int = 1) -> None:
        """Count the work done, and log it."""
        self.num_done += num
        elapsed_s = time.monotonic() - self.started_s
        print(
            f"{self.name} {self.num_done:,}/{self.num:,} · {len(self.ledger.entries):,} requests · "
            f"{len(self.faults)} faults · {elapsed_s:.0f} s",
            file=sys.stderr,
            flush=True,
        )

    def fault(self, kind: str, example: str) -> None:
        """Note a fault, and say so."""
        self.faults.append(Fault(kind, example))
        print(f"{self.name}: FAULT {kind}: {example[:300]}", file=sys.stderr, flush=True)

    async def check_canary(self, when: str) -> None:
        """Note a fault where the canaries do not come back, and wait until they do."""
        if words := await canary(self.house):
            self.fault("a canary did not come back", f"{when}: {words}")
            await self.settle(when)

    async def settle(self, when: str) -> None:
        """Wait until all request paths serve both classes, and note the time. Start a new server where that fails."""
        started_s = time.monotonic()
        while words := await canary(self.house):
            if time.monotonic() - started_s > RECOVERY_S or not self.house.is_up:
                what = f"not served again after {RECOVERY_S:g} s" if self.house.is_up else "the launcher gave up"
                self.fault(what, f"{when}: {words[:200]}: {self.house.words()[-400:]}")
                await asyncio.to_thread(self.renew)
                return
            await asyncio.sleep(_PAUSE_S)
        self.recoveries_s.append(round(time.monotonic() - started_s, 2))

    def renew(self) -> None:
        """Stop the server, in whatever state it is, and start one."""
        if self.house.is_up:
            self.house.kill_launcher()
        self.house.start()

    async def check_idle(self) -> None:
        """Note a fault where requests or slots are held with nobody there."""
        give_up_s = time.monotonic() + IDLE_S
        while held := await self.house.what_is_held():
            if time.monotonic() > give_up_s:
                self.fault("held with nobody there", f"{held}, {IDLE_S:g} s after the last request")
                return
            await asyncio.sleep(_PAUSE_S)

    def counted(self) -> tuple[int, int]:
        """Return how many requests the server has counted, and how many it was sent."""
        return self.house.num_counted(), len(self.ledger.entries) + self.house.num_canaries

    async def check_counted(self, before: tuple[int, int]) -> None:
        """Note a fault where the server did not count as many requests as it was sent since `before`.

        Those of clients that left may not have reached it; those that Triton refused did not.
        """
        give_up_s = time.monotonic() + IDLE_S
        num_uncertain = sum(count for end, count in self.ledger.ends().items() if end in ("left", "refused by triton"))
        while True:
            counted, sent = (now - then for now, then in zip(self.counted(), before, strict=True))
            if sent - num_uncertain <= counted <= sent:
                break
            if time.monotonic() > give_up_s:
                self.fault("requests that were sent are not counted", f"{sent} sent, {counted} counted")
                break
            await asyncio.sleep(_PAUSE_S)
        self.facts["counted"] = {"sent": sent, "counted": counted}

    async def check_gauges(self, before: dict[str, dict[str, float]]) -> None:
        """Note a fault where memory, descriptors or threads have not come back to where they began."""
        limits = {
            **MAX_MORE,
            "dead_sockets": MAX_MORE["dead_sockets"] + len(self.ledger.entries) / REQUESTS_PER_DEAD_SOCKET,
        }
        give_up_s = time.monotonic() + IDLE_S
        while (more := _more(before, after := self.house.gauges(), limits)) and time.monotonic() < give_up_s:
            await asyncio.sleep(_PAUSE_S)
        self.facts["gauges"] = {"before": before, "after": after}
        for words in more:
            self.fault(f"{words.partition(':')[0]} grew", words)

    def result(self, allowed: Sequence[str], was_interrupted: bool) -> dict[str, Any]:
        """Return the phase's result, ready for JSON; a request open at an interruption is no fault."""
        if was_interrupted:
            self.ledger.entries = [entry for entry in self.ledger.entries if entry.reply is not None]
        faults = [*self.faults, *self.ledger.check(allowed)]
        return {
            "num": self.num,
            "was_interrupted": was_interrupted,
            "num_done": self.num_done,
            "num_requests": len(self.ledger.entries),
            "ends": self.ledger.ends(),
            "allowed_ends": list(allowed),
            "num_faults": len(faults),
            "faults": group(faults),
            "longest_recovery_s": max(self.recoveries_s, default=None),
            "wall_s": round(time.monotonic() - self.started_s, 1),
            **self.facts,
        }


Run = Callable[[Course], Any]


def _more(
    before: dict[str, dict[str, float]], after: dict[str, dict[str, float]], limits: dict[str, float]
) -> list[str]:
    return [
        f"{name} of the {role}: {gauges[name]:g}, now {after[role][name]:g}"
        for role, gauges in before.items()
        for name, limit in limits.items()
        if after[role][name] > gauges[name] + limit
    ]
