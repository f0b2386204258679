"""Requests and responses survive the way to the wire and back, and HTTP's events and refusals are understood."""

from __future__ import annotations

import asyncio
import json

import httpx2
import pytest
from tritonclient.grpc import service_pb2

from backend.config import MAX_SECONDS
from client import Client, wire
from client.errors import (
    CancelledError,
    ExecutionError,
    InvalidRequestError,
    OverloadedError,
    TooLargeError,
    UnavailableError,
)
from client.generation import Call, Options, decode, encode
from client.transports.grpc import decode_response, encode_request
from client.transports.http import AsyncHttpTransport, HttpTransport

EVERY_OPTION: Options = {
    "priority_class": "rt",
    "ttft_slo_s": 0.4,
    "tpot_slo_s": 0.1,
    "itl_slo_s": 0.5,
    "deadline_s": 60.0,
    "cache_salt": "tenant-1",
    "timeout_s": 5.0,
    "max_tokens": 7,
    "min_tokens": 2,
    "temperature": 0.7,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.2,
    "frequency_penalty": 0.3,
    "seed": 2**63,
    "echo": True,
    "stop": ["\n\n", "Ende — Schluß"],
    "ignore_eos": True,
    "log_probs": True,
    "top_log_probs": 3,
    "json_schema": {"type": "object"},
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "request_id": "r-1",
}


def as_response(request: service_pb2.ModelInferRequest) -> service_pb2.ModelStreamInferResponse:
    """Return a response whose outputs are the request's inputs: the tensors of both have one encoding."""
    response = service_pb2.ModelStreamInferResponse()
    for tensor in request.inputs:
        response.infer_response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    response.infer_response.raw_output_contents.extend(request.raw_input_contents)
    return response


def test_every_option_reaches_the_wire_in_its_unit() -> None:
    inputs = encode("hi", EVERY_OPTION).inputs
    assert inputs["ttft_slo_ms"] == 400.0
    assert inputs["deadline_ms"] == 60_000.0
    assert inputs["stop_words"] == EVERY_OPTION["stop"]
    assert set(EVERY_OPTION) == set(Options.__annotations__)
    assert len(inputs) == len(EVERY_OPTION) - 2 + 3  # without timeout_s and request_id; prompt, stream, return_metrics


def test_client_and_server_have_one_longest_time() -> None:
    assert wire.MAX_S == MAX_SECONDS


def test_grpc_tensors_survive_the_round_trip() -> None:
    call = encode("Grüße, 世界", EVERY_OPTION)
    outputs = decode_response(as_response(encode_request(call)))
    for name, value in call.inputs.items():
        sent = value if isinstance(value, list) else [value]
        assert outputs[name] == pytest.approx(sent, rel=1e-6) if isinstance(value, float) else outputs[name] == sent


def test_grpc_parameters_keep_their_types() -> None:
    request = encode_request(Call("bros", "r-1", parameters={"a": "x", "b": True, "c": 3, "d": 0.5}))
    fields = {name: request.parameters[name].WhichOneof("parameter_choice") for name in "abcd"}
    assert fields == {"a": "string_param", "b": "bool_param", "c": "int64_param", "d": "double_param"}


@pytest.mark.parametrize("options", [{"max_tokens": 2**31}, {"seed": -1}, {"top_k": "many"}, {"temperature": 1e60}])
def test_what_does_not_fit_its_tensor_is_refused_before_sending(options: Options) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(options))):
        encode_request(encode("hi", options))


def test_an_error_on_a_grpc_stream_is_raised() -> None:
    with pytest.raises(TooLargeError):
        decode_response(service_pb2.ModelStreamInferResponse(error_message="TOO_LARGE: 9 exceeds 8"))


def test_a_split_character_is_replaced_not_raised() -> None:
    response = service_pb2.ModelStreamInferResponse()
    response.infer_response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    response.infer_response.raw_output_contents.append(b"\x02\0\0\0\xf0\x9f")
    assert decode(decode_response(response)).text == "�"


def http_client(reply: httpx2.Response) -> tuple[Client, list[dict[str, object]]]:
    """Return a client whose HTTP server always replies so, and the list of bodies it was sent."""
    bodies: list[dict[str, object]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        bodies.append(json.loads(request.content))
        return reply

    http = httpx2.Client(base_url="http://test", transport=httpx2.MockTransport(answer))
    return Client(HttpTransport(http=http)), bodies


EVENTS = (
    b'data: {"model_name":"bros","text_output":"Hel","output_ids":[1,2]}\n\n'
    b'data: {"model_name":"bros","text_output":"lo","output_ids":3,"finish_reason":"stop"}\n\n'
)


def test_http_events_become_chunks() -> None:
    client, bodies = http_client(httpx2.Response(200, content=EVENTS))
    answer = client.stream("hi", max_tokens=3, request_id="r-1").join()
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("Hello", [1, 2, 3], "stop")
    assert bodies == [{"id": "r-1", "text_input": "hi", "max_tokens": 3, "stream": True, "return_metrics": True}]


def test_http_async_events_become_chunks_too() -> None:
    async def run() -> list[object]:
        mock = httpx2.MockTransport(lambda _: httpx2.Response(200, content=EVENTS))
        transport = AsyncHttpTransport(http=httpx2.AsyncClient(base_url="http://test", transport=mock))
        return [outputs["text_output"] async for outputs in transport.stream(encode("hi", {}))]

    assert asyncio.run(run()) == [["Hel"], ["lo"]]


def test_http_streams_even_a_whole_answer_so_that_leaving_is_noticed() -> None:
    client, bodies = http_client(httpx2.Response(200, content=EVENTS))
    assert client.generate("hi", timeout_s=1.5).text == "Hello"
    assert (bodies[0]["stream"], bodies[0]["timeout"]) == (True, 1_500_000)


@pytest.mark.parametrize(
    ("reply", "error_type"),
    [
        (httpx2.Response(400, json={"error": "OVERLOADED: be queue full; retry_after_ms=200"}), OverloadedError),
        (httpx2.Response(200, content=b'data: {"error":"EXECUTOR_FAILED: lost"}\n\n'), ExecutionError),
        (httpx2.Response(404, json={"error": "unknown model"}), UnavailableError),
        (httpx2.Response(503, content=b"<html>proxy</html>"), UnavailableError),
        (httpx2.Response(200, content=EVENTS[:70]), ExecutionError),
    ],
)
def test_http_errors_become_typed(reply: httpx2.Response, error_type: type[Exception]) -> None:
    client, _ = http_client(reply)
    with pytest.raises(error_type):
        client.generate("hi")


def test_http_timeouts_become_cancelled() -> None:
    def stall(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ReadTimeout("nothing came", request=request)

    http = httpx2.Client(base_url="http://test", transport=httpx2.MockTransport(stall))
    with pytest.raises(CancelledError):
        Client(HttpTransport(http=http)).generate("hi", timeout_s=1.0)
