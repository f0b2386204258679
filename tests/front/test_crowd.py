"""Which connection closes when more come than a server can hold."""

from __future__ import annotations

import random
from dataclasses import dataclass

from front.crowd import Crowd


@dataclass(eq=False)
class Visitor:
    address: str
    is_waiting: bool = True


def enter_all(crowd: Crowd, visitors: list[Visitor], most: int) -> list[Visitor]:
    """Return who was sent away, in order."""
    away = []
    for visitor in visitors:
        if isinstance(one := crowd.enter(visitor, most), Visitor):
            crowd.leave(one)
            away.append(one)
    return away


def test_one_address_leaves_a_quarter() -> None:
    crowd = Crowd()
    own = [Visitor("a") for _ in range(8)]
    assert enter_all(crowd, own, most=8) == own[6:]
    assert enter_all(crowd, [Visitor("b"), Visitor("c")], most=8) == []


def test_the_oldest_that_waits_of_the_largest_goes() -> None:
    crowd = Crowd()
    busy, oldest, newer, other = Visitor("a", is_waiting=False), Visitor("a"), Visitor("a"), Visitor("b")
    assert enter_all(crowd, [busy, other, oldest, newer, Visitor("c")], most=4) == [oldest]


def test_nobody_who_is_served_goes() -> None:
    crowd = Crowd()
    served = [Visitor(name, is_waiting=False) for name in "abcd"]
    newcomer = Visitor("e")
    assert enter_all(crowd, [*served, newcomer], most=4) == [newcomer]


def test_a_client_of_few_connections_stays_beside_any_number_of_addresses() -> None:
    """Of many clients with two connections each, none is pushed out by one with hundreds from a few addresses."""
    generator, crowd, most = random.Random(7), Crowd(), 64
    few = [Visitor(f"few {index % 8}") for index in range(16)]
    many = [Visitor(f"many {index % 3}") for index in range(400)]
    visitors = [*few, *many]
    generator.shuffle(visitors)
    away = enter_all(crowd, visitors, most)
    assert len(away) == len(visitors) - most
    assert not [visitor for visitor in away if visitor in few]


def test_a_place_is_given_back_once() -> None:
    crowd, first, second = Crowd(), Visitor("a"), Visitor("b")
    enter_all(crowd, [first], most=2)
    crowd.leave(first)
    crowd.leave(first)
    crowd.leave(second)
    assert enter_all(crowd, [first, second], most=2) == []
