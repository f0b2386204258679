"""`bros-serve` on the real server, with the simulated executor: ready, supervised, drained, and nothing left behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from backend.launcher import reaper
from backend.launcher.child import stubs_of
from backend.launcher.endpoints import Endpoints
from backend.launcher.launch import Launch
from backend.launcher.probe import answers_canary
from backend.launcher.triton_install import TritonInstall
from tests.triton.servers import wait_until

pytestmark = pytest.mark.triton
ROOT = Path(__file__).resolve().parents[3]
PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--openai-port", "0")
SIM = ("--executor", "sim", *PORTS, "--json")
READY, DRAINING = "Ctrl-C drains and stops.", "draining"
TIMEOUT_S = 120


@pytest.fixture
def base() -> Iterator[Path]:
    """A temporary directory with a short name: Unix sockets allow 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="bros-test-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@dataclass
class Serve:
    """A running `bros-serve` whose stderr is read line by line."""

    process: subprocess.Popen[str]
    base: Path

    def wait_for(self, words: str) -> str:
        """Read stderr up to the line that holds `words`; return it."""
        assert self.process.stderr is not None
        lines = []
        while line := self.process.stderr.readline():
            lines.append(line)
            if words in line:
                return line
        raise AssertionError(f"{words!r} never came: {''.join(lines)}")

    def wait_until_ready(self) -> str:
        """Return the URL of Triton's HTTP endpoint, once a canary has come back."""
        self.wait_for(READY)
        assert self.process.stdout is not None
        return str(json.loads(self.process.stdout.readline())["http_url"])

    @property
    def run_directory(self) -> Path:
        (path,) = (path for path in self.base.glob("bros-*/run/*") if path.is_dir())
        return path

    def child(self, words: str) -> psutil.Process:
        return next(child for child in children_of(self.process.pid) if words in " ".join(command_of(child)))


@contextlib.contextmanager
def serve(base: Path, *arguments: str, command: tuple[str, ...] = ()) -> Iterator[Serve]:
    launcher = [*command, sys.executable, "-m", "backend.launcher.serve", *SIM, *arguments]
    process = subprocess.Popen(
        launcher,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(base)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield Serve(process, base)
        finally:
            reapers = reapers_of(process.pid)
            process.kill()
            for reaping in reapers:
                await_end(reaping)


def reapers_of(pid: int) -> list[psutil.Process]:
    return [child for child in children_of(pid) if "reaper.py" in " ".join(command_of(child))]


def children_of(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def command_of(process: psutil.Process) -> list[str]:
    """Return a process's command line; nothing for one that has ended meanwhile."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def await_end(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        descriptor = os.pidfd_open(process.pid)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert poll.poll(TIMEOUT_S * 1000), f"{process} is still running"
        os.close(descriptor)


def assert_nothing_is_left(run_directory: Path) -> None:
    assert reaper.marked_processes(run_directory) == []
    assert not list(reaper.SHARED_MEMORY.glob(f"{reaper.shared_memory_prefix(run_directory)}*"))
    assert not run_directory.exists()


def test_sigterm_drains_and_leaves_nothing(base: Path) -> None:
    with serve(base) as launch:
        url = launch.wait_until_ready()
        run_directory = launch.run_directory
        assert answers_canary(url)
        launch.process.terminate()
        assert launch.process.wait(TIMEOUT_S) == 0
    assert_nothing_is_left(run_directory)


def test_canaries_leave_nothing_open_that_a_drain_waits_for(base: Path) -> None:
    with serve(base, "--canary-timeout-s", "1") as launch:
        url = launch.wait_until_ready()
        num_asked = num_requests(url)
        wait_until(lambda: num_requests(url) >= num_asked + 4, "two looks at the model, on two request paths each")
        launch.process.terminate()
        assert launch.process.stderr is not None
        assert "requests are open" not in launch.process.stderr.read()
        assert launch.process.wait(TIMEOUT_S) == 0


def num_requests(url: str) -> int:
    """Return how many requests to `bros` Triton has answered."""
    with urllib.request.urlopen(f"{url}/v2/models/bros/stats", timeout=TIMEOUT_S) as answer:
        return int(json.loads(answer.read())["model_stats"][0]["inference_stats"]["success"]["count"])


def open_stream(url: str, max_tokens: int, model: str = "bros_rt") -> http.client.HTTPResponse:
    """Ask for that many tokens; return the response once its first event is there."""
    body = json.dumps({"input_ids": [1], "max_tokens": max_tokens, "stream": True}).encode()
    response = urllib.request.urlopen(f"{url}/v2/models/{model}/generate_stream", body, TIMEOUT_S)
    assert isinstance(response, http.client.HTTPResponse)
    assert response.readline().startswith(b"data: ")
    return response


SLOW_STEPS = ("--set", "sim.coefficients=[0.02, 0, 0, 0, 0]")


def test_a_drain_lets_open_requests_finish(base: Path) -> None:
    with serve(base, *SLOW_STEPS) as launch, open_stream(launch.wait_until_ready(), max_tokens=50) as stream:
        launch.process.terminate()
        assert b'"finish_reason":"length"' in stream.read()
        assert launch.process.wait(TIMEOUT_S) == 0


@pytest.mark.parametrize("priority_class", ["rt", "be"])
def test_what_outlasts_a_drain_gets_an_error_and_a_proper_end(base: Path, priority_class: str) -> None:
    launched = serve(base, *SLOW_STEPS, "--drain-timeout-s", "0.5")
    with launched as launch, open_stream(launch.wait_until_ready(), 8_000, f"bros_{priority_class}") as stream:
        launch.process.terminate()
        assert b'data: {"error":"' in stream.read().splitlines()[-2]  # a body cut short would raise IncompleteRead
        assert launch.process.wait(TIMEOUT_S) == 0


def test_a_second_signal_ends_a_drain_at_once(base: Path) -> None:
    slow_to_drain = (*SLOW_STEPS, "--drain-timeout-s", "3600")
    with serve(base, *slow_to_drain) as launch, open_stream(launch.wait_until_ready(), max_tokens=8_000) as stream:
        run_directory = launch.run_directory
        launch.process.terminate()
        launch.wait_for(DRAINING)
        launch.process.terminate()
        assert launch.process.wait(TIMEOUT_S) == 1
        with pytest.raises((OSError, http.client.HTTPException)):
            stream.read()
    assert_nothing_is_left(run_directory)


def test_a_triton_without_clients_is_not_waited_for(base: Path) -> None:
    with serve(base, "--drain-timeout-s", "3600") as launch:
        launch.wait_until_ready()
        launch.child("tritonserver --model-repository").suspend()  # stands for one that keeps a lost request
        launch.process.terminate()
        launch.wait_for("Triton has not ended 5 s after its last client left; ending it")
        assert launch.process.wait(TIMEOUT_S) == 0


def wait_until_loading(launch: Serve) -> None:
    """Wait for the reaper, which is there before engine and server are."""
    while not reapers_of(launch.process.pid):
        assert launch.process.poll() is None


def wait_until_draining(launch: Serve) -> None:
    launch.wait_until_ready()
    launch.process.terminate()
    launch.wait_for(DRAINING)


@pytest.mark.parametrize("reach", [wait_until_loading, Serve.wait_until_ready, wait_until_draining])
def test_kill_9_in_any_phase_leaves_nothing(base: Path, reach: Callable[[Serve], object]) -> None:
    with serve(base) as launch:
        reach(launch)
        run_directory = launch.run_directory
        waiting = launch.child("reaper.py")
        launch.process.kill()
        await_end(waiting)
    assert_nothing_is_left(run_directory)


def test_a_triton_that_dies_while_it_starts_is_started_again(base: Path) -> None:
    with serve(base) as launch:
        launch.wait_for("Triton: starting")
        launch.child("tritonserver").kill()
        launch.wait_for("tritonserver ended with code -9; starting it again")
        assert answers_canary(launch.wait_until_ready())


def test_what_dies_is_started_again(base: Path) -> None:
    with serve(base) as launch:
        url = launch.wait_until_ready()
        launch.child("engine_process").kill()
        launch.wait_for("engine ended with code -9; starting it again")
        launch.wait_for("engine is ready again")
        assert answers_canary(url)

        stubs = stubs_of(launch.child("tritonserver").pid)
        os.kill(next(pid for pid, model in stubs.items() if model == "bros_rt"), signal.SIGKILL)
        launch.wait_for("a stub of model 'bros_rt' died; ending tritonserver")
        launch.wait_for("tritonserver is ready again")
        assert answers_canary(url)

        dead = regions_of(launch)
        launch.child("tritonserver").kill()
        launch.wait_for("tritonserver ended with code -9; starting it again in 1 s")
        launch.wait_for("tritonserver is ready again")
        assert answers_canary(url)
        assert dead
        assert not dead & regions_of(launch)

        with (launch.run_directory / "logs" / "triton.log").open("a") as log:
            log.write("Signal (6) received.\n")
        launch.wait_for("tritonserver crashed with signal 6; ending it")
        launch.wait_for("tritonserver is ready again")
        assert answers_canary(url)


def regions_of(launch: Serve) -> set[Path]:
    return set(reaper.SHARED_MEMORY.glob(f"{reaper.shared_memory_prefix(launch.run_directory)}*"))


def test_a_server_that_hangs_is_started_again_and_its_streams_end(base: Path) -> None:
    options = (*SLOW_STEPS, "--canary-timeout-s", "1")
    with serve(base, *options) as launch, open_stream(launch.wait_until_ready(), 8_000) as stream:
        launch.child("tritonserver --model-repository").suspend()
        launch.wait_for("gave no answer for 1 s; ending tritonserver")
        with pytest.raises((OSError, http.client.HTTPException)):
            stream.read()
        launch.wait_for("tritonserver is ready again")


def test_an_engine_that_hangs_is_started_again_and_its_streams_end(base: Path) -> None:
    options = (*SLOW_STEPS, "--engine-timeout-s", "2")
    with serve(base, *options) as launch, open_stream(launch.wait_until_ready(), 8_000) as stream:
        launch.child("backend.server.engine_process").suspend()
        launch.wait_for("the engine gave no answer for 2 s; ending it")
        assert b"ENGINE_DOWN" in stream.read()
        launch.wait_for("engine is ready again")


def test_a_front_door_that_hangs_is_started_again_and_streams_of_triton_go_on(base: Path) -> None:
    options = (*SLOW_STEPS, "--canary-timeout-s", "0.5", "--openai-data-dir", str(base / "data"))
    with serve(base, *options) as launch, open_stream(launch.wait_until_ready(), 8_000) as stream:
        launch.child("front.main").suspend()
        launch.wait_for("bros-openai gave no answer for 3 s; ending it")
        launch.wait_for("bros-openai is ready again")
        assert stream.readline()
        assert launch.child("front.main").status() != psutil.STATUS_STOPPED


def test_it_comes_up_on_ipv6_with_a_temporary_directory_that_triton_cannot_name(base: Path) -> None:
    (base / "mein Büro").mkdir()
    with serve(base / "mein Büro", "--host", "::1") as launch:
        assert answers_canary(launch.wait_until_ready())


def test_two_launches_run_side_by_side(base: Path) -> None:
    with serve(base) as first, serve(base) as second:
        urls = {first.wait_until_ready(), second.wait_until_ready()}
        assert len(urls) == 2
        assert all(answers_canary(url) for url in urls)


def test_the_end_of_the_parent_ends_a_launch_that_was_told_so(base: Path) -> None:
    with serve(base, "--die-with-parent", command=("sh", "-c", '"$@"; true', "sh")) as shell:
        shell.wait_until_ready()
        run_directory = shell.run_directory
        waiting = shell.child("reaper.py")
        shell.process.kill()
        await_end(waiting)
    assert_nothing_is_left(run_directory)


def run_to_end(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "backend.launcher.serve", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def test_the_server_does_not_push_the_engine_off_a_core(tmp_path: Path) -> None:
    binary = tmp_path / "tritonserver"
    binary.write_text(f"#!{sys.executable}\nimport os\nprint(os.sched_getscheduler(0))")
    binary.chmod(0o700)
    launch = Launch(tmp_path, tmp_path, TritonInstall(binary), Endpoints("127.0.0.1", 1, 2, 3), 1.0, 1.0)
    command = launch.server()
    result = subprocess.run(command.arguments, env=command.environment, capture_output=True, text=True, check=True)
    assert int(result.stdout) == os.SCHED_BATCH


def test_a_missing_model_is_one_clear_line() -> None:
    result = run_to_end("--model", "/no/such/model")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "'/no/such/model' does not exist" in result.stderr


@pytest.mark.parametrize(("text", "words"), [(None, "is no file"), ("[]", "is not an object of keys")])
def test_keys_that_cannot_be_used_are_told_before_anything_is_loaded(base: Path, text: str | None, words: str) -> None:
    keys = base / "keys.json"
    if text is not None:
        keys.write_text(text)
    result = run_to_end(*SIM, "--api-key-file", str(keys))
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def test_a_folder_that_cannot_be_used_is_told_before_anything_is_loaded(base: Path) -> None:
    (taken := base / "plain file").touch()
    result = run_to_end(*SIM, "--openai-data-dir", str(taken))
    assert result.returncode == 2
    assert result.stderr == f"bros-serve: OpenAI's API: {taken} cannot hold files and batches: File exists\n"


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run_to_end("--executor", "sim", "--grpc-port", "0", "--metrics-port", "0", "--http-port", str(port))
    assert result.returncode == 2
    assert (
        result.stderr
        == f"bros-serve: http port {port} on 127.0.0.1: Address already in use; choose another with --http-port\n"
    )


def test_a_disk_that_takes_no_more_is_one_clear_line(base: Path) -> None:
    limited = ["sh", "-c", 'ulimit -f 0 && exec "$@"', "sh", sys.executable, "-B", "-m", "backend.launcher.serve"]
    environment = {**os.environ, "TMPDIR": str(base)}
    result = subprocess.run([*limited, *SIM], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        f"bros-serve: [Errno 27] File too large; temporary files go to TMPDIR, {str(base)!r}"
    )
    assert not list(base.glob("bros-*/run/*/"))


def test_processes_of_a_launch_write_no_bytecode_which_a_full_disk_would_cut_short(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text("{}")
    launch = Launch(tmp_path, tmp_path, TritonInstall(tmp_path), Endpoints("127.0.0.1", 1, 2, 3), 1.0, 1.0)
    for command in (launch.engine(), launch.server()):
        assert command.environment["PYTHONDONTWRITEBYTECODE"] == "1"


def test_an_engine_that_cannot_start_is_a_failure_with_its_last_words(base: Path) -> None:
    python = base / "python"
    python.write_text("#!/bin/sh\necho no such thing as an engine >&2\nexit 3\n")
    python.chmod(0o755)
    (base / "config.json").write_text("{}")
    model = ("--set", f"vllm.python={python}", "--set", f"vllm.model={base}")
    with serve(base, "--executor", "vllm", *model) as launch:
        _, words = launch.process.communicate(timeout=TIMEOUT_S)
    assert launch.process.returncode == 1
    assert re.search(
        "^bros-serve: engine ended with code 3; it last wrote:\nno such thing as an engine$", words, re.MULTILINE
    )
    assert not list(base.glob("bros-*/run/*/"))


def test_a_pool_that_cannot_be_is_named_without_a_traceback(base: Path) -> None:
    with serve(base, "--set", "sim.block_size=100000") as launch:
        _, words = launch.process.communicate(timeout=TIMEOUT_S)
    assert launch.process.returncode == 1
    assert words.splitlines()[-1].endswith("the KV cache: block_size: 100000 is not in [1, 4096]")
    assert "Traceback" not in words  # it may end before it tells


def test_a_model_that_cannot_be_loaded_is_one_clear_line(base: Path) -> None:
    (base / "model").mkdir()
    (base / "model" / "config.json").write_text("{}")
    with serve(base, "--executor", "torch", "--model", str(base / "model")) as launch:
        _, words = launch.process.communicate(timeout=TIMEOUT_S)
    assert launch.process.returncode == 1
    assert words.splitlines()[-1].startswith("bros-serve: the engine could not start: model '")
