"""The window grows while it is used, halves when a real-time token was late, and never closes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backend.policy.bros.token_window import AdaptiveWindow


def test_slow_start_doubles_until_the_first_loss() -> None:
    window = AdaptiveWindow(16, 4096)
    for expected in (512, 1024, 2048, 4096, 4096):
        window.observe(window.tokens, was_late=False)
        assert window.tokens == expected


def test_after_a_loss_it_halves_and_then_grows_by_a_constant() -> None:
    window = AdaptiveWindow(16, 4096)
    for _ in range(3):
        window.observe(window.tokens, was_late=False)
    window.observe(2048, was_late=True)
    assert window.tokens == 1024
    window.observe(1024, was_late=False)
    assert window.tokens == 1024 + 4096 // 32


def test_an_unused_window_does_not_grow() -> None:
    window = AdaptiveWindow(16, 4096)
    before = window.tokens
    window.observe(before // 2, was_late=False)
    assert window.tokens == before


def test_a_late_token_without_best_effort_work_is_not_the_windows_fault() -> None:
    window = AdaptiveWindow(16, 4096)
    before = window.tokens
    window.observe(0, was_late=True)
    assert window.tokens == before


def test_switched_off_it_stays_open() -> None:
    window = AdaptiveWindow(16, 4096, is_adaptive=False)
    window.observe(4096, was_late=True)
    assert window.tokens == 4096


@given(st.lists(st.tuples(st.integers(0, 10_000), st.booleans())))
def test_it_stays_within_its_limits(steps: list[tuple[int, bool]]) -> None:
    window = AdaptiveWindow(40, 2000)
    for num_tokens, was_late in steps:
        window.observe(num_tokens, was_late)
        assert 40 <= window.tokens <= 2000
