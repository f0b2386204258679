"""What a client may put on the wire: whole requests of both roads, good and bad, each made by (seed, number) alone."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from backend import wire
from tests.campaign.values import HOSTILE, Raw, messages_text, nested, odd_name, sampling_text

MODELS = ("bros", "bros_rt", "bros_be")
_DATATYPES = {"STRING": "BYTES"}
_PACKED = {"INT32": "i", "UINT64": "Q", "FP32": "f", "BOOL": "?"}
_RANGES = {"INT32": (-(2**31), 2**31 - 1), "UINT64": (0, 2**64 - 1)}

Fields = dict[str, Any]
Mutation = Callable[[random.Random, Fields], None]


@dataclass(frozen=True, slots=True)
class Case:
    """One request as bytes. `is_whole` False: the server must wait for more, so that its silence is right."""

    number: int
    road: str  # grpc or http
    words: str  # what was done to it
    data: bytes
    is_whole: bool = True


def make_case(seed: int, number: int) -> Case:
    """Return case `number`: a good request, changed in up to four ways."""
    chance = random.Random(f"{seed}/{number}")
    fields = good_fields(chance)
    changes = chance.sample(sorted(MUTATIONS), chance.choice((0, 1, 1, 1, 2, 2, 3, 4)))
    for name in changes:
        MUTATIONS[name](chance, fields)
    model = chance.choice(MODELS)
    make = _http_case if chance.random() < 0.5 else _grpc_case
    return make(chance, number, model, fields, changes)


def good_fields(chance: random.Random) -> Fields:
    """Return the fields of a request that is served, in no time."""
    prompt: Fields = chance.choice(
        (
            {"text_input": "the sea"},
            {"input_ids": [chance.randrange(3, 259) for _ in range(chance.randint(1, 40))]},
            {"messages": '[{"role": "user", "content": "hi"}]'},
        )
    )
    optional = {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "seed": 7, "ttft_slo_ms": 500.0, "stop_words": ["x"]}
    chosen = chance.sample(sorted(optional), chance.randint(0, 3))
    more = {name: optional[name] for name in chosen}
    return {**prompt, **more, "max_tokens": chance.randint(1, 8), "stream": chance.random() < 0.5}


# --- what is changed -----------------------------------------------------------------------------------------------


def _hostile_value(chance: random.Random, fields: Fields) -> None:
    fields[chance.choice(wire.INPUTS).name] = chance.choice(HOSTILE)


def _known_field(chance: random.Random, fields: Fields) -> None:
    fields[chance.choice(sorted(fields) or ["max_tokens"])] = chance.choice(HOSTILE)


def _unknown_name(chance: random.Random, fields: Fields) -> None:
    fields[odd_name(chance)] = chance.choice((1, "x", True, *HOSTILE[:6]))


def _messages(chance: random.Random, fields: Fields) -> None:
    fields.pop("text_input", None)
    fields.pop("input_ids", None)
    fields["messages"] = messages_text(chance)


def _sampling(chance: random.Random, fields: Fields) -> None:
    fields["sampling_parameters"] = sampling_text(chance)


def _token_ids(chance: random.Random, fields: Fields) -> None:
    fields.pop("text_input", None)
    fields.pop("messages", None)
    odd = [[], [0], [-1], [31_999], [32_000], [2**31 - 1], [-(2**31)], [5] * 5_000, [2] * 30, [5.5], ["x"], [[1, 2]]]
    fields["input_ids"] = chance.choice(odd)


def _class(chance: random.Random, fields: Fields) -> None:
    name = chance.choice(("priority_class", "priority", "x-priority-class"))
    fields[name] = chance.choice(("rt", "be", "RT", " be ", 1, 2, 3, 0, -1, True, "gold", "", "1", None, *HOSTILE[:4]))


def _objective(chance: random.Random, fields: Fields) -> None:
    name = chance.choice(("ttft_slo_ms", "tpot_slo_ms", "itl_slo_ms", "deadline_ms", "timeout"))
    fields[name] = chance.choice((1e-9, 1e-3, 0.5, 1.0, 1, 1e12, 0, -1, Raw("1e400"), Raw("NaN"), "soon", 2**63))


def _stop_words(chance: random.Random, fields: Fields) -> None:
    odd = ["", [""], ["x"] * 17, ["x"] * 10_000, ["x" * 257], ["x" * 100_000], [1], [["x"]], "x", None, {"a": 1}]
    fields["stop_words"] = chance.choice(odd)


def _long_text(chance: random.Random, fields: Fields) -> None:
    fields["text_input"] = chance.choice(("x", "ä", "😀", " ", "\0")) * chance.choice((1_000, 4_095, 4_096, 400_000))


def _long_output(chance: random.Random, fields: Fields) -> None:
    fields["max_tokens"] = chance.choice((200, 4_095, 4_096, 10_000_000))
    fields["timeout"] = chance.choice((1, 1_000, 300_000))  # microseconds: nobody waits for it


def _nothing_left(chance: random.Random, fields: Fields) -> None:
    fields.clear()
    fields.update(chance.choice(({}, {"max_tokens": 1}, {"inspect": "engine"}, {"inspect": "all"}, {"inspect": 1})))


MUTATIONS: Mapping[str, Mutation] = {
    "hostile value": _hostile_value,
    "hostile value in a field": _known_field,
    "unknown name": _unknown_name,
    "messages": _messages,
    "sampling parameters": _sampling,
    "token ids": _token_ids,
    "class": _class,
    "objective": _objective,
    "stop words": _stop_words,
    "long text": _long_text,
    "long output": _long_output,
    "nothing left": _nothing_left,
}

# --- HTTP ----------------------------------------------------------------------------------------------------------


def generate_bytes(model: str, fields: Mapping[str, Any], endpoint: str = "generate_stream") -> bytes:
    """Return a whole HTTP request to a generate endpoint; its connection is closed after the answer."""
    return http_bytes("POST", f"/v2/models/{model}/{endpoint}", to_json(fields).encode("utf-8", "surrogatepass"))


def http_bytes(method: str, path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """Return an HTTP/1.1 request; `length` is what its head says of the body."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *headers]
    if not any(header.lower().startswith(("content-length", "transfer-encoding")) for header in headers):
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def to_json(value: object) -> str:
    """Return JSON, with `Raw` text as it stands."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_json_name(name)}: {to_json(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_json, value)) + "]"
    if isinstance(value, bytes):
        return json.dumps(value.decode("latin-1"))
    return json.dumps(value)


def _json_name(name: str | bytes) -> str:
    return name if isinstance(name, Raw) else json.dumps(name.decode("latin-1") if isinstance(name, bytes) else name)


def _http_case(chance: random.Random, number: int, model: str, fields: Fields, changes: list[str]) -> Case:
    endpoint = chance.choice(("generate", "generate_stream"))
    fields = {**fields, "stream": endpoint == "generate_stream"} if chance.random() < 0.8 else fields
    data = generate_bytes(model, fields, endpoint)
    if chance.random() < 0.75:
        return Case(number, "http", f"{endpoint} {model}: {', '.join(changes) or 'good'}", data)
    body = data.partition(b"\r\n\r\n")[2]
    kind = chance.choice(sorted(_ENVELOPES))
    return _ENVELOPES[kind](chance, Case(number, "http", f"{kind}: {', '.join(changes)}", data), model, body)


Envelope = Callable[[random.Random, Case, str, bytes], Case]


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

# --- gRPC ----------------------------------------------------------------------------------------------------------


def grpc_bytes(model: str, client_id: str, fields: Mapping[str, Any]) -> bytes:
    """Return a serialised request; what is no input goes as a parameter."""
    return bytes(_message(model, client_id, fields).SerializeToString())


def _message(model: str, client_id: str, fields: Mapping[Any, Any]) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=model, id=client_id)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    inputs = wire.input_names()
    for given, value in fields.items():
        name = given if isinstance(given, str) and not isinstance(given, Raw) else "x" * min(len(given), 100)
        if name in inputs:
            dtype = inputs[name].dtype
            elements = value if isinstance(value, list) else [value]
            content = b"".join(_element(dtype, element) for element in elements)
            request.inputs.add(name=name, datatype=_DATATYPES.get(dtype, dtype), shape=[len(elements)])
            request.raw_input_contents.append(content)
        else:
            _add_parameter(request, name.encode("utf-8", "replace").decode(), value)
    return request


def _element(dtype: str, value: Any) -> bytes:
    if dtype == "STRING":
        text = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        return struct.pack("<I", len(text)) + text
    if dtype == "FP32":
        return struct.pack("<f", _as_number(value))
    if dtype == "BOOL":
        return bytes([bool(value)])
    low, high = _RANGES[dtype]
    return struct.pack(f"<{_PACKED[dtype]}", int(max(low, min(high, _as_number(value, bound=2.0**70)))))


def _as_number(value: Any, bound: float = 3e38) -> float:
    try:
        number = float(value)
    except (ValueError, TypeError, OverflowError):
        return float(len(str(value)) % 1_000)
    return max(-bound, min(bound, number)) if abs(number) != float("inf") or bound < 1e38 else number


def _add_parameter(request: service_pb2.ModelInferRequest, name: str, value: Any) -> None:
    if isinstance(value, bool):
        request.parameters[name].bool_param = value
    elif isinstance(value, int) and -(2**63) <= value < 2**63:
        request.parameters[name].int64_param = value
    elif isinstance(value, float):
        request.parameters[name].double_param = value
    else:
        request.parameters[name].string_param = str(value).encode("utf-8", "replace").decode()


def _grpc_case(chance: random.Random, number: int, model: str, fields: Fields, changes: list[str]) -> Case:
    request = _message(model, f"wire-{number}", fields)
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


def _odd_shape(chance: random.Random, request: Any) -> None:
    for tensor in request.inputs[:1]:
        del tensor.shape[:]
        tensor.shape.extend(chance.choice(([], [0], [-1], [2], [1, 1], [2**31], [2**62, 2**62], [1] * 100)))


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
        _add_parameter(request, name, chance.choice((1, -1, 2**62, True, "x", 0.5)))


_PROTOBUF: Mapping[str, Callable[[random.Random, Any], None]] = {
    "odd shape": _odd_shape,
    "odd datatype": _odd_datatype,
    "odd contents": _odd_contents,
    "odd names": _odd_names,
    "odd tensors": _odd_tensors,
    "odd parameters": _odd_parameters,
}
