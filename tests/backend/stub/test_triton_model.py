"""The stub side on a hand-made Triton: responses, finals, cancellation, the limit on open requests, metrics."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backend.config import CONFIG_VARIABLE, ConfigFile
from backend.executors.sim import SimSettings
from backend.wire.protocol import Chunk
from tests.backend.serving import WAIT_S, make_file, running
from tests.backend.stub.fake_triton import (
    MetricFamily,
    Request,
    Sender,
    TritonModelException,
    make_args,
    make_module,
    values,
)

SLOW = SimSettings(coefficients=(5e-3, 0.0, 0.0, 0.0, 0.0))
LONG = {"text_input": "x", "max_tokens": 8000, "stream": True, "priority_class": "rt"}
MakeModel = Callable[[str], Any]


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    module = make_module()
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)  # type: ignore[arg-type]  # stands for one
    monkeypatch.delitem(sys.modules, "backend.stub.triton_model", raising=False)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield module
    root.handlers, root.level = handlers, level
    sys.modules.pop("backend.stub.triton_model", None)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigFile:
    file = make_file(tmp_path, SLOW, cancel_poll_s=0.01, allow_inspect=True)
    monkeypatch.setenv(CONFIG_VARIABLE, str(file.path))
    return file


@pytest.fixture
def make_model(
    triton: SimpleNamespace,  # noqa: ARG001  # stands in for Triton's module
    file: ConfigFile,
    tmp_path: Path,
) -> Iterator[MakeModel]:
    """Start an engine; return a function that loads a model as Triton does."""
    module = importlib.import_module("backend.stub.triton_model")
    with running(file), ExitStack() as models:

        def make(name: str) -> Any:
            model = module.TritonPythonModel()
            model.initialize(make_args(name, str(tmp_path / name)))
            models.callback(model.finalize)
            return model

        yield make


def wait_until(is_so: Callable[[], object]) -> None:
    """Wait for what the timer's thread will bring about."""
    deadline_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline_s, "it did not come about"
        time.sleep(0.01)


def serve(model: Any, inputs: dict[str, Any], parameters: dict[str, Any] | None = None, **options: Any) -> Request:
    """Hand one request to a model; return it with its sender."""
    request = Request(inputs, parameters, **options)
    assert model.execute([request]) is None
    return request


def test_a_streamed_answer_has_a_response_for_each_token_and_one_final(make_model: MakeModel) -> None:
    sender = serve(make_model("bros"), {**LONG, "max_tokens": 5}).sender.wait()
    assert len(sender.responses) == 5
    assert sender.num_finals == 1
    assert all(len(values(response.outputs["output_ids"])) == 1 for response in sender.responses)
    assert values(sender.responses[-1].outputs["finish_reason"]) == ["length"]
    assert "finish_reason" not in sender.responses[0].outputs
    assert not sender.misuses


def test_a_whole_answer_is_one_response(make_model: MakeModel) -> None:
    sender = serve(make_model("bros"), {"text_input": "x", "max_tokens": 5}).sender.wait()
    assert len(sender.responses) == 1
    assert len(values(sender.responses[0].outputs["output_ids"])) == 5


def test_a_token_that_comes_again_is_sent_from_the_tensors_of_the_first(make_model: MakeModel) -> None:
    model = make_model("bros")
    first, again, other = (model._response(Chunk(1, text, (5,)), None).outputs for text in (" a", " a", " b"))
    assert again["text_output"] is first["text_output"]
    assert again["output_ids"] is first["output_ids"]
    assert values(other["text_output"]) == [" b"]


def test_a_long_text_with_one_token_is_not_kept(make_model: MakeModel) -> None:
    model = make_model("bros")
    inputs = {"text_input": "x" * 100, "max_tokens": 1, "exclude_input_in_output": False}
    first, second = (serve(model, inputs).sender.wait().responses[0] for _ in range(2))
    assert first.outputs["text_output"] is not second.outputs["text_output"]


def test_metrics_of_a_request_come_when_asked_and_only_then(make_model: MakeModel) -> None:
    model = make_model("bros")
    asked = serve(model, {"text_input": "x", "max_tokens": 3, "return_metrics": True}).sender.wait().responses[-1]
    assert values(asked.outputs["num_output_tokens"]) == [3]
    assert values(asked.outputs["queue_ms"])[0] <= values(asked.outputs["ttft_ms"])[0]
    some = serve(model, {"text_input": "x", "max_tokens": 3, "return_num_input_tokens": True}).sender.wait()
    assert set(some.responses[-1].outputs) == {"text_output", "output_ids", "finish_reason", "num_input_tokens"}


def test_one_bad_request_fails_alone(make_model: MakeModel) -> None:
    good, bad = Request({"text_input": "x", "max_tokens": 2}), Request({"text_input": ""})
    make_model("bros").execute([bad, good])
    error = bad.sender.wait().responses[0].error
    assert str(error) == "INVALID_REQUEST: text_input: the prompt is empty"
    assert error is not None
    assert error.status == "INVALID_ARG"
    assert bad.sender.num_finals == 1
    assert values(good.sender.wait().responses[-1].outputs["finish_reason"]) == ["length"]


def test_an_error_of_our_own_fails_one_request_and_no_more(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("bros")
    broken = Request({"text_input": "x"})
    monkeypatch.setattr(broken, "parameters", lambda: "{")
    good = Request({"text_input": "x", "max_tokens": 1})
    model.execute([broken, good])
    assert str(broken.sender.wait().responses[0].error).startswith("INTERNAL: ")
    assert good.sender.wait().responses[-1].error is None


def test_bytes_that_are_no_text_are_the_clients_error(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("bros")
    for name, field in (("parameters", "parameters"), ("request_id", "request id")):
        broken = Request({"text_input": "x"})
        monkeypatch.setattr(broken, name, lambda: b'{"frob\xff": 1}'.decode())
        model.execute([broken])
        message = str(broken.sender.wait().responses[0].error)
        assert message == f"INVALID_REQUEST: {field}: invalid UTF-8 at byte 6, after '{{\"frob'"


def test_too_many_parameters_are_refused_before_they_are_decoded(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowded = Request({"text_input": "x"})
    monkeypatch.setattr(crowded, "parameters", lambda: "{" + '"x-a":1,' * 100_000)  # no JSON: nobody decodes it
    make_model("bros").execute([crowded])
    message = str(crowded.sender.wait().responses[0].error)
    assert message == "INVALID_REQUEST: parameters: 100000 exceed 256"


def test_parameters_beyond_any_limit_are_refused_unread(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    giant = Request({"text_input": "x"})
    monkeypatch.setattr(giant, "parameters", lambda: "{" * 7_000_000)
    make_model("bros").execute([giant])
    assert "7000000 characters of JSON exceed 6100000" in str(giant.sender.wait().responses[0].error)


def test_an_id_that_would_weigh_on_every_response_is_refused(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    heavy = Request({"text_input": "x"})
    monkeypatch.setattr(heavy, "request_id", lambda: "i" * 257)
    make_model("bros").execute([heavy])
    message = str(heavy.sender.wait().responses[0].error)
    assert message == "INVALID_REQUEST: request id: 257 characters exceed 256"


def test_an_error_of_our_own_is_counted(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Request({"text_input": "x"})
    monkeypatch.setattr(broken, "parameters", lambda: "{")
    make_model("bros").execute([broken])
    series = MetricFamily.all["bros_requests_total"].series
    wait_until(lambda: series['{"class": "be", "outcome": "internal"}'].value == 1)


def test_a_name_that_is_not_utf_8_is_the_clients_error(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def undecodable() -> str:
        return b"\xff".decode()

    broken = Request({"text_input": "x"})
    monkeypatch.setattr(broken, "request_id", undecodable)
    make_model("bros").execute([broken])
    assert str(broken.sender.wait().responses[0].error).startswith(
        "INVALID_REQUEST: request id: invalid UTF-8 at byte 0"
    )


def without_memory(sender: Sender, monkeypatch: pytest.MonkeyPatch, *, fails: Callable[[Any, int], bool]) -> None:
    """Let a sender raise, as Triton's does without shared memory, for the responses that `fails` picks."""
    send = sender.send

    def try_to_send(response: Any = None, flags: int = 0) -> None:
        if fails(response, flags):
            raise TritonModelException("no shared memory")
        send(response, flags)

    monkeypatch.setattr(sender, "send", try_to_send)


def test_a_token_that_is_not_sent_ends_its_own_stream_with_an_error(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("bros")
    bad, good = Request(LONG), Request({**LONG, "max_tokens": 60})
    without_memory(bad.sender, monkeypatch, fails=lambda response, _: response is not None and not response.error)
    model.execute([bad, good])
    assert str(bad.sender.wait().responses[-1].error).startswith("INTERNAL: an answer was not taken")
    assert bad.sender.num_finals == 1
    assert values(good.sender.wait().responses[-1].outputs["finish_reason"]) == ["length"]
    assert not bad.sender.misuses


def test_an_end_that_is_not_sent_becomes_an_error_or_a_bare_end_and_its_place_comes_back(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("bros_be")
    picks: list[Callable[[Any, int], bool]] = [
        lambda response, _: response is not None and not response.error,
        lambda response, _: response is not None,
        lambda *_: True,
    ]
    senders = []
    for fails in picks:
        request = Request({"text_input": "x", "max_tokens": 2})
        without_memory(request.sender, monkeypatch, fails=fails)
        model.execute([request])
        senders.append(request.sender)
    last = serve(model, {"text_input": "x", "max_tokens": 2}).sender.wait()  # two requests may be open
    assert values(last.responses[-1].outputs["finish_reason"]) == ["length"]
    assert str(senders[0].responses[0].error) == "INTERNAL: the last response could not be sent"
    assert (senders[1].responses, senders[1].num_finals) == ([], 1)
    assert senders[2].num_finals == 0


def test_a_client_that_cannot_be_asked_about_keeps_nobody_from_being_noticed(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unanswerable() -> bool:
        raise TritonModelException("no answer")

    model = make_model("bros")
    silent, leaving = serve(model, {**LONG, "max_tokens": 400}), serve(model, LONG)
    monkeypatch.setattr(silent.sender, "is_cancelled", unanswerable)
    leaving.sender.wait(num_responses=1).is_gone = True
    assert values(leaving.sender.wait().responses[-1].outputs["finish_reason"]) == ["cancelled"]
    monkeypatch.undo()
    silent.sender.is_gone = True
    silent.sender.wait()


def test_where_answers_take_long_the_clients_are_asked_for_in_rotation(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.stub.triton_model._ASKING_SHARE", 0.0)  # one at each poll
    model = make_model("bros")
    requests = [serve(model, LONG) for _ in range(3)]
    for request in requests:
        request.sender.is_gone = True
    for request in requests:
        assert values(request.sender.wait().responses[-1].outputs["finish_reason"]) == ["cancelled"]


def test_when_a_client_goes_its_request_ends_as_cancelled_and_is_not_asked_about_again(make_model: MakeModel) -> None:
    model = make_model("bros")
    request, other = serve(model, LONG), serve(model, {**LONG, "max_tokens": 60})
    request.sender.wait(num_responses=2).is_gone = True
    assert values(request.sender.wait().responses[-1].outputs["finish_reason"]) == ["cancelled"]
    assert values(other.sender.wait().responses[-1].outputs["finish_reason"]) == ["length"]
    assert not request.sender.misuses + other.sender.misuses


def test_a_client_that_went_before_its_request_began_costs_nothing(make_model: MakeModel) -> None:
    request = Request(LONG)
    request.sender.is_gone = True
    make_model("bros").execute([request])
    assert str(request.sender.wait().responses[0].error).startswith("CANCELLED: ")


def test_a_requests_own_timeout_ends_it_with_an_error(make_model: MakeModel) -> None:
    request = serve(make_model("bros"), LONG, timeout_us=100_000)
    error = request.sender.wait().responses[-1].error
    assert str(error) == "CANCELLED: the request's timeout of 100 ms ran out"


def test_a_model_with_a_limit_on_open_requests_holds_execute_until_one_ends(make_model: MakeModel) -> None:
    model = make_model("bros_be")
    first, second = Request({"text_input": "x", "max_tokens": 8000}), Request({"text_input": "x", "max_tokens": 8000})
    model.execute([first, second])
    third = Request({"text_input": "x", "max_tokens": 2})
    thread = threading.Thread(target=model.execute, args=([third],))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    first.sender.is_gone = True
    thread.join(WAIT_S)
    assert values(third.sender.wait().responses[-1].outputs["finish_reason"]) == ["length"]
    second.sender.is_gone = True
    second.sender.wait()


def test_refused_requests_do_not_count_as_open(make_model: MakeModel) -> None:
    model = make_model("bros_be")
    for _ in range(5):
        assert serve(model, {"text_input": "x", "max_tokens": 9000}).sender.wait().responses[0].error is not None
    assert values(serve(model, {"text_input": "x"}).sender.wait().responses[-1].outputs["finish_reason"]) == ["length"]


def test_the_class_of_a_model_wins_over_the_default(make_model: MakeModel) -> None:
    answer = serve(make_model("bros_rt"), {"text_input": "x", "priority_class": "be"}).sender.wait()
    assert "serves class 'rt' only" in str(answer.responses[0].error)


@pytest.mark.parametrize("asked", ["engine", "counts"])
def test_the_snapshot_is_one_response_of_json(make_model: MakeModel, asked: str) -> None:
    sender = serve(make_model("bros"), {}, {"inspect": asked}).sender.wait()
    assert sender.text.startswith('{"version":')
    assert sender.num_finals == len(sender.responses) == 1


def test_a_canary_is_answered_by_the_stub_itself(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("bros")
    with monkeypatch.context() as patch:
        patch.setattr(model, "_link", None)  # no way to the engine
        sender = serve(model, {}, {"inspect": "stub"}).sender.wait()
    assert sender.text == "alive"
    assert sender.num_finals == len(sender.responses) == 1


def test_model_readiness_is_the_engines(make_model: MakeModel) -> None:
    assert make_model("bros").is_ready()


def test_only_the_model_that_reports_makes_metrics(make_model: MakeModel) -> None:
    make_model("bros_rt")
    make_model("bros_be")
    assert not MetricFamily.all
    make_model("bros")
    assert "bros_requests_total" in MetricFamily.all


def test_what_the_engine_measured_reaches_tritons_metrics(make_model: MakeModel) -> None:
    model = make_model("bros")
    serve(model, {**LONG, "max_tokens": 3}).sender.wait()
    families = MetricFamily.all
    wait_until(lambda: families["bros_time_to_first_token_seconds"].series['{"class": "rt"}'].observations)
    assert families["bros_requests_total"].series['{"class": "rt", "outcome": "length"}'].value == 1
    buckets = families["bros_inter_token_latency_seconds_bucket"].series
    assert buckets['{"class": "rt", "le": "+Inf"}'].value == 2
    assert families["bros_inter_token_latency_seconds_count"].series['{"class": "rt"}'].value == 2
    assert families["bros_engine_ready"].series["{}"].value == 1


def test_the_servers_log_gets_our_lines(triton: SimpleNamespace, make_model: MakeModel) -> None:
    make_model("bros")
    assert any("engine ready" in line for line in triton.logged)


def test_numpy_2_is_refused_where_the_server_would_die_of_it(
    triton: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("backend.stub.triton_model")
    monkeypatch.setattr("numpy.__version__", "2.4.6")
    with pytest.raises(RuntimeError, match=r"numpy 2\.4\.6 does not work"):
        module.TritonPythonModel().initialize({})
    monkeypatch.setattr(triton.InferenceResponse, "parameters", dict, raising=False)  # a newer server
    with pytest.raises(KeyError):
        module.TritonPythonModel().initialize({})
