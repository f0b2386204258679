"""Names on the wire: models, input and output tensors, request parameters, and the ports of a server.

`backend/wire/names.py` and `model_repository/*/config.pbtxt` have the same names and ship separately; a contract test
compares them. Times are milliseconds here, and seconds everywhere else in this package.

Introspection: a request to model `bros` with the parameter `inspect` = `engine` and no prompt gets one response. Its
`text_output` is a JSON object, `client.snapshot.Snapshot` on this side. The server refuses it if its configuration
has it off, which is the default beyond loopback. `counts`, which names no request, is always answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MODEL = "bros"  # the class is said per request
MODEL_RT = "bros_rt"  # every request is real-time
MODEL_BE = "bros_be"  # every request is best-effort
MODELS = (MODEL, MODEL_RT, MODEL_BE)

INSPECT = "inspect"  # request parameter
INSPECT_ENGINE = "engine"  # its value for the whole snapshot
INSPECT_COUNTS = "counts"  # its value for one without requests and facts
MAX_S = 30 * 24 * 3600  # the longest time that a request may say, in seconds
TIMEOUT = "timeout"  # request parameter of the generate endpoints: microseconds

DEFAULT_GRPC_URL = "grpc://127.0.0.1:8001"
DEFAULT_HTTP_URL = "http://127.0.0.1:8000"
DEFAULT_METRICS_URL = "http://127.0.0.1:8002/metrics"

Datatype = Literal["BYTES", "BOOL", "INT32", "UINT64", "FP32"]  # as Triton's protocol spells them


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Type and shape of a tensor: `dim` is 1 for a scalar and -1 for a list."""

    datatype: Datatype
    dim: Literal[1, -1] = 1


INPUTS: dict[str, TensorSpec] = {
    "text_input": TensorSpec("BYTES"),
    "messages": TensorSpec("BYTES"),
    "tools": TensorSpec("BYTES"),
    "input_ids": TensorSpec("INT32", -1),
    "priority_class": TensorSpec("BYTES"),
    "ttft_slo_ms": TensorSpec("FP32"),
    "tpot_slo_ms": TensorSpec("FP32"),
    "itl_slo_ms": TensorSpec("FP32"),
    "deadline_ms": TensorSpec("FP32"),
    "cache_salt": TensorSpec("BYTES"),
    "max_tokens": TensorSpec("INT32"),
    "min_tokens": TensorSpec("INT32"),
    "stream": TensorSpec("BOOL"),
    "temperature": TensorSpec("FP32"),
    "top_k": TensorSpec("INT32"),
    "top_p": TensorSpec("FP32"),
    "min_p": TensorSpec("FP32"),
    "repetition_penalty": TensorSpec("FP32"),
    "presence_penalty": TensorSpec("FP32"),
    "frequency_penalty": TensorSpec("FP32"),
    "seed": TensorSpec("UINT64"),
    "stop_words": TensorSpec("BYTES", -1),
    "ignore_eos": TensorSpec("BOOL"),
    "json_schema": TensorSpec("BYTES"),
    "exclude_input_in_output": TensorSpec("BOOL"),
    "return_log_probs": TensorSpec("BOOL"),
    "num_top_log_probs": TensorSpec("INT32"),
    "return_metrics": TensorSpec("BOOL"),
}
"""The parameters that this client sends; the backend accepts more names, for other clients."""

OUTPUTS: dict[str, TensorSpec] = {
    "text_output": TensorSpec("BYTES", -1),
    "output_ids": TensorSpec("INT32", -1),
    "finish_reason": TensorSpec("BYTES"),
    "log_probs": TensorSpec("FP32", -1),
    "top_ids": TensorSpec("INT32", -1),
    "top_log_probs": TensorSpec("FP32", -1),
    "ttft_ms": TensorSpec("FP32"),
    "tpot_ms": TensorSpec("FP32"),
    "queue_ms": TensorSpec("FP32"),
    "num_preemptions": TensorSpec("INT32"),
    "num_input_tokens": TensorSpec("INT32"),
    "num_output_tokens": TensorSpec("INT32"),
    "num_cached_tokens": TensorSpec("INT32"),
    "hopeless_slo": TensorSpec("BOOL"),
}

ERROR_CODES = ("INVALID_REQUEST", "TOO_LARGE", "OVERLOADED", "CANCELLED", "ENGINE_DOWN", "EXECUTOR_FAILED", "INTERNAL")
"""Codes that stand in front of an error's message (`OVERLOADED: be queue full; retry_after_ms=200`)."""
