"""Real-time and best-effort have one colour each in every picture, and `client/colors.py` says which."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from bench.report.plots import _STYLES
from client.colors import ALARM_COLOR, BE_COLOR, CLASS_COLORS, RT_COLOR

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "img"
COLOR = re.compile(r"#[0-9a-f]{6}\b")
IN_ONE_PICTURE = {  # RT and BE, and what else a drawing of ours may hold
    "architecture.svg": {"#ffffff", "#57606a", "#f6f8fa", "#8c959f"},
    "demo.svg": {"#ffffff", "#000000", ALARM_COLOR},
}


@pytest.mark.parametrize(
    "name", ["architecture.svg", "demo.svg", "bros-top.svg", "loads_llama8b-a100.svg", "burst.svg"]
)
def test_a_picture_of_both_classes_shows_both_colours(name: str) -> None:
    assert set(CLASS_COLORS.values()) <= set(COLOR.findall((IMAGES / name).read_text()))


def test_the_recording_of_bros_top_has_a_number_in_every_column() -> None:
    svg = (IMAGES / "bros-top.svg").read_text()
    words = [unescape(text).replace("\xa0", " ").strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]
    rows = [words[index + 1 : index + 9] for index, word in enumerate(words) if word in ("real-time", "best-effort")]
    assert len(rows) >= 20
    for columns in rows:  # running, waiting, preempted, tokens/s; then TTFT and TPOT as two percentiles
        assert all(re.fullmatch(r"[\d,.]+", column) for column in columns[:4]), columns
        assert sum(bool(re.fullmatch(r"[\d.]+ m?s / [\d.]+ m?s", column)) for column in columns) == 2, columns


@pytest.mark.parametrize("name", IN_ONE_PICTURE)
def test_a_drawing_of_the_classes_holds_no_third_colour(name: str) -> None:
    colors = set(COLOR.findall((IMAGES / name).read_text()))
    assert colors - IN_ONE_PICTURE[name] == {RT_COLOR, BE_COLOR}


@pytest.mark.parametrize("name", ["dashboard.png", "page.png"])
def test_a_painting_of_both_classes_shows_both_colours(name: str) -> None:
    pixels = np.rint(imread(IMAGES / name)[:, :, :3] * 255).astype(np.uint8)
    for color in (RT_COLOR, BE_COLOR):
        assert (pixels == tuple(bytes.fromhex(color[1:]))).all(axis=2).sum() > 300, color


def test_a_distribution_of_real_time_is_labelled_in_its_colour() -> None:
    assert RT_COLOR in (IMAGES / "cdf_llama8b-a100.svg").read_text()


def test_no_policy_has_the_colour_of_a_class() -> None:
    assert not {color for color, _, _ in _STYLES.values()} & set(CLASS_COLORS.values())


def test_the_dashboard_gives_series_of_a_class_its_colour() -> None:
    for panel in json.loads((ROOT / "deploy" / "grafana" / "bros.json").read_text())["panels"]:
        rules = panel["fieldConfig"]["overrides"]
        fixed = {rule["matcher"]["options"]: rule["properties"][0]["value"]["fixedColor"] for rule in rules}
        assert fixed == {r"/^rt\b/": RT_COLOR, r"/^be\b/": BE_COLOR}
