"""Whose long body is read next, and which is refused."""

from __future__ import annotations

from itertools import count

from front.turns import MAX_PER_CLIENT, MAX_WAITING, Turn, Turns


class Queue:
    """Bodies by name: those that wait, those read, those refused."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.begun: list[str] = []
        self.refused: list[str] = []
        self._numbers = count()

    def add(self, name: str, client: str, num_bytes: int = 1000, *, is_rt: bool = False) -> Turn:
        turn = Turn(
            not is_rt,
            num_bytes,
            next(self._numbers),
            client,
            lambda: self.begun.append(name),
            lambda _: self.refused.append(name),
        )
        self.turns.add(turn)
        return turn

    def read(self, most: int = 1000) -> str:
        for _ in range(most):
            if (turn := self.turns.pop()) is None:
                break
            turn.begin()
        return " ".join(self.begun)


def test_clients_take_turns() -> None:
    queue = Queue()
    for name in ("a1", "a2", "a3", "b1", "b2"):
        queue.add(name, client=name[0])
    assert queue.read() == "a1 b1 a2 b2 a3"


def test_of_one_client_the_shortest_is_read_first() -> None:
    queue = Queue()
    queue.add("long", "a", 3000)
    queue.add("short", "a", 1000)
    queue.add("late", "a", 1000)
    assert queue.read() == "short late long"


def test_a_real_time_body_waits_for_no_best_effort_one() -> None:
    queue = Queue()
    for number in range(MAX_PER_CLIENT):
        queue.add("be", f"client {number}", 17_000)
    queue.add("rt", "z", 2_000_000, is_rt=True)
    assert queue.read(1) == "rt"


def test_real_time_bodies_leave_best_effort_a_quarter() -> None:
    queue = Queue()
    for number in range(9):
        queue.add("rt", "a", is_rt=True)
        queue.add("be", f"client {number}")
    assert queue.read(8) == "rt rt rt be rt rt rt be"


def test_a_client_with_too_many_bodies_loses_its_longest_best_effort_one() -> None:
    queue = Queue()
    for number in range(MAX_PER_CLIENT):
        queue.add(f"be {number}", "a", 17_000 + number)
    queue.add("rt", "a", 2_000_000, is_rt=True)
    assert queue.refused == [f"be {MAX_PER_CLIENT - 1}"]
    queue.add("too long", "a", 2_000_000)
    assert queue.refused[1:] == ["too long"]


def test_a_full_queue_takes_a_place_from_who_has_most() -> None:
    queue = Queue()
    for number in range(MAX_WAITING - 1):
        queue.add("greedy", f"greedy {number // MAX_PER_CLIENT}")
    queue.add("modest", "modest 1", 2_000_000)
    queue.add("modest", "modest 2", 2_000_000)
    assert queue.refused == ["greedy"]
    assert len(queue.turns) == MAX_WAITING


def test_a_body_that_is_dropped_leaves_nothing_behind() -> None:
    queue = Queue()
    queue.turns.drop(turn := queue.add("left", "a"))
    queue.turns.drop(turn)
    assert queue.read() == ""
    assert len(queue.turns) == 0


def test_what_would_be_refused_has_no_place() -> None:
    queue = Queue()
    for number in range(MAX_PER_CLIENT):
        queue.add("be", "a", 17_000 + number)
    assert not queue.turns.has_place("a", 2_000_000)
    assert queue.turns.has_place("a", 17_000)
    assert queue.turns.has_place("b", 2_000_000)
