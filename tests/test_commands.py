"""Every command that a person may type: `--help` answers and does nothing else, and a wrong argument gives one line."""

from __future__ import annotations

import importlib
import io
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = (
    "backend.dynamo.serve_many",
    "backend.dynamo.tier_door",
    "backend.dynamo.worker",
    "backend.launcher.probe",
    "backend.server.engine_process",
    "bench.plan",
    "client.cli",
    "front.main",
    "tests.backend.executors.trtllm.compare",
    "tests.backend.executors.trtllm.cost",
    "tests.campaign.__main__",
    "tests.campaign.report",
    "tests.fuzz",
    "tests.kv.cost",
    "tests.ops.crds.__main__",
    *sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in ("bench", "bench/report", "tools")
        for path in (ROOT / folder).glob("*.py")
        if "\ndef main(" in path.read_text() and path.name != "plan.py"
    ),
)
SCRIPTS = (
    "deploy/grafana/render.py",
    "deploy/load_tools/by_class.py",
    "deploy/load_tools/save_tokenizer.py",
    "requirements/lock.py",
)
# Command, and the words of the line that it ends with. Each exits with 2.
WRONG = (
    ("bench.simulate --rt-rate -3", "argument --rt-rate: -3 is below 0"),
    ("bench.simulate --rt-rate inf", "argument --rt-rate: inf is not finite"),
    ("bench.simulate --kv-tokens -4", "argument --kv-tokens: -4 is below 1"),
    ("bench.simulate --kv-tokens 4", "kv_tokens 4 is less than a block of 16"),
    ("bench.simulate --block-size 0", "argument --block-size: 0 is below 1"),
    ("bench.simulate --seed one", "argument --seed: 'one' is not a whole number"),
    ("bench.simulate --scenario nope", "argument --scenario: invalid choice: 'nope' (choose from 'azure_70b'"),
    ("bench.simulate --set nope", "argument --set: 'nope': write NAME=JSON; names are max_waiting_rt"),
    ("bench.simulate --set nope=1", "argument --set: 'nope=1': write NAME=JSON; names are max_waiting_rt"),
    ("bench.simulate --set sharing=1", "argument --set: 'sharing=1': Expected `bool`"),
    ("bench.simulate --set budget_margin=2", "argument --set: 'budget_margin=2': budget_margin: 2.0 is outside [0, 1)"),
    ("bench.simulate --rt-trace README.md", "argument --rt-trace: README.md: no CSV file with"),
    ("bench.simulate --rt-lengths nope", "argument --rt-lengths: nope: No such file or directory"),
    ("bench.micro --running -1", "argument --running: -1 is below 1"),
    ("bench.micro --steps 0", "argument --steps: 0 is below 1"),
    ("bench.study --jobs 0", "argument --jobs: 0 is below 1"),
    ("bench.study --seeds -1", "argument --seeds: -1 is below 1"),
    ("bench.study --minutes 0", "argument --minutes: 0 is not above 0"),
    ("tests.fuzz --jobs 0", "argument --jobs: 0 is below 1"),
    ("tests.fuzz --runs -1", "argument --runs: -1 is below 1"),
    ("tests.campaign.__main__ --replay -1", "argument --replay: -1 is below 0"),
    ("bench.prefix sim --jobs 0", "argument --jobs: 0 is below 1"),
    ("bench.prefix sim --scale 0", "argument --scale: 0 is below 0.01"),
    ("bench.prefix sim --out README.md", "--out README.md is not JSON"),
    ("bench.prefix step --before tests", "--before tests is no checkout: it has no bench/micro.py"),
    ("bench.fleet --out absent.json", "argument --out: absent.json does not exist: run --measure first"),
    ("bench.fleet --out README.md", "--out README.md is not JSON"),
    ("bench.fleet --duration-s 5 --out x", "argument --duration-s: 5 is not above 5"),
    ("bench.many --seeds 0 --out x", "argument --seeds: 0 is below 1"),
    ("bench.serve --out x", "no load: give --rt-rate, --be-rate, --be-backlog or --suite"),
    ("bench.serve --rt-rate -1 --out x", "argument --rt-rate: -1 is below 0"),
    ("bench.serve --rt-rate 1 --duration-s 5 --out x", "--duration-s 5 must be above --warmup-s 5"),
    ("bench.door --rounds 0", "argument --rounds: 0 is below 1"),
    ("bench.cancel --cancels 0", "argument --cancels: 0 is below 1"),
    ("bench.watch --pairs 1", "argument --pairs: 1 is below 2"),
    ("bench.demo --duration-s 0", "argument --duration-s: 0 is not above 0"),
    ("bench.beside_batch --rate nan", "argument --rate: nan is not finite"),
    ("tools.fit steps --duration-s -1 --out x", "argument --duration-s: -1 is not above 0"),
    ("tests.backend.executors.trtllm.compare --seed 0 --horizon-s 5", "--horizon-s 5 is too short"),
    ("tests.ops.crds.__main__ example", "standard input has no CustomResourceDefinition"),
    ("backend.launcher.probe", "the following arguments are required: URL"),
    ("backend.launcher.probe localhost", "'localhost' is no URL such as http://127.0.0.1:8000"),
    ("deploy/load_tools/by_class.py absent.json", "absent.json is no export of perf_analyzer: FileNotFoundError"),
    ("deploy/load_tools/by_class.py", "the following arguments are required: FILE"),
    ("deploy/load_tools/save_tokenizer.py", "the following arguments are required: DIRECTORY"),
    ("deploy/load_tools/save_tokenizer.py x absent.gguf", "'absent.gguf' does not exist"),
)


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run in a folder of its own, in which a command must leave nothing."""
    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    before = locked()
    yield tmp_path
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "tests"}
    assert locked() == before


def locked() -> tuple[int, str]:
    path = ROOT / "requirements" / "lock.txt"
    return path.stat().st_mtime_ns, path.read_text()


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """Run a command in this process; return its exit status."""
    name, *arguments = command.split()
    monkeypatch.setattr("sys.argv", [name, *arguments])
    monkeypatch.syspath_prepend(str((ROOT / name).parent))
    try:
        if name.endswith(".py"):
            runpy.run_path(str(ROOT / name), run_name="__main__")
            return 0
        return importlib.import_module(name).main()  # type: ignore[no-any-return]  # of any module
    except SystemExit as ended:
        return ended.code


@pytest.mark.parametrize("command", [*MODULES, *SCRIPTS])
def test_help_says_how_to_call_it_and_does_nothing(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"{command} --help", monkeypatch) == 0
    usage = capsys.readouterr().out.split()[1:4]
    called = f"python {command}" if command.endswith(".py") else f"python -m {command.removesuffix('.__main__')}"
    assert " ".join(usage).startswith((called, "bros", "python -m bench.report"))


@pytest.mark.parametrize(("command", "words"), WRONG)
def test_a_wrong_argument_is_named_in_the_last_line(
    command: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, monkeypatch) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_every_documented_module_is_asked_for_help() -> None:
    texts = [path.read_text() for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))]
    named = set(re.findall(r"python -m ((?:backend|bench|client|front|tests|tools)[\w.]*\w)", "\n".join(texts)))
    generators = {
        "backend.config",
        "backend.wire.metrics",
        "front.conformance",
        "tests.ops.rooms",
    }  # they print a document and take no argument
    known = {name.removesuffix(".__main__").removesuffix(".document") for name in MODULES}
    assert len(named) > 15
    assert named - generators <= known


def test_the_probe_says_why_nothing_came_back() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "backend.launcher.probe", "http://127.0.0.1:9"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "http://127.0.0.1:9: Connection refused\n"
