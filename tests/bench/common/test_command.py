"""A command ends with one line and its exit status; its worker processes end with it."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.common.command import INTERRUPTED, CommandError, UsageError, as_command, read_part
from bench.common.workers import worker_processes

ROOT = Path(__file__).resolve().parents[3]
STUDY = "-m bench.study --seeds 1 --jobs 2 --out {out}"
FUZZ = "-m tests.fuzz --runs 100000 --jobs 2 --out {out}"
SIMULATE = "-m bench.simulate --scenario steady --duration-s 3000 --out {out}"
PLAN = "-m bench.plan --rt-rate 14 --duration-s 3000 --out {out}"
_END_S = 3.0
COMMANDS = [
    path
    for path in sorted([*(ROOT / "bench").rglob("*.py"), *(ROOT / "tools").glob("*.py"), ROOT / "tests" / "fuzz.py"])
    if "\ndef main(" in path.read_text()
]


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (KeyboardInterrupt(), INTERRUPTED, "interrupted\n"),
        (CommandError("no engine"), 1, "error: no engine\n"),
        (UsageError("--out x: no file"), 2, "error: --out x: no file\n"),
    ],
)
def test_a_command_ends_with_one_line(
    raised: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @as_command
    def main() -> int:
        raise raised

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == status
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(("text", "words"), [(None, "No such file"), ("#", "is not JSON"), ("[]", "lacks 'runs'")])
def test_a_file_of_another_kind_is_named_with_its_option(text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=words) as raised:
        read_part("--results", path, "runs")
    assert str(raised.value).startswith(f"--results {path}")


def test_workers_end_with_a_block_that_an_exception_ends() -> None:
    start_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        _interrupt_workers()
    assert time.monotonic() - start_s < _END_S


def _interrupt_workers() -> None:
    with worker_processes(2) as pool:
        running = [pool.submit(time.sleep, 60.0) for _ in range(8)]
        while not running[0].running():
            time.sleep(0.01)
        raise KeyboardInterrupt


def test_workers_start_with_what_they_are_given() -> None:
    with worker_processes(1, _mark) as pool:
        assert pool.submit(os.getenv, "MARKED").result() == "yes"
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN


def _mark() -> None:
    os.environ["MARKED"] = "yes"


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_the_benchmarks_and_tools_ends_so(path: Path) -> None:
    (main,) = [
        node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef) and node.name == "main"
    ]
    assert [ast.unparse(decorator) for decorator in main.decorator_list] == ["as_command"]


def test_ctrl_c_inside_compiled_code_is_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    """The interpreter wraps what a C function leaves behind beside a result, once for each caller."""

    @as_command
    def command(cause: BaseException) -> None:
        inner = SystemError("<function f> returned a result with an exception set")
        inner.__cause__ = cause
        raise SystemError("CPUDispatcher(<function g>) returned a result with an exception set") from inner

    with pytest.raises(SystemExit) as ended:
        command(KeyboardInterrupt())
    assert ended.value.code == INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"
    with pytest.raises(SystemError, match="CPUDispatcher"):
        command(ValueError())


@pytest.mark.parametrize("command", [STUDY, FUZZ, SIMULATE, PLAN], ids=lambda words: words.split()[1])
def test_ctrl_c_ends_a_command_and_its_workers(command: str, tmp_path: Path) -> None:
    words = command.format(out=tmp_path / "study.json").split()
    process = subprocess.Popen(
        [sys.executable, "-c", _WHEN_BEGUN.format(words=words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as a terminal gives it
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(1.0)
    os.killpg(process.pid, signal.SIGINT)
    _, words_said = process.communicate(timeout=_END_S + 5.0)
    assert process.returncode == INTERRUPTED, words_said
    assert words_said.splitlines()[-1] == "interrupted"
    assert "Traceback" not in words_said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


# Runs a command as `python` would, and says so when it has read its arguments.
_WHEN_BEGUN = """
import argparse, runpy, sys
parse_args = argparse.ArgumentParser.parse_args
def parse(*arguments):
    options = parse_args(*arguments)
    print("begun", flush=True)
    return options
argparse.ArgumentParser.parse_args = parse
_, module, *sys.argv[1:] = {words!r}
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
