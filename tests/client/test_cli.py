"""The `bros` command: data on stdout, words on stderr, exit codes, help."""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from client import Client, FakeServer, FakeTransport, wire
from client.cli import main, make_parser
from client.commands.status import ask_engine
from client.errors import InvalidRequestError
from client.generation import Call, Outputs
from client.transports.fake import FAKE_SNAPSHOT
from tests.triton.servers import Server


def test_generate_streams_to_stdout_and_tells_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "one two", "--url", "fake://", "--max-tokens", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "one two one \n"
    assert "[length, 3 tokens" in captured.err


def test_generate_prints_a_json_object_per_chunk(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "one two", "--url", "fake://", "--max-tokens", "3", "--json"]) == 0
    chunks = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [chunk["text"] for chunk in chunks] == ["one ", "two ", "one "]
    assert chunks[-1]["finish_reason"] == "length"
    assert chunks[-1]["metrics"]["num_output_tokens"] == 3


def test_generate_reads_the_prompt_from_stdin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    assert main(["generate", "-", "--url", "fake://", "--max-tokens", "3"]) == 0
    assert capsys.readouterr().out == "from a pipe \n"


def test_a_refusal_is_one_line_and_exit_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "", "--url", "fake://"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "bros: INVALID_REQUEST: the prompt is empty\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["generate"],
        ["generate", "x", "--class", "urgent"],
        ["generate", "x", "--max-tokens", "0"],
        ["generate", "x", "--ttft-slo-s", "-1"],
        ["generate", "x", "--ttft-slo-s", "nan"],
        ["batch", "in.jsonl"],
        ["batch", "in.jsonl", "out.jsonl", "--finish-by-s", "3000000"],
    ],
)
def test_misuse_is_exit_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["batch", "no-such-file.jsonl", "-o", "out.jsonl"],
        ["batch", __file__, "-o", "."],
        ["top", "--svg", "x.svg"],
        ["generate", "x", "--url", "ftp://host"],
    ],
)
def test_misuse_that_the_parser_cannot_see_is_exit_2_too(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("bros: ")
    assert list(tmp_path.iterdir()) == []


def test_help_says_units_and_defaults() -> None:
    (commands,) = [action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    options = [action for parser in commands.choices.values() for action in parser._actions if action.option_strings]
    times = [option for option in options if option.dest.endswith("_s")]
    assert len(times) > 10
    assert all("seconds" in str(option.help) for option in times)
    with_value = [option for option in options if option.nargs is None and not option.required]
    assert all("(default: " in str(option.help) or option.dest in ("stop", "svg", "system") for option in with_value)


@pytest.mark.parametrize("command", ["generate", "chat", "batch", "status", "top"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert f"usage: bros {command}" in capsys.readouterr().out


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "grpc://127.0.0.1:1"])
def test_status_of_no_server_is_exit_1(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", url]) == 1
    captured = capsys.readouterr()
    assert "server  down" in captured.out
    assert captured.err == f"bros: no server at {url}\n"


class ClosedTransport(FakeTransport):
    """A server that does not let its engine be asked."""

    def stream(self, call: Call) -> Generator[Outputs, None, None]:
        if wire.INSPECT in call.parameters:
            raise InvalidRequestError("INVALID_REQUEST: inspect is off")
        yield from super().stream(call)


def test_status_asks_the_engine_for_its_state_or_else_for_a_token() -> None:
    assert ask_engine(Client(FakeTransport())) == (FAKE_SNAPSHOT, None)
    closed = ClosedTransport()
    assert ask_engine(Client(closed)) == (None, None)
    assert [call.inputs["max_tokens"] for call in closed.server.calls] == [1]


def test_status_tells_of_a_dead_engine() -> None:
    snapshot, problem = ask_engine(Client(FakeTransport(FakeServer(is_down=True))))
    assert snapshot is None
    assert problem is not None
    assert "down" in problem


@pytest.mark.triton
@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_one_url_is_enough_for_the_status_of_a_real_server(
    kind: str, sim: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--url", sim.grpc_url if kind == "grpc" else sim.http_url, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["ready_models"] == {"bros": True, "bros_rt": True, "bros_be": True}
    assert status["engine"]["policy"] == "bros"


def test_a_reader_that_has_seen_enough_is_no_error_message() -> None:
    command = [sys.executable, "-m", "client.cli", "generate", "word", "--url", "fake://", "--max-tokens", "5000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(5)
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_only_what_a_command_needs_is_imported() -> None:
    code = "import sys, client.cli; print(sorted({'grpc', 'tritonclient', 'torch', 'backend'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
