"""`bros top`: the map, the rates and quantiles, what the panels say, the recording."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from client.cli import main
from client.colors import ALARM_COLOR, BE_COLOR, CACHED_COLOR, FREE_COLOR, RT_COLOR
from client.prometheus import Samples, parse_samples
from client.snapshot import KVPoolView, Snapshot
from client.top.history import Frame, History
from client.top.kv_map import draw
from client.top.record import Recording
from client.top.view import _CLASS_COLUMNS, render
from client.transports.fake import FAKE_SNAPSHOT


def pool(heads: list[int], tails: list[int], block_size: int = 16) -> KVPoolView:
    return KVPoolView(block_size, bytes(heads), bytes(tails), num_host_slots=0, num_host_slots_used=0)


def cells(view: KVPoolView, before: KVPoolView | None = None, width: int = 100) -> list[list[tuple[str, str, str]]]:
    """Return (character, colour, background) of every cell, line by line, without the gaps."""

    def cell(line: object, index: int) -> tuple[str, str, str]:
        span = line.spans[index]  # type: ignore[attr-defined]
        style = span.style
        return line.plain[index], style.color.name if style.color else "", style.bgcolor.name  # type: ignore[attr-defined]

    lines = [line for line in draw(view, before, width, max_bands=9) if line.plain]
    return [[cell(line, index) for index in range(len(line.plain))] for line in lines]


def test_real_time_rises_from_the_floor_and_best_effort_hangs_from_the_ceiling() -> None:
    upper, lower = cells(pool([4, 0, 16, 0], [0, 4, 0, 16]))
    assert lower == [("▄", RT_COLOR, FREE_COLOR), (" ", "", FREE_COLOR), (" ", "", RT_COLOR), (" ", "", BE_COLOR)]
    assert upper == [(" ", "", FREE_COLOR), ("▄", FREE_COLOR, BE_COLOR), (" ", "", RT_COLOR), (" ", "", BE_COLOR)]


def test_a_full_shared_block_shows_where_the_two_meet() -> None:
    upper, lower = cells(pool([11], [5]))
    assert lower == [(" ", "", RT_COLOR)]
    assert upper == [("▃", RT_COLOR, BE_COLOR)]


def test_one_slot_is_visible_even_where_a_column_is_many_blocks() -> None:
    heads = [0] * 400
    heads[7] = 1
    _, lower = cells(pool(heads, [0] * 400), width=10)[:2]
    assert ("▁", RT_COLOR, FREE_COLOR) in lower


def test_a_large_pool_fits_the_map() -> None:
    lines = draw(pool([16] * 10_000, [0] * 10_000), None, width=80, max_bands=3)
    assert len(lines) <= 3 * 3 - 1
    assert max(len(line.plain) for line in lines) <= 80


def test_what_real_time_took_from_best_effort_stands_out() -> None:
    _, lower = cells(pool([8, 8], [8, 8]), before=pool([0, 8], [16, 8]))
    assert [color for _, _, color in lower] == [ALARM_COLOR, RT_COLOR]


SCRAPE = """\
# HELP bros_t Time.
# TYPE bros_t histogram
bros_t_bucket{{class="rt",le="0.1"}} {low}
bros_t_bucket{{class="rt",le="0.2"}} {high}
bros_t_bucket{{class="rt",le="+Inf"}} {all}
bros_done_total{{class="rt",outcome="stop"}} {done}
bros_done_total{{class="be",outcome="stop"}} 1e3
"""


def scraped(low: int, high: int, all: int, done: int) -> Samples:
    return parse_samples(SCRAPE.format(low=low, high=high, all=all, done=done))


@pytest.fixture
def history() -> History:
    history = History(window_s=10.0)
    history.add(Frame(100.0, FAKE_SNAPSHOT, scraped(5, 5, 5, 50)))
    history.add(Frame(105.0, FAKE_SNAPSHOT, scraped(5, 15, 15, 90)))
    return history


def test_rates_cover_the_window(history: History) -> None:
    assert history.rate("bros_done_total", **{"class": "rt"}) == pytest.approx(8.0)
    assert history.rate("bros_done_total") == pytest.approx(8.0)
    assert history.rate("bros_unheard_of_total") is None
    assert history.ratio("bros_done_total", {"class": "rt"}, outcome="stop") == 1.0


def test_quantiles_are_of_what_came_in_the_window(history: History) -> None:
    assert history.quantile("bros_t", 0.5, **{"class": "rt"}) == pytest.approx(0.15)
    assert history.quantile("bros_t", 1.0, **{"class": "rt"}) == pytest.approx(0.2)
    assert history.quantile("bros_t", 0.5, **{"class": "be"}) is None


def test_a_quantile_in_the_infinite_bucket_is_its_lower_end(history: History) -> None:
    history.add(Frame(106.0, FAKE_SNAPSHOT, scraped(5, 15, 95, 90)))
    assert history.quantile("bros_t", 0.9, **{"class": "rt"}) == pytest.approx(0.2)


def test_old_frames_leave_the_window(history: History) -> None:
    history.add(Frame(111.0, FAKE_SNAPSHOT, scraped(5, 15, 15, 90)))
    history.add(Frame(116.0, FAKE_SNAPSHOT, scraped(5, 15, 15, 90)))
    assert history.rate("bros_done_total") == 0.0
    assert history.quantile("bros_t", 0.5) is None


def test_a_restarted_server_gives_no_negative_rate(history: History) -> None:
    history.add(Frame(106.0, FAKE_SNAPSHOT, scraped(0, 0, 0, 1)))
    assert history.rate("bros_done_total", **{"class": "rt"}) == 0.0


def shown(history: History, width: int = 120) -> str:
    console = Console(width=width, file=StringIO())
    console.print(render(history, width, 40))
    output = console.file
    assert isinstance(output, StringIO)
    return output.getvalue()


def test_the_view_tells_who_is_preempted_and_why(history: History) -> None:
    text = shown(history)
    (line,) = [line for line in text.splitlines() if "fake-2" in line]
    assert "preempted" in line
    assert "kept 41 of 53 for fake-1, step 6 · 12 on host" in line


def test_a_narrow_terminal_cuts_neither_states_nor_reasons(history: History) -> None:
    text = shown(history, width=100)
    row = text[text.index("fake-2") :].partition("fake-1 ")[0]
    words = " ".join(line.strip(" │") for line in row.splitlines())
    assert "preempted" in words
    assert all(word in words for word in ("kept", "41", "53", "step 6", "12", "on host"))
    assert "TTFT p50 / p95" in text


@pytest.mark.parametrize("width", [110, 120, 160])
def test_no_label_touches_its_neighbour(history: History, width: int) -> None:
    (labels,) = [line for line in shown(history, width).splitlines() if "TTFT p50" in line]
    assert re.split(r"\s{2,}", labels.strip("│ ")) == list(_CLASS_COLUMNS)


def test_a_recording_waits_until_the_history_covers_its_window() -> None:
    history = History(window_s=10.0)
    covered = []
    for time_s in (0.0, 9.9, 10.0, 25.0):
        history.add(Frame(time_s, FAKE_SNAPSHOT, None))
        covered.append(history.is_full)
    assert covered == [False, False, True, True]


def test_the_view_shows_step_budget_and_pool(history: History) -> None:
    text = shown(history)
    for words in ("21 ms of 50 ms budget", "1 of 8 blocks shared", "12 of 64", "policy fake"):
        assert words in text


def test_the_view_survives_an_engine_that_has_done_nothing() -> None:
    history = History()
    idle = msgspec.structs.replace(FAKE_SNAPSHOT, step=None, requests=[], preemptions=[])
    history.add(Frame(0.0, idle, None, "no metrics at http://x"))
    assert "none yet" in shown(history)
    assert "no metrics at http://x" in shown(history)


def test_the_view_says_why_there_is_nothing_to_see() -> None:
    history = History()
    history.add(Frame(0.0, None, None, "ENGINE_DOWN: there is no engine"))
    assert "ENGINE_DOWN" in shown(history)


def test_a_recording_is_one_svg_with_every_picture_in_its_turn(tmp_path: Path, history: History) -> None:
    recording = Recording(width=100)
    for _ in range(3):
        recording.add(render(history, 100, 40))
    recording.save(tmp_path / "top.svg", frame_s=0.5)
    root = ElementTree.parse(tmp_path / "top.svg").getroot()
    svg = "{http://www.w3.org/2000/svg}"
    turns = [(turn.get("keyTimes"), turn.get("values"), turn.get("dur")) for turn in root.iter(f"{svg}animate")]
    assert turns == [
        ("0;0.33333;1", "inline;none;none", "1.5s"),
        ("0;0.33333;0.66667;1", "none;inline;none;none", "1.5s"),
        ("0;0.66667;1.00000;1", "none;inline;none;none", "1.5s"),
    ]


def test_top_prints_snapshots_as_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--url", "fake://", "--metrics-url", "http://127.0.0.1:1", "--interval-s", "0.01", "--for-s", "0.5"]
    assert main(["top", *arguments, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1
    assert msgspec.convert(msgspec.json.decode(lines[0])["engine"], Snapshot) == FAKE_SNAPSHOT


def test_top_ends_where_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--url", "grpc://127.0.0.1:1", "--for-s", "0.1"]) == 1
    assert capsys.readouterr().err.startswith("bros: ")


def test_a_gap_that_is_mostly_cached_has_its_own_shade() -> None:
    view = msgspec.structs.replace(pool([0, 0, 0], [0, 0, 0]), cached_fill=bytes([16, 8, 7]))
    colors = [color for _, _, color in cells(view)[0]]
    assert colors == [CACHED_COLOR, CACHED_COLOR, FREE_COLOR]
