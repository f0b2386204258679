"""Which class a tier, a model or a header means, and which tier an answer names."""

from __future__ import annotations

from typing import Any

import pytest

from client.openai.bodies import Tier
from client.openai.errors import ApiError
from client.openai.tiers import CLASSES, TIER_NAMES, Rule, classes_of
from front.settings import Settings
from tests.front.door import Door, error_of


@pytest.mark.parametrize(
    ("tier", "priority_class", "named"),
    [
        ("flex", "be", "flex"),
        ("priority", "rt", "priority"),
        ("fast", "rt", "priority"),
        ("scale", "rt", "scale"),
        ("default", "be", "default"),
        ("auto", "be", "default"),
        (None, "be", "default"),
    ],
)
@pytest.mark.parametrize("ask", ["chat", "complete"])
def test_a_tier_is_a_class(tier: Tier | None, priority_class: str, named: str, ask: str) -> None:
    door = Door()
    response = getattr(door, ask)(**({} if tier is None else {"service_tier": tier}))
    assert door.inputs["priority_class"] == priority_class
    assert response.json()["service_tier"] == named


def test_the_default_class_is_configured() -> None:
    door = Door(settings=Settings(default_class="rt"))
    assert door.chat().json()["service_tier"] == "default"
    assert door.inputs["priority_class"] == "rt"


@pytest.mark.parametrize(
    ("model", "priority_class", "named"), [("bros_rt", "rt", "priority"), ("bros_be", "be", "flex")]
)
def test_a_model_may_name_the_class(model: str, priority_class: str, named: str) -> None:
    door = Door()
    assert door.chat(model=model).json()["service_tier"] == named
    assert (door.server.calls[-1].model, door.inputs["priority_class"]) == (model, priority_class)


@pytest.mark.parametrize("word", ["rt", "1", " RT "])
def test_a_header_may_name_the_class(word: str) -> None:
    door = Door()
    assert door.chat({"x-priority-class": word}, service_tier="auto").json()["service_tier"] == "priority"
    assert door.inputs["priority_class"] == "rt"


@pytest.mark.parametrize(
    ("headers", "fields"),
    [({"x-priority-class": "rt"}, {"service_tier": "flex"}), ({}, {"service_tier": "flex", "model": "bros_rt"})],
)
def test_two_names_that_contradict_each_other_are_refused(headers: dict[str, str], fields: dict[str, str]) -> None:
    response = Door().chat(headers, **fields)
    assert (response.status_code, error_of(response)["param"]) == (400, "service_tier")


def test_a_header_that_names_no_class_is_refused() -> None:
    assert error_of(Door().chat({"x-priority-class": "gold"}))["param"] == "x-priority-class"


def test_every_tier_of_openai_has_a_class() -> None:
    assert {tier: Rule("be").served(tier, "bros").priority_class for tier in TIER_NAMES} == {
        tier: "be" if tier in ("flex", "auto", "default") else "rt" for tier in TIER_NAMES
    }


def test_who_leaves_it_to_us_gets_what_its_key_has() -> None:
    rule = Rule("rt", classes_of(["flex"], "rt"))
    assert rule.served(None, "bros").priority_class == "be"
    assert rule.served("auto", "bros").priority_class == "be"
    with pytest.raises(ApiError, match="this key may not have class 'rt'"):
        rule.served("default", "bros")


@pytest.mark.parametrize(
    ("body", "allowed", "seems"),
    [
        (b'{"messages":[],"service_tier":"priority"}', CLASSES, True),
        (b'{"messages":[],"service_tier" : "flex","model":"bros_rt"}', CLASSES, False),
        (b'{"messages":[],"model":"bros_rt"}', CLASSES, True),
        (b'{"messages":[],"service_tier":"priority"}', frozenset({"be"}), False),
        (b'{"messages":[]}', frozenset({"rt"}), True),
        (b'{"prompt":"\\"service_tier\\":\\"priority\\""}', CLASSES, False),
        (b'{"service_tier":', CLASSES, False),
    ],
)
def test_the_class_of_a_body_is_guessed_before_it_is_read(body: bytes, allowed: Any, seems: bool) -> None:
    assert Rule("be", allowed).seems_rt(body) is seems


def test_a_header_says_the_class_before_a_body_is_read() -> None:
    assert Rule("be").seems_rt(b"{}", "rt")
    assert not Rule("rt").seems_rt(b'{"service_tier":"priority"}', "be")
