"""The campaign itself: its short form finds no fault, and an interrupted one reports and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.campaign.__main__ import main
from tests.campaign.limits import ATTACKS, MAY_END_THE_SERVER
from tests.campaign.phases import PHASES
from tests.campaign.report import WHAT, is_current, render, table
from tests.triton.servers import START_TIMEOUT_S, processes_of

COMMAND = [sys.executable, "-m", "tests.campaign"]


def run_campaign(out: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run([*COMMAND, *arguments, "--out", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3_000:]
    return dict(json.loads(out.read_text()))


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize("phase", PHASES)
def test_the_short_form_finds_no_fault(tmp_path: Path, phase: str) -> None:
    result = run_campaign(tmp_path / "out.json", "--short", "--only", phase)["phases"][phase]
    if "skipped" in result:
        pytest.skip(result["skipped"])
    assert (result["num_done"], result["num_faults"]) == (result["num"], 0)


@pytest.mark.slow
@pytest.mark.triton
def test_an_interrupted_campaign_reports_and_leaves_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = ["--only", "soak", "--seconds", "600", "--out", str(out)]
    mark = f"campaign-of={tmp_path.name}"
    environment = {**os.environ, "CAMPAIGN_MARK": mark}
    with subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        while (line := process.stderr.readline()) and "soak" not in line:
            pass
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=START_TIMEOUT_S)
    assert process.returncode == 1
    assert json.loads(out.read_text())["phases"]["soak"]["was_interrupted"]
    assert processes_of(mark) == []


def a_document(**more: Any) -> dict[str, Any]:
    result = {
        "num": 9,
        "num_done": 9,
        "num_requests": 5,
        "ends": {"answered": 5},
        "num_faults": 0,
        "faults": [],
        "longest_recovery_s": 1.25,
        "unit": "strikes",
        "was_interrupted": False,
        **more,
    }
    hardware = {"cpu": "a processor", "num_cores": 2, "memory_gib": 4}
    source = {"commit": "c0ffee", "has_local_changes": False, "date": "today", "hardware": hardware, "versions": {}}
    return {"provenance": source, "seed": 3, "phases": {"engine": result}}


def test_the_table_says_what_was_done_and_found() -> None:
    assert "| 9 of 9 strikes | 5 | 5 answered | 1.2 s | 0 |" in table(a_document())
    fault = {"kind": "a | b", "count": 2, "example": "case 7"}
    assert "- engine, 2 times: a ¦ b. E.g. case 7" in table(a_document(faults=[fault], num_faults=2))


def test_a_phase_that_was_skipped_says_why() -> None:
    assert "skipped: needs root" in table(a_document(skipped="needs root"))


def test_the_document_names_its_source_and_the_limits_of_triton() -> None:
    gauge = {"engine": {"memory_mib": 100.4, "descriptors": 7, "threads": 3, "dead_sockets": 2}}
    text = render(a_document(gauges={"before": gauge, "after": gauge}))
    assert "Commit c0ffee, today" in text
    assert "Seed 3." in text
    assert "| engine | engine | 100 → 100 | 7 → 7 | 3 → 3 | 2 → 2 |" in text
    assert "What Triton 2.51 itself does not survive" in text


@pytest.mark.parametrize("content", ["[]", "{}", "no JSON"])
def test_a_file_of_another_command_is_refused_before_an_hour_is_spent(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "other.json"
    out.write_text(content)
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "wire", "--out", str(out)])
    assert str(out) in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path / "none" / "out.json")])
    assert "there is no folder" in capsys.readouterr().err
    assert out.read_text() == content


def test_the_document_is_what_the_published_result_says() -> None:
    assert is_current()


def test_every_phase_is_told_in_words() -> None:
    assert list(WHAT) == list(PHASES)


def test_what_may_end_the_server_is_among_the_attacks() -> None:
    assert set(ATTACKS) > MAY_END_THE_SERVER
