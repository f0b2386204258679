"""How a request is wrapped: as it should be, or in an HTTP request or a protobuf message that is odd itself."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from tests.campaign.messages import Case, Fields, add_parameter, generate_bytes, http_bytes, to_message
from tests.campaign.values import nested

Envelope = Callable[[random.Random, Case, str, bytes], Case]


def http_case(chance: random.Random, number: int, model: str, fields: Fields, changes: list[str]) -> Case:
    endpoint = chance.choice(("generate", "generate_stream"))
    fields = {**fields, "stream": endpoint == "generate_stream"} if chance.random() < 0.8 else fields
    data = generate_bytes(model, fields, endpoint)
    if chance.random() < 0.75:
        return Case(number, "http", f"{endpoint} {model}: {', '.join(changes) or 'good'}", data)
    body = data.partition(b"\r\n\r\n")[2]
    kind = chance.choice(sorted(_ENVELOPES))
    return _ENVELOPES[kind](chance, Case(number, "http", f"{kind}: {', '.join(changes)}", data), model, body)


def _odd_path(chance: random.Random, case: Case, model: str, body: bytes) -> Case:
    path = chance.choice(
        (
            *("/", "//", "/v2", "/v2/models", "/v2/models/nobody/generate", "/v2/models/bros/versions/9/generate"),
            *("/v2/models/%00/generate", "/v2/models/../generate", f"/v2/models/{'x' * 4_000}/generate", "/v2/%ff"),
            *(f"/v2/models/{model}/infer", f"/v2/models/{model}", "/v2/health/ready", "/v2/models/bros/generate?a=%zz"),
            *("/v2/repository/models/bros/load", "/v2/repository/models/bros/unload", "/v2/systemsharedmemory/status"),
        )
    )
    data = http_bytes(chance.choice(("POST", "POST", "GET", "PUT", "DELETE", "OPTIONS", "PATCH")), path, body)
    return Case(case.number, "http", f"{case.words} {path[:60]}", data)


def _odd_header(chance: random.Random, case: Case, model: str, body: bytes) -> Case:
    header = chance.choice(
        (
            *("Content-Type: text/plain", "Content-Type: application/octet-stream", "X-Priority-Class: gold"),
            *("Accept-Encoding: gzip", "Content-Encoding: gzip", "Content-Encoding: deflate", "Content-Encoding: x"),
            *("Inference-Header-Content-Length: 5", "Inference-Header-Content-Length: -1", "Expect: 100-continue"),
            *("Content-Type: application/x-www-form-urlencoded", f"X-Long: {'x' * 8_000}", "X-Odd: \xff\xfe"),
        )
    )
    data = http_bytes("POST", f"/v2/models/{model}/generate", body, header)
    return Case(case.number, "http", f"{case.words} {header[:50]}", data)


def _broken_json(chance: random.Random, case: Case, model: str, body: bytes) -> Case:
    changed = bytearray(body or b"{}")
    for _ in range(chance.randint(1, 4)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    cut = changed[: chance.randint(0, len(changed))] if chance.random() < 0.5 else changed
    return Case(case.number, "http", case.words, http_bytes("POST", f"/v2/models/{model}/generate", bytes(cut)))


def _nested_json(chance: random.Random, case: Case, model: str, body: bytes) -> Case:
    depth = chance.choice((5, 50, 90))  # far more ends Triton 2.51: phase `triton`
    body = f'{{"text_input": "x", "{chance.choice(("messages", "frob"))}": {nested(depth)}}}'.encode()
    return Case(case.number, "http", case.words, http_bytes("POST", f"/v2/models/{model}/generate", body))


def _cut_short(chance: random.Random, case: Case, _model: str, _body: bytes) -> Case:
    return Case(case.number, "http", case.words, case.data[: chance.randrange(1, len(case.data))], is_whole=False)


def _garbage(chance: random.Random, case: Case, _model: str, _body: bytes) -> Case:
    return Case(case.number, "http", case.words, chance.randbytes(chance.randint(1, 500)) + b"\r\n\r\n", is_whole=False)


_ENVELOPES: Mapping[str, Envelope] = {
    "odd path": _odd_path,
    "odd header": _odd_header,
    "broken JSON": _broken_json,
    "nested JSON": _nested_json,
    "cut short": _cut_short,
    "garbage": _garbage,
}


def grpc_case(chance: random.Random, number: int, model: str, fields: Fields, changes: list[str]) -> Case:
    request = to_message(model, f"wire-{number}", fields)
    kind = chance.choice(sorted(_PROTOBUF)) if chance.random() < 0.3 else ""
    if kind:
        _PROTOBUF[kind](chance, request)
    data = request.SerializeToString()
    if kind == "" and chance.random() < 0.05:
        kind, data = "flipped bytes", _flipped(chance, data)
    words = f"{model} {kind}: {', '.join(changes) or 'good'}"
    return Case(number, "grpc", words, data, is_whole=_is_message(data))


def _is_message(data: bytes) -> bool:
    """Return whether this can be read at all: Triton ends the stream of what cannot without a word."""
    try:
        service_pb2.ModelInferRequest.FromString(data)
    except DecodeError:
        return False
    return True


def _flipped(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 5)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


# Some of them have "4 bytes" or none, modulo 2^64.
_SHAPES = [[], [0], [-1], [2], [1, 1], [2**31], [2**62, 2**62], [1] * 100]
_SHAPES += [[2**62 + 1], [2**62], [-(2**62) + 1], [2**61 + 1], [2**63 - 1], [-(2**63)], [2**32], [2**32 + 1], [-2]]


def _odd_shape(chance: random.Random, request: Any) -> None:
    for tensor in request.inputs[:1]:
        del tensor.shape[:]
        tensor.shape.extend(chance.choice(_SHAPES))


def _huge_prompt(chance: random.Random, request: Any) -> None:
    """Let the prompt be token ids, whose number is free, of such a shape."""
    del request.inputs[:], request.raw_input_contents[:]
    request.inputs.add(name="input_ids", datatype="INT32", shape=chance.choice(_SHAPES))
    request.raw_input_contents.append(chance.choice((b"", b"\5\0\0\0")))


def _odd_datatype(chance: random.Random, request: Any) -> None:
    for tensor in request.inputs[:1]:
        tensor.datatype = chance.choice(("", "FP32", "BYTES", "INT64", "BF16", "UINT8", "NOPE", "x" * 1_000))


def _odd_contents(chance: random.Random, request: Any) -> None:
    contents = request.raw_input_contents
    odd = chance.choice((b"", b"\xff", b"\xff\xff\xff\x7f", struct.pack("<I", 2**32 - 1) + b"x", b"\0" * 1_000))
    if contents and chance.random() < 0.7:
        contents[0] = odd
    else:
        contents.append(odd)


def _odd_names(chance: random.Random, request: Any) -> None:
    setattr(
        request,
        chance.choice(("model_name", "model_version", "id")),
        chance.choice(("", "0", "9", "-1", "x" * 9_999, "ä\n\0", "%s")),
    )


def _odd_tensors(chance: random.Random, request: Any) -> None:
    if chance.random() < 0.5 and request.inputs:
        request.inputs.add().CopyFrom(request.inputs[0])
        request.raw_input_contents.append(request.raw_input_contents[0])
    else:
        request.outputs.add(name=chance.choice(("text_output", "nobody", "", "x" * 1_000)))


def _classes(chance: random.Random, request: Any) -> None:
    name = chance.choice(("text_output", "output_ids", "finish_reason", "num_output_tokens", "log_probs", "nobody"))
    add_parameter(request.outputs.add(name=name), "classification", chance.choice((1, 1, 3, 2**40, 0, -1, "x", True)))


def _odd_parameters(chance: random.Random, request: Any) -> None:
    names = (
        "sequence_id",
        "sequence_start",
        "priority",
        "timeout",
        "binary_data_output",
        "shared_memory_region",
        "headers",
    )
    for name in chance.sample(names, 2):
        add_parameter(request, name, chance.choice((1, -1, 2**62, True, "x", 0.5)))


_PROTOBUF: Mapping[str, Callable[[random.Random, Any], None]] = {
    "odd shape": _odd_shape,
    "huge prompt": _huge_prompt,
    "odd datatype": _odd_datatype,
    "odd contents": _odd_contents,
    "odd names": _odd_names,
    "odd tensors": _odd_tensors,
    "outputs as classes": _classes,
    "odd parameters": _odd_parameters,
}
