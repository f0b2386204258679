"""Requests through a real Triton server, over gRPC and HTTP: the answer on each request path, and its end."""

from __future__ import annotations

import json
import shutil
from itertools import product
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from backend.config import ServiceSettings
from backend.launcher.triton_copy import BODY_PER_MESSAGE
from backend.launcher.triton_install import max_message_bytes
from backend.wire import names as wire
from backend.wire.metrics import METRICS
from tests.backend.bad_requests import BAD_REQUESTS, BadRequest
from tests.triton.servers import Server, processes_of, wait_until
from tests.triton.streams import Stream

pytestmark = pytest.mark.triton


@pytest.mark.vllm
def test_streamed_whole_grpc_and_http_answers_are_the_same(smollm: Server) -> None:
    request = {"text_input": "The sea is", "max_tokens": 20, "ignore_eos": True}
    with Stream(smollm.grpc_url) as stream:
        streamed = stream.ask({**request, "stream": True, "priority_class": "rt"})
        whole = stream.ask(request)
    assert 1 < len(streamed.responses) <= 20  # tokens that wait for a busy client travel together
    assert len(whole.responses) == 1
    assert streamed.text
    http = smollm.generate(**request)
    status, events = smollm.post("bros", {**request, "stream": True}, "generate_stream")
    assert status == 200
    texts = [json.loads(line.removeprefix("data: "))["text_output"] for line in events.splitlines() if line]
    assert streamed.text == whole.text == http["text_output"] == "".join(texts)
    assert streamed.token_ids == whole.token_ids == http["output_ids"]


def test_best_effort_tokens_travel_together(sim: Server) -> None:
    with Stream(sim.grpc_url) as stream:
        answer = stream.ask({"text_input": "x", "max_tokens": 50, "stream": True, "priority_class": "be"})
    assert len(answer.token_ids) == 50
    assert 2 <= len(answer.responses) < 50


def test_an_answer_ends_once_and_says_how(sim: Server) -> None:
    with Stream(sim.grpc_url) as stream:
        answer = stream.ask({"text_input": "x", "max_tokens": 3, "return_metrics": True})
        assert (answer.num_finals, answer.finish_reason, len(answer.responses)) == (1, "length", 1)
    assert answer.output("num_input_tokens") == 1
    assert answer.output("num_output_tokens") == 3
    assert answer.output("num_preemptions") == 0
    assert not answer.output("hopeless_slo")
    assert 0.0 < answer.output("queue_ms") <= answer.output("ttft_ms") < 60_000.0
    assert 1.0 < answer.output("tpot_ms") < 60_000.0


@pytest.mark.parametrize(("ttft_slo_ms", "is_hopeless"), [(0.001, True), (60_000.0, False)])
def test_an_slo_that_nobody_could_keep_is_told(sim: Server, ttft_slo_ms: float, is_hopeless: bool) -> None:
    request = {"text_input": "x", "max_tokens": 2, "return_metrics": True, "ttft_slo_ms": ttft_slo_ms}
    with Stream(sim.grpc_url) as stream:
        assert bool(stream.ask({**request, "priority_class": "rt"}).output("hopeless_slo")) is is_hopeless
    assert sim.generate("bros_rt", **request)["hopeless_slo"] is is_hopeless


def test_every_prompt_form_is_answered(sim: Server) -> None:
    chat = json.dumps([{"role": "user", "content": "hi"}])
    for prompt in ({"text_input": "hi"}, {"messages": chat}, {"input_ids": [5, 6, 7]}):
        with Stream(sim.grpc_url) as stream:
            assert len(stream.ask({**prompt, "max_tokens": 2}).token_ids) == 2


def test_the_prompt_is_repeated_on_request_only(sim: Server) -> None:
    answer = sim.generate(text_input="say it", exclude_input_in_output=False)
    assert answer["text_output"].startswith("say it")
    assert not sim.generate(text_input="say it")["text_output"].startswith("say it")


@pytest.mark.vllm
def test_a_stop_word_ends_the_text_before_it(smollm: Server) -> None:
    words = smollm.generate(max_tokens=30)["text_output"].split()
    answer = smollm.generate(max_tokens=30, stop_words=[f"{words[4]} {words[5]}"])
    assert answer["finish_reason"] == "stop"
    assert answer["text_output"].split() == words[:4]


@pytest.mark.vllm
def test_log_probs_come_when_asked(smollm: Server) -> None:
    answer = smollm.generate(return_log_probs=True)
    assert len(answer["log_probs"]) == len(answer["output_ids"]) == 4
    assert all(value <= 0.0 for value in answer["log_probs"])


REQUEST_PATHS: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, str], str]] = [
    ("tensor", {"priority_class": "rt"}, {}, {}, "bros"),
    ("parameter", {}, {"priority_class": "rt"}, {}, "bros"),
    ("header", {}, {}, {"x-priority-class": "rt"}, "bros"),
    ("model name", {}, {}, {}, "bros_rt"),
]


@pytest.mark.parametrize(
    ("inputs", "parameters", "headers", "model"),
    [path[1:] for path in REQUEST_PATHS],
    ids=[path[0] for path in REQUEST_PATHS],
)
def test_class_reaches_the_engine_over_grpc(
    sim: Server, inputs: dict[str, Any], parameters: dict[str, Any], headers: dict[str, str], model: str
) -> None:
    before = num_served(sim, "rt")
    with Stream(sim.grpc_url, **headers) as stream:
        assert stream.ask({"text_input": "x", "max_tokens": 1, **inputs}, model, **parameters).finish_reason == "length"
    wait_until(lambda: num_served(sim, "rt") == before + 1, "the count of real-time requests")


@pytest.mark.parametrize(
    "body",
    [
        {"priority_class": "rt"},
        {"priority": 1},
        {"parameters": {"priority_class": "rt"}},
        {"parameters": {"priority": 1}},
    ],
    ids=str,
)
def test_class_reaches_the_engine_over_http(sim: Server, body: dict[str, Any]) -> None:
    before = num_served(sim, "rt")
    sim.generate(**body)
    wait_until(lambda: num_served(sim, "rt") == before + 1, "the count of real-time requests")


def num_served(server: Server, priority_class: str) -> float:
    return server.metric(f'bros_requests_total{{class="{priority_class}",outcome="length"}}')


TRITONS_OWN = {"priority", "timeout"}  # parameters that Triton takes for itself over gRPC


def test_bad_requests_over_grpc_are_refused_one_by_one(sim: Server) -> None:
    with Stream(sim.grpc_url) as stream:
        for bad in (bad for bad in BAD_REQUESTS if bad.reaches_model and not bad.parameters.keys() & TRITONS_OWN):
            answer = stream.ask(bad.inputs, bad.model, **bad.parameters)
            assert_refused(bad, answer.errors)
            assert answer.num_finals <= 1
        assert stream.ask({"text_input": "x", "max_tokens": 1}).finish_reason == "length"


def assert_refused(bad: BadRequest, errors: list[str]) -> None:
    assert len(errors) == 1, bad.name
    assert errors[0].startswith("INVALID_REQUEST: "), f"{bad.name}: {errors[0]}"
    assert bad.message in errors[0], f"{bad.name}: {errors[0]}"


def test_bad_requests_over_http_are_refused_one_by_one(sim: Server) -> None:
    for bad in (bad for bad in BAD_REQUESTS if bad.reaches_model and bad.is_json):
        status, text = sim.post(bad.model, {**bad.inputs, **bad.parameters})
        assert status == 400, f"{bad.name}: {status} {text}"
        assert_refused(bad, [json.loads(text)["error"]])
    assert sim.generate()["finish_reason"] == "length"


def test_what_only_the_engine_can_know_is_refused_by_it(sim: Server) -> None:
    too_long = {"text_input": "x" * 9000}
    cases = [
        (too_long, "TOO_LARGE: ", "prompt of 9000 tokens exceeds max_seq_len 8192"),
        ({"input_ids": [1] * 9000}, "TOO_LARGE: ", "input_ids: prompt of 9000 tokens exceeds max_seq_len 8192"),
        ({"text_input": "x", "max_tokens": 9000}, "TOO_LARGE: ", "max_tokens 9000"),
        ({"input_ids": [31_999, 32_000]}, "INVALID_REQUEST: ", "32000 is no token id"),
    ]
    for inputs, code, message in cases:
        with Stream(sim.grpc_url) as stream:
            (error,) = stream.ask(inputs).errors
        assert error.startswith(code)
        assert message in error


@pytest.mark.skipif(shutil.which("tritonserver") is not None, reason="only the embedded server is changed")
def test_the_error_mode_that_may_end_the_server_is_not_there(sim: Server) -> None:
    with Stream(sim.grpc_url, triton_grpc_error="true") as stream:
        (error,) = stream.ask({"text_input": ""}).errors
        assert error.startswith("INVALID_REQUEST: ")
        assert stream.ask({"text_input": "x", "max_tokens": 2}).finish_reason == "length"  # the stream goes on


def test_every_metric_of_the_table_is_on_the_endpoint(sim: Server) -> None:
    sim.generate(priority_class="rt")
    text = sim.metrics()
    missing = [metric.name for metric in METRICS if f"\n{metric.name}" not in text]
    assert not missing


def test_outputs_are_declared(sim: Server) -> None:
    answer = sim.generate(return_metrics=True)
    names = {field.name for field in wire.OUTPUTS} - {"log_probs", "top_ids", "top_log_probs"}  # sim tells none
    assert names <= set(answer)


def ask_raw(sim: Server, request: Any) -> Any:
    """Send a request that client libraries would not make; return the first response."""
    unlimited = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(sim.grpc_url, options=unlimited) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return next(stub.ModelStreamInfer(iter([request]), timeout=60))


def make_raw(text: bytes) -> Any:
    request = service_pb2.ModelInferRequest(model_name="bros")
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(text)
    return request


@pytest.mark.parametrize("output", ["text_output", "output_ids", "finish_reason", "num_output_tokens"])
def test_an_output_asked_for_as_classes_ends_nobody(sim: Server, output: str) -> None:
    before = triton_ids(sim)
    assert len(before) == 1
    request = make_raw(b"hi")
    request.parameters["return_num_output_tokens"].bool_param = True
    request.outputs.add(name=output).parameters["classification"].int64_param = 1
    answer = ask_raw(sim, request)
    is_text = output in ("text_output", "finish_reason")
    assert ("unsupported type 'BYTES'" in answer.error_message) is is_text
    assert [it.datatype for it in answer.infer_response.outputs] == ([] if is_text else ["BYTES"])
    with grpc.insecure_channel(sim.grpc_url) as channel, pytest.raises(grpc.RpcError, match="decoupled"):
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
    text = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["hi"]}
    classes = {"name": output, "parameters": {"classification": 1}}
    status, words = sim.post("bros", {"inputs": [text], "outputs": [classes]}, "infer")
    assert (status, "decoupled" in words) == (501, True)
    assert sim.generate()["finish_reason"] == "length"
    assert triton_ids(sim) == before


def triton_ids(sim: Server) -> list[int]:
    return processes_of(f"--grpc-port={sim.grpc_url.rpartition(':')[2]}")


HUGE = (2**62 + 1, 2**62, -(2**62) + 1, 2**63 - 1, -(2**63), 2**61, 2**32, 2**32 + 1, -2, -1)
ONE_ELEMENT = {"input_ids": 4, "max_tokens": 4, "seed": 8, "temperature": 4, "stream": 1, "stop_words": 4}  # in bytes


@pytest.mark.skipif(shutil.which("tritonserver") is not None, reason="only the embedded server is changed")
@pytest.mark.parametrize("name", ONE_ELEMENT)
def test_a_shape_whose_size_overflows_ends_nobody(sim: Server, name: str) -> None:
    before = triton_ids(sim)
    dtype = wire.input_names()[name].dtype.replace("STRING", "BYTES")
    with grpc.insecure_channel(sim.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for dim, content in product(HUGE, (b"", bytes(ONE_ELEMENT[name]))):
            request = service_pb2.ModelInferRequest(model_name="bros_be", raw_input_contents=[content])
            request.inputs.add(name=name, datatype=dtype, shape=[dim])
            answer = next(stub.ModelStreamInfer(iter([request]), timeout=60))
            assert f"input '{name}'" in answer.error_message, dim
    assert sim.generate()["finish_reason"] == "length"
    assert triton_ids(sim) == before


@pytest.mark.skipif(shutil.which("tritonserver") is not None, reason="only the embedded server is changed")
def test_very_many_inputs_are_counted_and_not_listed(sim: Server) -> None:
    """With the original server 100,000 take seconds of all streams, and 250,000 end it: it copies the list for each."""
    before = triton_ids(sim)
    request = service_pb2.ModelInferRequest(model_name="bros", raw_input_contents=[b"\1"] * 100_000)
    for number in range(100_000):
        request.inputs.add(name=f"i{number}", datatype="BOOL", shape=[1])
    message = ask_raw(sim, request).error_message
    assert "expected number of inputs between" in message
    assert "but got 100000 inputs for model 'bros'" in message
    assert "'i0'" not in message
    assert triton_ids(sim) == before


@pytest.mark.skipif(shutil.which("tritonserver") is not None, reason="only the embedded server is changed")
@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_compressed_message_is_refused_before_it_is_inflated(sim: Server, compression: grpc.Compression) -> None:
    """The original inflates it, whatever it comes to, and compares that with its limit."""
    limit = max_message_bytes(ServiceSettings().max_prompt_bytes)
    with grpc.insecure_channel(sim.grpc_url, compression=compression) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for num_bytes in (2, limit):
            with pytest.raises(grpc.RpcError) as refusal:
                next(stub.ModelStreamInfer(iter([make_raw(b"x" * num_bytes)]), timeout=60))
            assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "is disabled" in refusal.value.details()
    assert ask_raw(sim, make_raw(b"hi")).error_message == ""


def test_a_message_above_the_limit_is_refused_before_it_is_read(sim: Server) -> None:
    limit = max_message_bytes(ServiceSettings().max_prompt_bytes)
    with pytest.raises(grpc.RpcError) as refusal:
        ask_raw(sim, make_raw(b"x" * limit))
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(limit) in refusal.value.details()
    assert sim.generate()["finish_reason"] == "length"


def test_an_http_body_above_the_limit_ends_its_connection(sim: Server) -> None:
    before = triton_ids(sim)
    limit = BODY_PER_MESSAGE * max_message_bytes(ServiceSettings().max_prompt_bytes)
    assert sim.post("bros", {"text_input": "x" * (limit - 1_000)})[0] == 400
    with pytest.raises(OSError, match=r"reset|closed|[Bb]roken|without"):
        sim.post("bros", {"text_input": "x" * limit})
    assert sim.generate()["finish_reason"] == "length"
    assert triton_ids(sim) == before


def test_far_too_many_stop_words_are_counted_but_not_read(sim: Server) -> None:
    request = make_raw(b"hi")
    words = request.inputs.add(name="stop_words", datatype="BYTES", shape=[1_000_000])
    words.contents.bytes_contents.extend([b"x"] * 1_000_000)
    assert "stop_words: 1000000 exceed max_stop_words 16" in ask_raw(sim, request).error_message
