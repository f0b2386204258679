"""Batch files: the format in and out, nothing lost or repeated through failures and kills, constant memory."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from client import AsyncClient, AsyncFakeTransport, FakeServer, Retry
from client.batch.lines import CHAT, COMPLETIONS, Line, LineError, Reply, checksum, parse_line, result_line
from client.batch.results import BatchFileError, Results, find_repeated, open_results, read_lines
from client.batch.run import BatchSettings, pending_lines, run_batch, run_lines
from client.cli import main
from client.errors import ExecutionError, UnavailableError
from client.generation import Call, Outputs
from tests.triton.servers import PATIENCE_S, START_TIMEOUT_S, Server, serving, wait_until

NO_WAIT = BatchSettings(concurrency=8, first_wait_s=0.0)


def chat_line(custom_id: str, **body: object) -> str:
    messages = [{"role": "user", "content": f"say {custom_id}"}]
    request = {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {"messages": messages, "max_tokens": 3} | body,
    }
    return json.dumps(request)


def write_batch(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def read_results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_on(
    transport: AsyncFakeTransport | LossyTransport, source: Path, folder: Path, settings: BatchSettings = NO_WAIT
) -> Results:
    async def run() -> None:
        client = AsyncClient(transport, retry=Retry(max_attempts=1_000, max_wait_s=0.001))
        await run_batch(client, source, results, settings, lambda _: None)

    with open_results(folder / "out.jsonl", folder / "errors.jsonl") as results:
        asyncio.run(run())
    return results


class LossyTransport:
    """Loses every third call to an engine failure, and is gone for good after `num_calls_left`."""

    def __init__(self, num_calls_left: int = 1_000_000) -> None:
        self.num_calls = 0
        self.num_calls_left = num_calls_left
        self._fake = AsyncFakeTransport()

    async def stream(self, call: Call) -> AsyncGenerator[Outputs, None]:
        self.num_calls += 1
        self.num_calls_left -= 1
        if self.num_calls_left < 0:
            raise UnavailableError("no server")
        if self.num_calls % 3 == 0:
            raise ExecutionError("EXECUTOR_FAILED: a step failed")
        async for outputs in self._fake.stream(call):
            yield outputs

    async def close(self) -> None:
        pass


def test_chat_and_completions_are_answered_in_openais_format(tmp_path: Path) -> None:
    completion = {
        "custom_id": "b",
        "method": "POST",
        "url": COMPLETIONS,
        "body": {"prompt": "one two", "max_tokens": 2},
    }
    source = write_batch(tmp_path / "in.jsonl", [chat_line("a", model="m"), json.dumps(completion)])
    run_on(AsyncFakeTransport(), source, tmp_path)
    chat, text = sorted(read_results(tmp_path / "out.jsonl"), key=lambda result: result["custom_id"])
    assert (chat["id"], chat["error"], chat["response"]["status_code"]) == ("batch_req_0", None, 200)
    body = chat["response"]["body"]
    assert (body["object"], body["model"]) == ("chat.completion", "m")
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "say a say ", "refusal": None}
    assert body["choices"][0]["finish_reason"] == "length"
    counts = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert body["service_tier"] == "flex"
    assert body["usage"] == counts | {"prompt_tokens_details": {"cached_tokens": 0}}
    assert text["response"]["body"]["object"] == "text_completion"
    assert text["response"]["body"]["choices"][0]["text"] == "one two "


def test_everything_is_sent_as_best_effort_with_a_deadline(tmp_path: Path) -> None:
    server = FakeServer()
    source = write_batch(tmp_path / "in.jsonl", [chat_line("a")])
    run_on(AsyncFakeTransport(server), source, tmp_path, BatchSettings(finish_by_s=3600.0))
    (call,) = server.calls
    assert call.inputs["priority_class"] == "be"
    assert 3590_000.0 < float(str(call.inputs["deadline_ms"])) <= 3600_000.0


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "{}",
        '{"custom_id": 7, "url": "/v1/completions", "body": {"prompt": "x"}}',
        '{"custom_id": "", "url": "/v1/completions", "body": {"prompt": "x"}}',
        '{"custom_id": "x", "url": "/v1/completions", "body": "x"}',
        json.dumps({"custom_id": "x", "url": "/v1/embeddings", "body": {"input": "x"}}),
        json.dumps({"custom_id": "x", "url": COMPLETIONS, "body": {"prompt": "x"}, "method": "GET"}),
    ],
)
def test_a_line_that_cannot_be_read_is_refused(line: str) -> None:
    with pytest.raises(LineError, match="line 7"):
        parse_line(7, line.encode())


def test_a_field_beside_the_body_has_no_effect() -> None:
    written = json.loads(chat_line("a")) | {"note": "mine"}
    assert parse_line(0, json.dumps(written).encode()).custom_id == "a"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"model": "bros_rt"}, "model"),
        ({"model": 5}, "model"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"stream": True}, "stream"),
        ({"temperature": {}}, "temperature"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_what_cannot_be_honoured_fails_its_own_line_in_openais_words(
    tmp_path: Path, body: dict[str, object], param: str
) -> None:
    source = write_batch(tmp_path / "in.jsonl", [chat_line("a", **body), chat_line("b")])
    results = run_on(AsyncFakeTransport(), source, tmp_path)
    assert [result["custom_id"] for result in read_results(tmp_path / "out.jsonl")] == ["b"]
    (failed,) = read_results(tmp_path / "errors.jsonl")
    assert (failed["error"], failed["response"]["body"]["error"]["param"]) == (None, param)
    assert 400 <= failed["response"]["status_code"] < 500
    assert (results.num_done, results.num_failed) == (2, 1)


def test_a_line_asks_for_whatever_a_request_may(tmp_path: Path) -> None:
    server = FakeServer()
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "array"}}}
    body = {"n": 2, "seed": 4, "logprobs": True, "response_format": schema, "metadata": {"a": "b"}, "stop": "END"}
    run_on(AsyncFakeTransport(server), write_batch(tmp_path / "in.jsonl", [chat_line("a", **body)]), tmp_path)
    (result,) = read_results(tmp_path / "out.jsonl")
    choices = result["response"]["body"]["choices"]
    assert [(choice["index"], len(choice["logprobs"]["content"])) for choice in choices] == [(0, 3), (1, 3)]
    assert [call.inputs["seed"] for call in server.calls] == [4, 5]
    assert json.loads(str(server.calls[0].inputs["json_schema"])) == {"type": "array"}
    assert server.calls[0].inputs["stop_words"] == ["END"]


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
def test_a_line_that_names_no_length_gets_that_of_the_command(tmp_path: Path, url: str) -> None:
    server = FakeServer()
    body = {"messages": [{"role": "user", "content": "a"}]} if url == CHAT else {"prompt": "a"}
    line = json.dumps({"custom_id": "a", "url": url, "body": body})
    settings = BatchSettings(max_tokens=7, first_wait_s=0.0)
    run_on(AsyncFakeTransport(server), write_batch(tmp_path / "in.jsonl", [line]), tmp_path, settings)
    assert server.calls[0].inputs["max_tokens"] == 7


@pytest.mark.parametrize(
    ("broken", "custom_id"),
    [(b'"method": 7', "me"), (b'"url": "\xff"', "me"), (b'"x": %s' % (b"[" * 5_000 + b"]" * 5_000), None)],
    ids=["type", "UTF-8", "nesting"],
)
def test_a_line_that_cannot_be_read_keeps_its_custom_id_where_that_can(broken: bytes, custom_id: str | None) -> None:
    with pytest.raises(LineError, match="line 7") as caught:
        parse_line(7, b'{"custom_id": "me", %b}' % broken)
    assert caught.value.custom_id == custom_id


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n \t\n"])
def test_marks_ends_and_blanks_of_other_editors_cost_no_line(tmp_path: Path, start: bytes, end: bytes) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(start + chat_line("a").encode() + end + start + chat_line("b").encode())
    results = run_on(AsyncFakeTransport(), source, tmp_path)
    assert (results.num_done, results.num_failed) == (2, 0)


def test_a_custom_id_that_is_repeated_is_refused_at_each_further_line(tmp_path: Path) -> None:
    source = write_batch(tmp_path / "in.jsonl", [chat_line(name) for name in ("a", "b", "a", "a")])
    run_on(AsyncFakeTransport(), source, tmp_path)
    assert sorted(result["id"] for result in read_results(tmp_path / "out.jsonl")) == ["batch_req_0", "batch_req_1"]
    refused = [result["response"]["body"]["error"]["message"] for result in read_results(tmp_path / "errors.jsonl")]
    assert refused == [f"line {index}: custom_id 'a' is that of line 0" for index in (2, 3)]


def test_repeats_are_told_from_custom_ids_of_one_checksum(tmp_path: Path) -> None:
    names = ["plumless", "buckeroo", "x"]  # the first two have one CRC-32
    assert checksum(b"plumless") == checksum(b"buckeroo")
    source = write_batch(tmp_path / "in.jsonl", [chat_line(name) for name in [*names, "x"]])
    assert find_repeated(source) == {3: 2}


def test_no_character_of_an_answer_ends_its_line() -> None:
    line = Line(0, 1, "a\x85b\u2028c\u2029d", CHAT, b"{}")
    text = result_line(line, Reply()).decode()
    assert len(text.splitlines()) == 1
    assert json.loads(text)["custom_id"] == line.custom_id


def test_a_changed_line_of_the_same_custom_id_is_not_taken_for_done(tmp_path: Path) -> None:
    run_on(AsyncFakeTransport(), write_batch(tmp_path / "in.jsonl", [chat_line("a", n=0)]), tmp_path)
    with pytest.raises(BatchFileError, match=r"errors\.jsonl holds another request's result"):
        run_on(AsyncFakeTransport(), write_batch(tmp_path / "in.jsonl", [chat_line("a")]), tmp_path)


def test_results_without_a_checksum_of_their_line_are_resumed_by_custom_id(tmp_path: Path) -> None:
    source = write_batch(tmp_path / "in.jsonl", [chat_line("a"), chat_line("b")])
    old = {"id": "batch_req_0", "custom_id": "a", "response": None, "error": None}
    write_batch(tmp_path / "out.jsonl", [json.dumps(old)])
    run_on(AsyncFakeTransport(), source, tmp_path)
    assert [result["custom_id"] for result in read_results(tmp_path / "out.jsonl")] == ["a", "b"]


def test_two_batches_in_one_folder_share_nothing(tmp_path: Path) -> None:
    monday = write_batch(tmp_path / "monday.jsonl", [chat_line("a"), chat_line("b", n=0)])
    tuesday = write_batch(tmp_path / "tuesday.jsonl", [chat_line("a"), chat_line("b")])
    codes = [main(["batch", str(day), "-o", f"{day}.out.jsonl", "--url", "fake://"]) for day in (monday, tuesday)]
    assert codes == [1, 0]
    assert [len(read_results(Path(f"{day}.out.jsonl"))) for day in (monday, tuesday)] == [1, 2]
    assert len(read_results(tmp_path / "monday.jsonl.out.errors.jsonl")) == 1


@pytest.mark.parametrize("files", [["-o", "in.jsonl"], ["-o", "out.jsonl", "--errors", "./in.jsonl"]])
def test_the_input_is_never_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_batch(Path("in.jsonl"), [])
    assert main(["batch", "in.jsonl", *files, "--url", "fake://"]) == 2
    assert Path("in.jsonl").read_text() == ""


def test_answers_and_errors_need_a_file_each(tmp_path: Path) -> None:
    both = tmp_path / "out.jsonl"
    with pytest.raises(BatchFileError, match="a file each"), open_results(both, tmp_path / "." / "out.jsonl"):
        pass


def test_a_full_disk_ends_the_batch_in_words_and_tears_no_line(tmp_path: Path) -> None:
    names = [f"r{i}" for i in range(50)]
    source = write_batch(tmp_path / "in.jsonl", [chat_line(name) for name in names])
    output = tmp_path / "out.jsonl"
    command = f"ulimit -f 4; exec {shlex.join(batch_command(source, tmp_path, 'fake://'))}"  # KiB
    full = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert full.returncode == 1
    assert "File too large; run again" in full.stderr.replace("\n", " ")
    assert "Traceback" not in full.stderr
    assert 0 < len(read_results(output)) < 50
    assert output.read_bytes().endswith(b"\n")
    subprocess.run(batch_command(source, tmp_path, "fake://"), capture_output=True, check=True)
    assert_each_answered_once(output, names)


def test_failures_go_to_the_errors_file_and_the_rest_goes_on(tmp_path: Path) -> None:
    lines = [chat_line("good"), "not json", chat_line("bad", n=-3), chat_line("long", max_tokens=10**6)]
    results = run_on(AsyncFakeTransport(), write_batch(tmp_path / "in.jsonl", [*lines, ""]), tmp_path)
    assert [result["custom_id"] for result in read_results(tmp_path / "out.jsonl")] == ["good"]
    errors = {result["custom_id"]: result for result in read_results(tmp_path / "errors.jsonl")}
    assert set(errors) == {None, "bad", "long"}
    assert errors["long"]["response"]["status_code"] == 400
    assert "TOO_LARGE" in errors["long"]["response"]["body"]["error"]["message"]
    assert results.num_done == 4


def test_lost_requests_are_sent_again(tmp_path: Path) -> None:
    source = write_batch(tmp_path / "in.jsonl", [chat_line(f"r{i}") for i in range(50)])
    transport = LossyTransport()
    results = run_on(transport, source, tmp_path)
    assert (results.num_done, results.num_failed) == (50, 0)
    assert transport.num_calls > 50


def test_an_overloaded_server_slows_the_batch_and_loses_nothing(tmp_path: Path) -> None:
    server = FakeServer(token_s=0.0001, max_concurrent=2)
    source = write_batch(tmp_path / "in.jsonl", [chat_line(f"r{i}") for i in range(40)])
    results = run_on(AsyncFakeTransport(server), source, tmp_path)
    assert (results.num_done, results.num_failed) == (40, 0)
    assert len(server.calls) > 40


def test_a_server_that_is_gone_stops_the_batch_and_another_run_ends_it(tmp_path: Path) -> None:
    names = [f"r{i}" for i in range(30)]
    source = write_batch(tmp_path / "in.jsonl", [chat_line(name) for name in names])
    with pytest.raises(UnavailableError):
        run_on(LossyTransport(num_calls_left=20), source, tmp_path)
    assert 0 < len(read_results(tmp_path / "out.jsonl")) < 30
    run_on(AsyncFakeTransport(), source, tmp_path)
    assert sorted(result["custom_id"] for result in read_results(tmp_path / "out.jsonl")) == sorted(names)


@pytest.mark.parametrize("tail", [b"", b"\0\0\0"], ids=["process", "machine"])
def test_a_torn_last_line_is_cut_and_its_request_sent_again(tmp_path: Path, tail: bytes) -> None:
    source = write_batch(tmp_path / "in.jsonl", [chat_line("a"), chat_line("b")])
    run_on(AsyncFakeTransport(), source, tmp_path)
    output = tmp_path / "out.jsonl"
    output.write_bytes(output.read_bytes()[:-9] + tail)
    run_on(AsyncFakeTransport(), source, tmp_path)
    assert sorted(result["custom_id"] for result in read_results(output)) == ["a", "b"]


def test_zeros_behind_the_last_line_are_cut(tmp_path: Path) -> None:
    source = write_batch(tmp_path / "in.jsonl", [chat_line("a"), chat_line("b")])
    run_on(AsyncFakeTransport(), write_batch(tmp_path / "first.jsonl", [chat_line("a")]), tmp_path)
    with (tmp_path / "out.jsonl").open("ab") as output:
        output.write(bytes(512))
    run_on(AsyncFakeTransport(), source, tmp_path)
    assert [result["custom_id"] for result in read_results(tmp_path / "out.jsonl")] == ["a", "b"]


def test_an_output_of_another_input_is_refused(tmp_path: Path) -> None:
    run_on(AsyncFakeTransport(), write_batch(tmp_path / "in.jsonl", [chat_line("a")]), tmp_path)
    with pytest.raises(BatchFileError, match="wrong input"):
        run_on(AsyncFakeTransport(), write_batch(tmp_path / "other.jsonl", [chat_line("z")]), tmp_path)


@pytest.mark.parametrize("precious", ['{"precious": true}\n', '{"precious": true}', "my notes"])
def test_an_output_that_is_not_ours_is_left_alone(tmp_path: Path, precious: str) -> None:
    (tmp_path / "out.jsonl").write_text(precious)
    with pytest.raises(BatchFileError, match="not written by"):
        run_on(AsyncFakeTransport(), write_batch(tmp_path / "in.jsonl", [chat_line("a")]), tmp_path)
    assert (tmp_path / "out.jsonl").read_text() == precious


def test_lines_with_a_result_are_skipped_in_short_turns(tmp_path: Path) -> None:
    """Reading 200 MB of them in one turn of the event loop held up all that the process serves."""
    num_lines = 2_000
    source = write_batch(tmp_path / "in.jsonl", [chat_line(f"r{index}", pad="x" * 400) for index in range(num_lines)])
    texts = [text for _, text in read_lines(source)]
    with open_results(tmp_path / "out.jsonl", tmp_path / "errors.jsonl") as results:
        for index, text in enumerate(texts[:-1]):
            line = parse_line(index, text)
            results.append(index, line.crc32, result_line(line, Reply()), is_failure=False)
        found = [*pending_lines(source, results, {}, lambda _: None)]
    assert [line.custom_id for line in found if line is not None] == [f"r{num_lines - 1}"]
    assert found.count(None) >= sum(map(len, texts)) // 2**17


def test_a_batch_that_is_cancelled_while_it_waits_leaves_as_many_places_as_there_were(tmp_path: Path) -> None:
    async def main() -> None:
        places = asyncio.Semaphore(2)

        async def send(_: Line) -> Reply:
            await asyncio.sleep(60.0)
            raise AssertionError("nothing cancelled this")

        lines = (Line(index, 0, f"id-{index}", CHAT, b"{}") for index in range(5))
        with open_results(tmp_path / "out.jsonl", tmp_path / "errors.jsonl") as results:
            batch = asyncio.create_task(run_lines(lines, results, send, places, lambda _: None))
            while not places.locked():
                await asyncio.sleep(0)
            batch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await batch
        await places.acquire()
        await places.acquire()
        assert places.locked()

    asyncio.run(main())


def test_two_processes_cannot_write_one_output(tmp_path: Path) -> None:
    with (
        open_results(tmp_path / "out.jsonl", tmp_path / "errors.jsonl"),
        pytest.raises(BatchFileError, match="another process"),
        open_results(tmp_path / "out.jsonl", tmp_path / "errors.jsonl"),
    ):
        pass


def test_memory_does_not_grow_with_the_batch(tmp_path: Path) -> None:
    def peak_bytes(num_lines: int) -> int:
        folder = tmp_path / str(num_lines)
        folder.mkdir()
        source = write_batch(folder / "in.jsonl", [chat_line(f"r{i}") for i in range(num_lines)])
        tracemalloc.start()
        run_on(CountingTransport(), source, folder)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(10)  # loads the modules
    assert peak_bytes(10_000) < peak_bytes(1_000) + 4 * 9_000 + 50_000  # 4 bytes a line: which ones are done


class CountingTransport(AsyncFakeTransport):
    """A fake that does not keep the calls it saw."""

    async def stream(self, call: Call) -> AsyncGenerator[Outputs, None]:
        async for outputs in super().stream(call):
            yield outputs
        self.server.calls.clear()


def batch_command(source: Path, folder: Path, url: str, concurrency: int = 64) -> list[str]:
    command = [sys.executable, "-m", "client.cli", "batch", str(source), "-o", str(folder / "out.jsonl")]
    return [*command, "--url", url, "--concurrency", str(concurrency)]


def assert_each_answered_once(output: Path, names: Sequence[str]) -> None:
    results = read_results(output)
    assert len(results) == len(names)
    bodies = {result["custom_id"]: result["response"]["body"] for result in results}
    answers = {name: body["choices"][0]["message"]["content"] for name, body in bodies.items()}
    assert answers == {name: f"say {name} say " for name in names}


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_ten_thousand_lines_survive_being_stopped_in_the_middle(tmp_path: Path, stop: signal.Signals) -> None:
    names = [f"r{i}" for i in range(10_000)]
    source = write_batch(tmp_path / "in.jsonl", [chat_line(name) for name in names])
    output = tmp_path / "out.jsonl"
    first = subprocess.Popen(batch_command(source, tmp_path, "fake://?token_s=0.02"), stderr=subprocess.PIPE)
    with first:
        while not output.exists() or output.read_bytes().count(b"\n") < 500:
            assert first.poll() is None, "the batch ended before it was stopped"
        first.send_signal(stop)
        _, words = first.communicate(timeout=2 * PATIENCE_S)
    assert first.returncode == (-signal.SIGKILL if stop is signal.SIGKILL else 1)
    assert b"Traceback" not in words
    num_before = output.read_bytes().count(b"\n")
    assert 500 <= num_before < 10_000
    second = subprocess.run(batch_command(source, tmp_path, "fake://"), capture_output=True, check=True)
    assert f"({num_before} were done before)".encode() in second.stderr.replace(b"\n", b" ")
    assert_each_answered_once(output, names)


@pytest.mark.triton
def test_a_batch_killed_on_a_real_server_ends_complete(tmp_path: Path, sim: Server) -> None:
    names = [f"r{i}" for i in range(60)]
    source = write_batch(tmp_path / "in.jsonl", [chat_line(name) for name in names])
    output = tmp_path / "out.jsonl"
    a_few_at_a_time = batch_command(source, tmp_path, sim.grpc_url, concurrency=4)
    with subprocess.Popen(a_few_at_a_time, stderr=subprocess.DEVNULL) as first:
        while not output.exists() or output.read_bytes().count(b"\n") < 10:
            assert first.poll() is None, "the batch ended before it was killed"
        first.kill()
    wait_until(lambda: sim.num_requests() == 0, "the end of what the killed batch had sent")
    subprocess.run(batch_command(source, tmp_path, sim.grpc_url), capture_output=True, check=True)
    results = read_results(output)
    assert sorted(result["custom_id"] for result in results) == sorted(names)
    assert {result["response"]["body"]["usage"]["completion_tokens"] for result in results} <= {1, 2, 3}


@pytest.mark.triton
def test_a_batch_outlives_the_death_of_the_engine(tmp_path: Path) -> None:
    names = [f"r{i}" for i in range(200)]
    source = write_batch(tmp_path / "in.jsonl", [chat_line(name, max_tokens=60) for name in names])
    output = tmp_path / "out.jsonl"
    with (
        serving(tmp_path / "log", "--executor", "sim") as server,
        subprocess.Popen(batch_command(source, tmp_path, server.grpc_url), stderr=subprocess.PIPE) as batch,
    ):
        while not output.exists() or output.read_bytes().count(b"\n") < 20:
            assert batch.poll() is None, "the batch ended before the engine was killed"
        below = psutil.Process(server.pid).children(recursive=True)
        (engine,) = [process for process in below if "backend.server.engine_process" in process.cmdline()]
        engine.kill()
        _, words = batch.communicate(timeout=START_TIMEOUT_S)
    assert batch.returncode == 0, words
    assert sorted(result["custom_id"] for result in read_results(output)) == sorted(names)
