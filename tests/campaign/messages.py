"""One request as bytes, on either request path; its fields may hold anything."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

from backend.wire import names as wire
from tests.campaign.values import Raw

Fields = dict[str, Any]
_DATATYPES = {"STRING": "BYTES"}
_PACKED = {"INT32": "i", "UINT64": "Q", "FP32": "f", "BOOL": "?"}
_RANGES = {"INT32": (-(2**31), 2**31 - 1), "UINT64": (0, 2**64 - 1)}


@dataclass(frozen=True, slots=True)
class Case:
    """One request as bytes. `is_whole` False: the server must wait for more, so that its silence is right."""

    number: int
    request_path: str  # grpc or http
    words: str  # the changes made to it
    data: bytes
    is_whole: bool = True


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


def grpc_bytes(model: str, client_id: str, fields: Mapping[str, Any]) -> bytes:
    """Return a serialised request; a field that is no input goes as a parameter."""
    return bytes(to_message(model, client_id, fields).SerializeToString())


def to_message(model: str, client_id: str, fields: Mapping[Any, Any]) -> service_pb2.ModelInferRequest:
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
            add_parameter(request, name.encode("utf-8", "replace").decode(), value)
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


def add_parameter(request: Any, name: str, value: Any) -> None:
    if isinstance(value, bool):
        request.parameters[name].bool_param = value
    elif isinstance(value, int) and -(2**63) <= value < 2**63:
        request.parameters[name].int64_param = value
    elif isinstance(value, float):
        request.parameters[name].double_param = value
    else:
        request.parameters[name].string_param = str(value).encode("utf-8", "replace").decode()
