"""Service tiers and classes: which class a request is served in, and the tier that its answer names.

| service_tier          | class              | the answer says |
|-----------------------|--------------------|-----------------|
| flex                  | be                 | flex            |
| priority, fast        | rt                 | priority        |
| scale                 | rt                 | scale           |
| default, auto, absent | the default class  | default         |

A class may also be named by the model (`bros_rt`, `bros_be`) or by the header `x-priority-class`. Two names that
contradict each other are refused; `default` and `auto` contradict nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from client.generation import PriorityClass
from client.openai.bodies import Tier
from client.openai.errors import ApiError
from client.wire import MODEL_BE, MODEL_RT

TIER_NAMES: tuple[Tier, ...] = get_args(Tier)
CLASSES: frozenset[PriorityClass] = frozenset(get_args(PriorityClass))
_CLASS_OF_TIER: dict[str, PriorityClass] = {"flex": "be", "priority": "rt", "fast": "rt", "scale": "rt"}
_TIER_OF_CLASS: dict[PriorityClass, str] = {"be": "flex", "rt": "priority"}
_CLASS_OF_MODEL: dict[str, PriorityClass] = {MODEL_RT: "rt", MODEL_BE: "be"}
_CLASS_OF_WORD: dict[str, PriorityClass] = {"rt": "rt", "1": "rt", "be": "be", "2": "be"}


_TEXT = re.compile(rb'\s*:\s*"([a-z_]{1,16})"')


@dataclass(frozen=True, slots=True)
class Served:
    """How a request is served: its class, and the tier that answers name."""

    priority_class: PriorityClass
    tier: str


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may what: `allowed` are the classes of the caller's key, `default` that of a request that names none."""

    default: PriorityClass
    allowed: frozenset[PriorityClass] = CLASSES

    def served(self, tier: str | None, model: str, asked: PriorityClass | None = None) -> Served:
        """Return how a request is served that names `tier`, `model` and, by header, the class `asked`."""
        named = _CLASS_OF_TIER.get(tier or "")
        classes = _agreed({"service_tier": named, "model": _CLASS_OF_MODEL.get(model), "x-priority-class": asked})
        chosen = classes or (self._usual if tier in (None, "auto") else self.default)
        if chosen not in self.allowed:
            raise ApiError(
                f"service_tier: this key may not have class {chosen!r}, only {', '.join(sorted(self.allowed))}",
                param="service_tier",
                status=403,
                kind="permission_error",
                code="tier_not_allowed",
            )
        is_named = tier not in (None, "auto", "default")
        fallback = "default" if classes is None and chosen == self.default else _TIER_OF_CLASS[chosen]
        return Served(chosen, {"fast": "priority"}.get(str(tier), str(tier)) if is_named else fallback)

    def seems_rt(self, body: bytes, asked: PriorityClass | None = None) -> bool:
        """Return whether a body that nobody has read is likely to be real-time. A wrong guess hurts its sender only."""
        named = asked or _CLASS_OF_TIER.get(_last_text(body, b'"service_tier"'))
        return (
            "rt" in self.allowed and (named or _CLASS_OF_MODEL.get(_last_text(body, b'"model"'), self._usual)) == "rt"
        )

    @property
    def _usual(self) -> PriorityClass:
        """The class of who leaves it to us: the default, or the only one that the key has."""
        return self.default if self.default in self.allowed else min(self.allowed)


def _last_text(body: bytes, name: bytes) -> str:
    """Return the text after the last `name` in JSON, where one stands there. In a text its quotes would be escaped."""
    found = _TEXT.match(body, start + len(name)) if (start := body.rfind(name)) >= 0 else None
    return "" if found is None else found[1].decode()


def best_effort(tier: str | None, model: str) -> Served:
    """Return how a line of a batch is served, which may name no other class than best-effort. Raises ApiError."""
    for param, name, named in (("service_tier", tier, _CLASS_OF_TIER), ("model", model, _CLASS_OF_MODEL)):
        if named.get(name or "", "be") != "be":
            words = f"{param}: {name!r} is real-time; every request of a batch is best-effort"
            raise ApiError(words, param=param, code="unsupported_value")
    return Served("be", _TIER_OF_CLASS["be"])


def classes_of(tiers: Iterable[str], default: PriorityClass) -> frozenset[PriorityClass]:
    """Return the classes that `tiers`, names from a key file, stand for."""
    return frozenset(_CLASS_OF_TIER.get(tier, default) for tier in tiers)


def parse_class(word: str) -> PriorityClass:
    """Return the class that the header `x-priority-class` names. Raises ApiError."""
    if (chosen := _CLASS_OF_WORD.get(word.strip().lower())) is None:
        raise ApiError(f"x-priority-class: {word[:60]!r} is neither rt (1) nor be (2)", param="x-priority-class")
    return chosen


def _agreed(named: dict[str, PriorityClass | None]) -> PriorityClass | None:
    """Return the class that all who name one name. Raises ApiError."""
    given = {who: its_class for who, its_class in named.items() if its_class is not None}
    if len(set(given.values())) > 1:
        words = ", ".join(f"{who} says {its_class}" for who, its_class in given.items())
        raise ApiError(f"service_tier: {words}", param="service_tier")
    return next(iter(given.values()), None)
