"""Every command in README and docs runs, or is understood by the program that it calls; every name in them exists."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import pytest

import backend.launcher.serve
import bench.plan
import client.cli
from backend.launcher.triton_install import find_triton
from tests.ops.documents import DOCUMENTS, GUIDE, ROOT, commands, fences, loose_commands, program_of
from tests.triton.servers import Server

README = ROOT / "README.md"
LOAD_TOOLS = ROOT / "deploy" / "load_tools"
MAKEFILE = (ROOT / "Makefile").read_text()
DEFAULT_PORTS = {"http": "8000", "grpc": "8001", "metrics": "8002", "openai": "8080"}


def label(value: object) -> str:
    """Name a test's case: by the document, or by how a script or command begins."""
    words = value if isinstance(value, list) else str(value).split()
    return value.name if isinstance(value, Path) else " ".join(words)[:60]


# The tests run these examples against the simulated model: Python, and scripts of nothing but these commands.

RUN = ("source", "bros", "curl", "python -m backend.launcher.probe")


def is_run(language: str, text: str) -> bool:
    return language == "python" or (
        language == "sh" and all(" ".join(words).startswith(RUN) for words in commands(text))
    )


EXAMPLES = [  # `test_habits.py` runs those of the guide
    (document, *fence) for document in DOCUMENTS if document != GUIDE for fence in fences(document) if is_run(*fence)
]


@pytest.fixture
def environment(sim: Server, tmp_path: Path) -> dict[str, str]:
    """An activated environment, with a `bros` that knows the test server's ports."""
    shim = tmp_path / "bros"
    shim.write_text(
        f"#!/bin/sh\ncommand=$1; shift\n"
        f'exec {sys.executable} -m client.cli "$command" --url grpc://{sim.grpc_url} "$@"\n'
    )
    shim.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}


def with_ports(code: str, sim: Server) -> str:
    """Return `code` with the test server's addresses in place of the usual ones."""
    for kind, port in DEFAULT_PORTS.items():
        address = getattr(sim, f"{kind}_url").removeprefix("http://").removesuffix("/metrics").removesuffix("/v1")
        code = code.replace(f"127.0.0.1:{port}", address)
    return code


@pytest.mark.triton
@pytest.mark.parametrize(("document", "language", "code"), EXAMPLES, ids=label)
def test_an_example_runs(document: Path, language: str, code: str, sim: Server, environment: dict[str, str]) -> None:
    code = with_ports(code.replace("source .venv/bin/activate\n", ""), sim)
    command = ["bash", "-euc", code] if language == "sh" else [sys.executable, "-c", code]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL
    )
    assert result.returncode == 0, f"{document.name}: {result.stderr}"
    assert re.search(r"t\d+|ready", result.stdout), f"no token of the simulated model in {result.stdout!r}"


def test_the_readme_shows_command_line_curl_and_tritonclient() -> None:
    codes = "\n".join(code for document, _, code in EXAMPLES if document == README)
    assert all(word in codes for word in ("bros generate", "curl", "tritonclient"))


# Not run: servers that stay, installations, other machines' paths, benchmarks of minutes to hours. The program
# that such a command calls checks it, where that program is here.

Patch = pytest.MonkeyPatch


def parse_only(main: Callable[[], object], arguments: list[str], monkeypatch: Patch) -> None:
    """Have a program parse its arguments, and do nothing more."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_exit(parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        parse(parser)
        sys.exit(0)

    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_exit)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0


def check_serve(words: list[str], monkeypatch: Patch) -> None:
    parse_only(backend.launcher.serve.main, words[1:], monkeypatch)


def check_bros(words: list[str], monkeypatch: Patch) -> None:
    parse_only(client.cli.main, words[1:], monkeypatch)


def check_plan(words: list[str], monkeypatch: Patch) -> None:
    parse_only(bench.plan.main, words[1:], monkeypatch)


def check_python(words: list[str], monkeypatch: Patch) -> None:
    """A program parses its arguments; without any, it has to exist."""
    if words[1] != "-m":
        check_script(words, monkeypatch)
    elif words[2] == "pytest":
        check_pytest(words[2:], monkeypatch)
    elif words[3:]:
        parse_only(import_module(words[2]).main, words[3:], monkeypatch)
    else:
        assert find_spec(words[2]) is not None


def check_make(words: list[str], monkeypatch: Patch) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
    variables = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    assert {word for word in words[1:] if "=" not in word} <= targets
    assert variables.keys() <= set(re.findall(r"^([A-Z_]+) \?=", MAKEFILE, re.MULTILINE))
    if words[1] == "serve":
        check_serve(["bros-serve", *shlex.split(variables.get("ARGS", ""))], monkeypatch)


def check_script(words: list[str], monkeypatch: Patch) -> None:
    script = ROOT / words[1]
    if words[2:] and "argparse" in script.read_text():
        monkeypatch.syspath_prepend(script.parent)
        parse_only(runpy.run_path(str(script))["main"], words[2:], monkeypatch)


def check_executable(words: list[str], _: Patch) -> None:
    assert os.access(ROOT / words[0], os.X_OK)


def check_pip(words: list[str], _: Patch) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.fullmatch(r"\.\[(.*)\]|pre-commit", words[2])
    assert named is not None
    assert (words[1], set((named[1] or "dev").split(",")) <= extras.keys()) == ("install", True)


def check_pytest(words: list[str], _: Patch) -> None:
    assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))


def check_load_tool(words: list[str], _: Patch) -> None:
    """Its options are among those of run.sh, which is known to run: its output is kept."""
    assert options_of(words) <= words_of((LOAD_TOOLS / "run.sh").read_text())


def check_tritonserver(words: list[str], _: Patch) -> None:
    with TemporaryDirectory() as directory:
        assert options_of(words) <= triton_options(Path(directory))


def check_ranks(words: list[str], monkeypatch: Patch) -> None:
    """What Slurm and TensorRT-LLM start is ours; their own options are theirs."""
    check_python(words[words.index("python3") :], monkeypatch)


def check_nothing(_: list[str], __: Patch) -> None:
    """The shell's own."""


EXAMPLE_POLICY = "shortest_first"  # the guide's, which the reader adds
SHELL = ("export", "kill", "source")
CHECKS: dict[str, Callable[[list[str], Patch], None]] = {
    "make": check_make,
    "bros": check_bros,
    "bros-serve": check_serve,
    "bros-plan": check_plan,
    "python": check_python,
    "python3": check_python,
    "sh": check_script,
    "deploy/load_tools/install_perf_analyzer.sh": check_executable,
    "deploy/load_tools/run.sh": check_executable,
    "pip": check_pip,
    "pytest": check_pytest,
    "tritonserver": check_tritonserver,
    "perf_analyzer": check_load_tool,
    "genai-perf": check_load_tool,
    "aiperf": check_load_tool,
    "srun": check_ranks,
    "pre-commit": check_nothing,
    **dict.fromkeys(SHELL, check_nothing),
}


def all_commands() -> Iterator[tuple[Path, list[str]]]:
    for document in DOCUMENTS:
        for language, text in fences(document):
            if language == "sh" and not is_run(language, text):
                yield from ((document, words) for words in commands(text))
        yield from ((document, words) for words in loose_commands(document, CHECKS.keys() - SHELL))


@pytest.mark.parametrize(("document", "words"), list(all_commands()), ids=label)
def test_a_command_is_understood(document: Path, words: list[str], monkeypatch: Patch) -> None:
    words = ["bros" if word == EXAMPLE_POLICY else word for word in words]
    program = program_of(words)
    assert program in CHECKS, f"{document.name}: nothing here runs or checks `{program}`"
    CHECKS[program](words[words.index(next(word for word in words if word.endswith(program))) :], monkeypatch)


@pytest.mark.parametrize("document", DOCUMENTS, ids=label)
def test_every_block_says_what_language_it_is(document: Path) -> None:
    assert {language for language, _ in fences(document)} <= {"sh", "python", "text"}


def options_of(words: list[str]) -> set[str]:
    return {word.split("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}


def words_of(text: str) -> set[str]:
    """Return options in a help text or script, each as a word."""
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text))


OURS = {
    option
    for package in ("backend", "bench", "client", "front")
    for file in (ROOT / package).rglob("*.py")
    for option in re.findall(r'"(--[a-z][\w-]*)"', file.read_text())
}
NOT_INSTALLED = {"--enable-shared"}  # of Python's own build
CONTAINERS = [ROOT / "Dockerfile", *sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=label)
def test_an_option_within_a_sentence_exists(document: Path, tmp_path: Path) -> None:
    spans = re.findall(r"`(--[^`\n]+)`", document.read_text())
    options = {option for span in spans for option in options_of(["", *shlex.split(span)])}
    containers = {option for _, words in container_commands() for option in options_of(words)}
    known = OURS | NOT_INSTALLED | containers | words_of((LOAD_TOOLS / "run.sh").read_text())
    assert options <= known | (triton_options(tmp_path) if options - known else set())


def triton_options(directory: Path) -> set[str]:
    triton = find_triton(None, directory)
    help_text = subprocess.run(
        [triton.binary, "--help"], env=os.environ | triton.environment, capture_output=True, text=True, check=False
    )
    return words_of(help_text.stdout + help_text.stderr)


def container_commands() -> Iterator[tuple[str, list[str]]]:
    """Yield the commands in the comments of Dockerfile and manifests, two words for the program, the rest in words."""
    for file in CONTAINERS:
        text = re.sub(r"^# *", "", file.read_text(), flags=re.MULTILINE).replace("\\\n", "")
        for program, arguments in re.findall(r"\b(docker build|docker run|kubectl apply) ([^,()\n]*)", text):
            yield program, [program, *shlex.split(arguments.split("      ")[0])]


@pytest.mark.parametrize(("program", "words"), list(container_commands()), ids=label)
def test_a_container_command_has_valid_options(program: str, words: list[str]) -> None:
    named = dict(pairwise(words))
    stages = re.findall(r"^FROM .* AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert named.get("--target", stages[0]) in stages
    assert program != "kubectl apply" or (ROOT / named["-f"]).is_dir()
    if shutil.which(words[0].split()[0]) is None:
        pytest.skip(f"{program}: not installed, so its options are not checked")
    shown = subprocess.run([*program.split(), "--help"], capture_output=True, text=True, check=False).stdout
    assert options_of(words) <= words_of(shown)


@pytest.mark.slow
@pytest.mark.triton
def test_perf_analyzer_runs_as_operations_says(sim: Server, tmp_path: Path, environment: dict[str, str]) -> None:
    """Installs it from PyPI, into a directory of its own: skipped without a network."""
    (script,) = (text for _, text in fences(ROOT / "docs" / "operations.md") if "install_perf_analyzer" in text)
    install, measure = script.split("\n", 1)
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    at_home = {"env": environment | {"HOME": str(tmp_path)}, "cwd": tmp_path, "capture_output": True, "text": True}
    installed = subprocess.run(["bash", "-euc", install], **at_home, check=False)
    if installed.returncode != 0:
        pytest.skip(f"perf_analyzer cannot be installed: {installed.stderr.strip()[-200:]}")
    result = subprocess.run(["bash", "-euc", with_ports(measure, sim)], **at_home, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^rt: \d+ requests, TTFT p50", result.stdout, re.MULTILINE)
    assert len(re.findall("Request count: 40", result.stdout)) == 2


@pytest.mark.parametrize("document", DOCUMENTS, ids=label)
def test_a_document_names_only_files_that_exist(document: Path) -> None:
    text = document.read_text()
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    named = re.findall(r"`((?:backend|bench|client|deploy|docs|examples|kv|tests|model_repository)/[\w./-]*)", text)
    missing = [name for name in linked if not (document.parent / name).exists()]
    assert not missing + [name for name in named if not (ROOT / name).exists()]


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=label)
def test_a_link_to_a_section_leads_to_its_heading(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", document.read_text())
    broken = [
        f"{name}#{anchor}"
        for name, anchor in links
        if anchor not in anchors(document.parent / name if name else document)
    ]
    assert broken == []
