"""The engine process between two sockets: requests in, chunks out, and every way for either to end."""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from backend.config import REPOSITORY_ROOT, ConfigFile, engine_command, parse_config
from backend.core.errors import EngineUnavailableError
from backend.executors.sim import SimSettings
from backend.link.engine_link import EngineLink
from backend.policy.settings import SchedulerSettings
from backend.server.engine_process import AlreadyServedError, engine_socket
from backend.server.socket_server import EngineServer
from backend.wire.protocol import (
    VERSION,
    Chunk,
    Chunks,
    End,
    EngineState,
    Hello,
    Metrics,
    Sampling,
    Stage,
    Submit,
    frame,
    send,
    stub_reader,
)
from tests.backend.serving import WAIT_S, Answer, ask, linked, make_file, make_generation, running

SLOW = SimSettings(coefficients=(5e-3, 0.0, 0.0, 0.0, 0.0))  # 5 ms a step: endless requests stay open
ENDLESS = 8000


@pytest.fixture
def file(tmp_path: Path) -> ConfigFile:
    return make_file(tmp_path)


@pytest.fixture
def link(file: ConfigFile) -> Iterator[EngineLink]:
    with running(file), linked(file) as link:
        yield link


def test_tokens_come_back_one_chunk_a_step_and_end_once(link: EngineLink) -> None:
    answer = ask(link, max_tokens=5)
    end = answer.end()
    assert end.finish_reason == "length"
    assert len(answer.token_ids) == 5
    assert all(chunk.text for chunk in answer.chunks)
    assert end.timings is not None
    assert (end.timings.num_input_tokens, end.timings.num_output_tokens) == (2, 5)
    assert end.timings.queue_s is not None
    assert end.timings.ttft_s is not None
    assert end.timings.tpot_s is not None
    assert 0 <= end.timings.queue_s <= end.timings.ttft_s


def test_without_stream_everything_comes_in_one_chunk(link: EngineLink) -> None:
    answer = ask(link, max_tokens=5, is_streamed=False)
    answer.end()
    assert len(answer.chunks) == 1
    assert len(answer.token_ids) == 5


@pytest.mark.parametrize(
    "prompt", [{"text": "hi"}, {"messages": '[{"role": "user", "content": "hi"}]'}, {"token_ids": (7, 8)}], ids=str
)
def test_each_kind_of_prompt_is_served(link: EngineLink, prompt: dict[str, object]) -> None:
    assert ask(link, **prompt).end().finish_reason == "length"


def test_the_prompt_is_repeated_when_asked(link: EngineLink) -> None:
    for prompt in ({"text": "say"}, {"token_ids": (118, 100, 124)}):
        answer = ask(link, echoes_prompt=True, **prompt)
        answer.end()
        assert answer.text.startswith("say")


def test_a_stop_word_ends_the_answer_before_it_and_frees_the_request(link: EngineLink) -> None:
    answer = ask(link, max_tokens=ENDLESS, stop_words=(" t1", " t2", " t3"))
    assert answer.end().finish_reason == "stop"
    assert " t1" not in answer.text
    assert num_requests(link) == 0


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"token_ids": (32_000,)}, "INVALID_REQUEST", "32000 is no token id; the vocabulary has 32000"),
        ({"text": "x" * 9000}, "TOO_LARGE", "prompt of 9000 tokens exceeds max_seq_len 8192"),
        ({"max_tokens": 9000}, "TOO_LARGE", "max_tokens 9000"),
    ],
    ids=str,
)
def test_a_request_that_cannot_be_served_is_refused_under_the_clients_name(
    link: EngineLink, options: dict[str, object], code: str, words: str
) -> None:
    answer = Answer()
    link.submit("a7", make_generation(**options), answer)  # type: ignore[arg-type]  # mixed options
    end = answer.end()
    assert end.error_code == code
    assert words in end.error_message
    assert "a7" in end.error_message or code == "INVALID_REQUEST"


def test_a_request_without_max_tokens_takes_the_default_or_what_the_context_leaves(link: EngineLink) -> None:
    free = ask(link, sampling=Sampling())
    tight = ask(link, sampling=Sampling(), text="x" * 8190)
    free.end()
    tight.end()
    assert (len(free.token_ids), len(tight.token_ids)) == (128, 2)


def num_requests(link: EngineLink) -> int:
    """Return how many requests the engine holds, as its snapshot says."""
    answer = Answer()
    link.inspect(answer)
    answer.end()
    counts = json.loads(answer.text)["requests_by_class"].values()
    return sum(count["num_waiting"] + count["num_running"] for count in counts)


def test_a_cancelled_request_ends_as_cancelled_and_the_others_go_on(tmp_path: Path) -> None:
    file = make_file(tmp_path, SLOW)
    with running(file), linked(file) as link:
        cancelled, other = Answer(), ask(link, max_tokens=200)
        ticket = link.submit("", make_generation(max_tokens=ENDLESS), cancelled)
        cancelled.first()
        link.cancel(ticket)
        assert cancelled.end().finish_reason == "cancelled"
        assert other.end().finish_reason == "length"
        link.cancel(ticket)  # has ended: ignored


def test_a_request_that_timed_out_ends_with_an_error(tmp_path: Path) -> None:
    file = make_file(tmp_path, SLOW)
    with running(file), linked(file) as link:
        answer = Answer()
        ticket = link.submit("", make_generation(max_tokens=ENDLESS, timeout_s=0.25), answer)
        answer.first()
        link.cancel(ticket, timed_out=True)
        end = answer.end()
    assert (end.error_code, end.error_status) == ("CANCELLED", "CANCELLED")
    assert "timeout of 250 ms ran out" in end.error_message


def test_a_full_queue_is_refused_with_retry_advice(tmp_path: Path) -> None:
    long_steps = SimSettings(coefficients=(0.2, 0.0, 0.0, 0.0, 0.0), max_seqs_per_step=1)
    file = make_file(tmp_path, long_steps, SchedulerSettings(max_waiting_be=1))
    ends: queue.SimpleQueue[End] = queue.SimpleQueue()

    def note_end(chunk: Chunk) -> None:
        if chunk.end is not None:
            ends.put(chunk.end)

    with running(file), linked(file) as link:
        for _ in range(20):  # far more than there are steps meanwhile, also where this thread has to wait for a core
            link.submit("", make_generation(max_tokens=ENDLESS, priority_class="be"), note_end)
        end = ends.get(timeout=WAIT_S)
    assert (end.error_code, end.error_status) == ("OVERLOADED", "UNAVAILABLE")
    assert "retry_after_ms=" in end.error_message


def test_when_a_stub_goes_its_requests_go_and_no_others(tmp_path: Path) -> None:
    file = make_file(tmp_path, SLOW)
    with running(file), linked(file) as other:
        survivor = Answer()
        ticket = other.submit("", make_generation(max_tokens=ENDLESS), survivor)
        with linked(file, "bros_be") as leaving:
            ask(leaving, max_tokens=ENDLESS).first()
            assert num_requests(other) == 2
        wait_until_holding(other, 1)
        assert not any(chunk.end for chunk in survivor.chunks)
        other.cancel(ticket)
        assert survivor.end().finish_reason == "cancelled"


def wait_until_holding(link: EngineLink, count: int) -> None:
    """Ask until the engine holds `count` requests; each question is answered between two steps."""
    give_up_s = time.monotonic() + WAIT_S
    while num_requests(link) != count:
        assert time.monotonic() < give_up_s, f"the engine does not come to hold {count} requests"


def test_a_stub_that_does_not_read_is_disconnected_and_the_others_are_served(tmp_path: Path) -> None:
    file = make_file(tmp_path, max_unsent_bytes=1000)
    with running(file), linked(file) as link, connect(file) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for handle in range(20):
            send(deaf, Submit(handle, "", 0.0, make_generation(max_tokens=ENDLESS)))
        hung_up = select.poll()
        hung_up.register(deaf, select.POLLRDHUP)
        assert hung_up.poll(WAIT_S * 1000), "the stub that does not read is still connected"
        wait_until_holding(link, 0)
        assert ask(link).end().finish_reason == "length"


def connect(file: ConfigFile, hello: Hello | None = None) -> socket.socket:
    """Connect as a stub would, by hand."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(file.socket_path))
    send(connection, hello or Hello(VERSION, "by-hand"))
    return connection


@pytest.mark.parametrize(
    "opening",
    [frame(Hello(VERSION + 1, "newer")), frame(Submit(1, "", 0.0, make_generation())), b"GET / HTTP/1.1\r\n\r\n", b""],
    ids=["other version", "no hello", "another protocol", "nothing"],
)
def test_a_stranger_is_shown_out_and_the_others_are_served(file: ConfigFile, opening: bytes) -> None:
    with running(file), linked(file) as link:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
            stranger.connect(str(file.socket_path))
            stranger.sendall(opening)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(1) == b""
        assert ask(link).end().finish_reason == "length"


def test_a_connection_for_which_there_is_no_room_keeps_no_later_one_out(
    file: ConfigFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([OSError("too many open files"), RuntimeError("can't start new thread")])
    accept_next = EngineServer._accept_next

    def accept(server: EngineServer, index: int) -> bool:
        if (error := next(failures, None)) is not None:
            raise error
        return accept_next(server, index)

    monkeypatch.setattr("backend.server.socket_server._ACCEPT_PAUSE_S", 0.001)
    monkeypatch.setattr(EngineServer, "_accept_next", accept)
    with running(file), linked(file) as link:
        assert ask(link).end().finish_reason == "length"


def test_one_socket_has_one_engine(file: ConfigFile) -> None:
    with running(file), pytest.raises(AlreadyServedError), engine_socket(file.socket_path):
        pass


def test_measurements_go_to_the_stub_that_wants_them(file: ConfigFile) -> None:
    measured: dict[str, float] = {}
    has_all = threading.Event()

    def on_metrics(metrics: Metrics) -> None:
        for sample in metrics.samples:
            measured[sample.name] = measured.get(sample.name, 0.0) + sample.value
        if {"bros_requests_total", "bros_kv_slots", "bros_steps_total"} <= set(measured):
            has_all.set()

    with running(file), linked(file, on_metrics=on_metrics) as link:
        ask(link).end()
        assert has_all.wait(WAIT_S)
    assert measured["bros_requests_total"] == 1


def test_draining_serves_what_is_open_and_refuses_what_is_new(tmp_path: Path) -> None:
    file = make_file(tmp_path, SLOW)
    with running(file) as server, linked(file) as link, connect(file) as stub, stub_reader(stub) as reader:
        holding = Answer()  # keeps the drain going until it has been looked at
        ticket = link.submit("", make_generation(max_tokens=ENDLESS), holding)
        answer = ask(link, max_tokens=20)
        holding.first()
        answer.first()  # both are in the engine before it drains
        server.request_stop()
        while not (isinstance(message := reader.read(), EngineState) and message.stage is Stage.DRAINING):
            continue
        send(stub, Submit(1, "", 0.0, make_generation()))
        refusal = reader.read()
        assert isinstance(refusal, Chunks)
        end = refusal.chunks[0].end
        assert end is not None
        assert (end.error_code, end.error_message) == ("ENGINE_DOWN", "the engine is draining; retry_after_ms=1000")
        assert answer.end().finish_reason == "length"
        link.cancel(ticket)
        assert holding.end().finish_reason == "cancelled"


def test_what_is_still_open_after_the_drain_fails(tmp_path: Path) -> None:
    file = make_file(tmp_path, SLOW, drain_timeout_s=0.05)
    with running(file) as server, linked(file) as link:
        answer = ask(link, max_tokens=ENDLESS)
        answer.first()
        server.request_stop()
        assert answer.end().error_code in ("EXECUTOR_FAILED", "ENGINE_DOWN")


@contextmanager
def ending(file: ConfigFile, code: int) -> Iterator[EngineServer]:
    """Run the server of an engine that a stub started, and that ends by itself."""
    with engine_socket(file.socket_path) as listener, ThreadPoolExecutor(1) as pool:
        server = EngineServer(file, listener, exits_when_unused=True)
        ended = pool.submit(server.run)
        yield server
        assert ended.result(WAIT_S) == code


@pytest.fixture
def kept(tmp_path: Path) -> ConfigFile:
    """A configuration of an engine that does not end when no stub is connected."""
    return make_file(tmp_path, unused_exit_s=3600.0)


def test_an_engine_that_breaks_fails_its_requests_and_says_why(
    kept: ConfigFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the fan is stuck")

    with ending(kept, 1), linked(kept) as link, connect(kept) as watcher, stub_reader(watcher) as reader:
        monkeypatch.setattr("backend.engine.scheduler.Scheduler.commit", broken)
        assert ask(link).end().error_code == "EXECUTOR_FAILED"
        states = [message for message in reader if isinstance(message, EngineState)]
    assert (states[-1].stage, states[-1].detail) == (Stage.FAILED, "the engine stopped: the fan is stuck")


def test_a_stub_that_says_hello_after_the_end_is_told_so_and_hung_up_on(file: ConfigFile) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as late:
        with running(file), linked(file):
            late.connect(str(file.socket_path))
        late.settimeout(WAIT_S)
        send(late, Hello(VERSION, "bros"))
        with stub_reader(late) as reader:
            messages = list(reader)
        assert [message.stage for message in messages if isinstance(message, EngineState)] == [Stage.DRAINING]


def without_model(file: ConfigFile) -> ConfigFile:
    """Return `file` with a model that is not there, and write it."""
    config = json.loads(file.path.read_text()) | {"executor": "torch", "torch": {"model_path": "/no/such/model"}}
    file.path.write_text(json.dumps(config))
    return ConfigFile(file.path, parse_config(config))


def told_failure(file: ConfigFile, server: EngineServer) -> str:
    """Connect, return why the engine failed, end it."""
    with connect(file) as watcher, stub_reader(watcher) as reader:
        failure = next(state for state in reader if isinstance(state, EngineState) and state.stage is Stage.FAILED)
        server.request_stop()
    return failure.detail


def test_a_model_that_cannot_be_loaded_is_told_to_the_stubs(kept: ConfigFile) -> None:
    missing = without_model(kept)
    with ending(missing, 2) as server:
        assert "/no/such/model" in told_failure(missing, server)


def test_whatever_goes_wrong_in_loading_is_told_to_the_stubs(kept: ConfigFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("backend.server.socket_server.load_runtime", broken)
    with ending(kept, 1) as server:
        assert told_failure(kept, server) == "RuntimeError('no such kernel')"
    assert not kept.socket_path.exists()


def test_a_stub_learns_why_the_engine_that_it_started_failed(tmp_path: Path) -> None:
    link = EngineLink(without_model(make_file(tmp_path, start_engine=True)), "bros")
    too_late = threading.Timer(WAIT_S, link.close)
    too_late.start()
    with pytest.raises(EngineUnavailableError, match=r"the engine failed: .*/no/such/model"):
        link.wait_until_ready(lambda _: None)
    too_late.cancel()
    link.close()


def start(file: ConfigFile, program: str = "") -> subprocess.Popen[bytes]:
    """Start an engine as a process, by a program of the test's own if given, and wait until its socket is there."""
    read_fd, write_fd = os.pipe()
    arguments, environment = engine_command(file, write_fd)
    if program:
        arguments[1:3] = ["-c", program]
    process = subprocess.Popen(arguments, env=environment, pass_fds=(write_fd,), stderr=subprocess.DEVNULL)
    os.close(write_fd)
    os.read(read_fd, 1)
    os.close(read_fd)
    return process


def test_a_process_that_nobody_uses_ends(tmp_path: Path) -> None:
    file = make_file(tmp_path, unused_exit_s=2.0)
    with start(file) as process:
        with linked(file) as link:
            ask(link).end()
        assert process.wait(WAIT_S) == 0
    assert not file.socket_path.exists()


def test_a_second_process_for_a_socket_ends_quietly_before_it_loads_anything(file: ConfigFile) -> None:
    program = (
        "import sys; from backend.server.engine_process import main; code = main(); print(*sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "--config", str(file.path)]
    with running(file):
        second = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY_ROOT)
    assert second.returncode == 0
    assert {"torch", "numba", "tokenizers", "backend.engine.engine"}.isdisjoint(second.stdout.split())
    assert "another engine serves" in second.stderr


def test_a_thread_that_fails_takes_the_process_with_it(tmp_path: Path) -> None:
    """Without it, requests waited for good: whoever watches the engine still had its answers."""
    program = (
        "import sys, threading; from backend.server import engine_process, socket_server\n"
        "def run(self):\n"
        "    threading.Thread(target=lambda: 1 / 0, name='lane').start()\n"
        "    threading.Event().wait(600)\n"
        "socket_server.EngineServer.run = run\n"
        "sys.exit(engine_process.main())"
    )
    command = [sys.executable, "-c", program, "--config", str(make_file(tmp_path).path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY_ROOT, timeout=WAIT_S)
    assert ended.returncode == 1
    assert "the thread 'lane' failed, and the engine ends: ZeroDivisionError" in ended.stderr


def test_a_process_whose_engine_breaks_tells_all_why_before_it_ends(tmp_path: Path) -> None:
    """Its thread failed too, which ended the process: stubs were last told READY, some requests nothing.

    The main thread begins to tell here when that thread has ended.
    """
    program = (
        "import sys, threading\n"
        "from backend.engine.scheduler import Scheduler\n"
        "from backend.server import engine_process, socket_server\n"
        "commit, drain = Scheduler.commit, socket_server.EngineServer._drain\n"
        "def break_down(scheduler, plan):\n"
        "    if len(plan.num_new_tokens) == 4: raise RuntimeError('the fan is stuck')\n"
        "    return commit(scheduler, plan)\n"
        "def drain_late(*arguments):\n"
        "    [thread.join(20) for thread in threading.enumerate() if thread.name == 'engine']\n"
        "    drain(*arguments)\n"
        "Scheduler.commit, socket_server.EngineServer._drain = break_down, drain_late\n"
        "sys.exit(engine_process.main())"
    )
    file = make_file(tmp_path, SLOW)
    with start(file, program) as process:
        with linked(file) as link, connect(file) as watcher, stub_reader(watcher) as reader:
            ends = [answer.end() for answer in [ask(link, max_tokens=ENDLESS) for _ in range(4)]]
            states = [message for message in reader if isinstance(message, EngineState)]
        assert process.wait(WAIT_S) == 1
    why = "the engine stopped: the fan is stuck"
    assert {(end.error_code, end.error_message) for end in ends} == {("EXECUTOR_FAILED", why)}
    assert (states[-1].stage, states[-1].detail) == (Stage.FAILED, why)


def test_sigterm_drains_and_ends_a_process(tmp_path: Path) -> None:
    file = make_file(tmp_path, SLOW)
    with start(file) as process, linked(file) as link:
        answer = ask(link, max_tokens=60)
        answer.first()
        process.send_signal(signal.SIGTERM)
        assert answer.end().finish_reason == "length"
        assert process.wait(WAIT_S) == 0


def test_a_wrong_configuration_ends_a_process_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text('{"executor": "abacus"}')
    command = [sys.executable, "-m", "backend.server.engine_process", "--config", str(tmp_path / "engine.json")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY_ROOT)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "abacus" in ended.stderr
