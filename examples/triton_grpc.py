"""Stream with plain tritonclient; three ways to say the class.  python examples/triton_grpc.py [host:port]"""

import queue
import sys
from contextlib import suppress
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

url = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001"
dtypes: dict[str, Any] = {"BYTES": object, "INT32": np.int32, "BOOL": np.bool_, "FP32": np.float32}


def tensor(name: str, value: object, datatype: str) -> triton.InferInput:
    """Return an input of one element."""
    infer_input = triton.InferInput(name, [1], datatype)
    return infer_input.set_data_from_numpy(np.array([value], dtype=dtypes[datatype]))


prompt = [
    tensor("text_input", "The sea is", "BYTES"),
    tensor("max_tokens", 16, "INT32"),
    tensor("stream", True, "BOOL"),
]
real_time = [tensor("priority_class", "rt", "BYTES"), tensor("ttft_slo_ms", 500, "FP32")]
request_paths = {
    "input tensor": ("bros", prompt + real_time, {}),
    "request parameter": ("bros", prompt, {"priority_class": "be"}),
    "model name": ("bros_rt", prompt, {}),
}

for request_path, (model, inputs, parameters) in request_paths.items():
    responses: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton.InferenceServerClient(url) as client:
        client.start_stream(callback=lambda result, error, put=responses.put: put((result, error)))
        with suppress(InferenceServerException):  # of a stream that has failed; the callback has the reason
            client.async_stream_infer(model, inputs, parameters=parameters)
        print(f"class by {request_path}:", end="", flush=True)
        while True:
            result, error = responses.get()
            if error:
                raise SystemExit(str(error))
            print(result.as_numpy("text_output")[0].decode(), end="", flush=True)
            if result.as_numpy("finish_reason") is not None:  # only the last response has one
                break
        client.stop_stream(cancel_requests=True)
    print()
