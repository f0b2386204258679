"""When a visitor's slots were free, told from made-up steps; and what the report says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cancel import VISITOR_TOKENS, Step, Visit, delay_ms, read_steps
from bench.common.provenance import provenance
from bench.report.cancel import NOTICED_BAR_MS, cancel_sections, summary


def test_slots_are_free_when_the_last_step_with_the_visitor_ends() -> None:
    steps = [Step(0.1 * index, int(3 <= index <= 6)) for index in range(10)]
    assert delay_ms(Visit(came_s=0.25, left_s=0.45, end_s=0.95), steps) == pytest.approx(150.0)


@pytest.mark.parametrize("present", [(0, 1, 0, 1, 0), (0, 1, 2, 1, 0)], ids=["pauses", "two at once"])
def test_steps_that_do_not_tell_are_an_error(present: tuple[int, ...]) -> None:
    steps = [Step(float(index), num_visitors) for index, num_visitors in enumerate(present)]
    with pytest.raises(AssertionError, match="two visitors"):
        delay_ms(Visit(0.0, 2.0, 4.0), steps)


def test_a_visitor_is_known_by_its_long_prompt(tmp_path: Path) -> None:
    path = tmp_path / "steps"
    path.write_text(json.dumps({"end_s": 1.5, "duration_s": 0.1, "starts": [3, VISITOR_TOKENS], "counts": [1, 1]}))
    assert read_steps(path) == [Step(1.5, 1)]


@pytest.mark.parametrize(("longest_ms", "num_missed"), [(NOTICED_BAR_MS, 0), (NOTICED_BAR_MS + 11.0, 1)])
def test_the_report_tells_who_was_noticed_too_late(tmp_path: Path, longest_ms: float, num_missed: int) -> None:
    assert cancel_sections(tmp_path) == []
    loads = {name: {"way": summary([10.0, 20.0])} for name in ("alone", "beside")}
    loads["busy"] = {"way": summary([10.0, longest_ms])}
    result = {"num_cancels": 2, "num_streams": 1, "step_ms": 10.0, "cancel_poll_ms": 50.0, "loads": loads}
    (tmp_path / "cancel.json").write_text(json.dumps({**result, "provenance": provenance()}))
    text = "\n".join(cancel_sections(tmp_path))
    assert text.count("**missed**") == num_missed
    assert f"beside streams, cores busy: {2 - num_missed} of 2 within 100 ms and one step" in text
