"""What a contributor meets first: templates that parse, a container that can be made, a guide whose files exist."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from backend.policy import settings
from backend.policy.registry import POLICIES, _plain
from bench import simulate
from bench.sim.scenario import Scenario
from tests.backend.factories import be, make_scheduler_for_test, rt

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name)
def test_an_issue_template_has_what_the_forms_need(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} == set(form)
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    assert all(field["attributes"]["label"] for field in form["body"])


def test_the_container_makes_the_environment_with_a_target_that_exists() -> None:
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    command = container["postCreateCommand"].split()
    assert command[0] == "make"
    done = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ci_runs_the_same_check_as_a_contributor() -> None:
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "exec make check"
    assert "make check " in GUIDE


def test_every_file_and_folder_that_the_guide_names_exists() -> None:
    named = set(re.findall(r"`((?:backend|kv|bench|tests|docs)/[\w./]+)`", GUIDE)) | set(
        re.findall(r"\]\(([\w./]+)\)", GUIDE)
    )
    assert len(named) > 10
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]


@pytest.fixture
def guide(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The guide's code blocks, run as they stand: a policy, registered, and its test."""
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL):
        exec(code, names)  # the guide's own code
    monkeypatch.setattr(settings, "POLICY_NAMES", (*settings.POLICY_NAMES, "shortest_first"))
    monkeypatch.setitem(POLICIES, "shortest_first", _plain(names["plan_shortest_first"]))  # type: ignore[arg-type]
    return names


def test_the_test_of_the_guide_passes(guide: dict[str, object]) -> None:
    (test,) = [value for name, value in guide.items() if name.startswith("test_")]
    assert callable(test)
    assert test() is None


@pytest.mark.usefixtures("guide")
def test_the_policy_of_the_guide_stops_at_a_full_step() -> None:
    scheduler = make_scheduler_for_test(policy="shortest_first")
    longest, long, short = be(scheduler.view.limits.max_tokens), rt(40), be(8)
    for request in (longest, long, short):
        scheduler.add(request, 0.0)
    behind = be(scheduler.view.limits.max_tokens)  # the step is full before its turn comes
    scheduler.add(behind, 0.0)
    plan = scheduler.plan(0.0)
    assert list(plan.num_new_tokens) == [short, long, longest]


@pytest.mark.usefixtures("guide")
def test_the_simulation_of_the_guide_scores_something(monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = re.findall(r"`python -m bench.simulate (.*)`", GUIDE)
    simulated: list[Scenario] = []
    monkeypatch.setattr("sys.argv", ["bench.simulate", *command.replace("shortest_first", "fcfs").split()])
    monkeypatch.setattr("bench.simulate.simulate", lambda scenario: simulated.append(scenario) or {})
    assert simulate.main() == 0
    assert simulated[0].warmup_s < simulated[0].duration_s


def test_every_package_says_that_it_is_typed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["*"]
    assert all((ROOT / package / "py.typed").exists() for package in ("kv", "backend", "client"))
