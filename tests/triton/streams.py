"""A gRPC stream that keeps every response and every mark of finality, which client libraries hide."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc

from backend.wire import names as wire
from tests.backend.bad_requests import tensor

_DATATYPES = {"STRING": "BYTES"}
_CONTENTS = {
    "STRING": "bytes_contents",
    "INT32": "int_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "BOOL": "bool_contents",
}


@dataclass
class Answer:
    """All that came back for one request."""

    responses: list[InferResult] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    num_finals: int = 0
    is_final: threading.Event = field(default_factory=threading.Event)

    @property
    def text(self) -> str:
        return "".join(str(response.as_numpy("text_output")[0], "utf-8") for response in self.responses)

    @property
    def token_ids(self) -> list[int]:
        return [int(token) for response in self.responses for token in response.as_numpy("output_ids")]

    @property
    def finish_reason(self) -> str | None:
        value = self.output("finish_reason")
        return None if value is None else str(value, "utf-8")

    def output(self, name: str) -> Any:
        """Return the value of an output of the last response; None where it is not there."""
        values = self.responses[-1].as_numpy(name) if self.responses else None
        return None if values is None else values[0]


class Stream:
    """One gRPC stream with any number of requests. Leaving its `with` block cancels the open requests."""

    def __init__(self, url: str, **headers: str) -> None:
        self._channel = grpc.insecure_channel(url, options=[("grpc.max_send_message_length", -1)])
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: defaultdict[str, Answer] = defaultdict(Answer)
        self._num_sent = 0
        stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._call = stub.ModelStreamInfer(iter(self._requests.get, None), metadata=tuple(headers.items()))
        self._reader = threading.Thread(target=self._read, args=(self._call,), daemon=True)
        self._reader.start()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Break the stream off: the server cancels its requests."""
        self._call.cancel()
        self._requests.put(None)
        self._reader.join()
        self._channel.close()

    def send(self, inputs: dict[str, Any], model: str = "bros", **parameters: Any) -> Answer:
        """Send a request; its answer fills as responses come. `timeout` becomes Triton's own request timeout."""
        self._num_sent += 1
        request = service_pb2.ModelInferRequest(model_name=model, id=f"r{self._num_sent}")
        for name, value in inputs.items():
            _add_input(request, name, value)
        for name, value in {"triton_enable_empty_final_response": True, **parameters}.items():
            kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
            setattr(request.parameters[name], kind, value)
        answer = self._answers[request.id]
        self._requests.put(request)
        return answer

    def ask(self, inputs: dict[str, Any], model: str = "bros", timeout_s: float = 60.0, **parameters: Any) -> Answer:
        """Send a request and wait for the end of its answer."""
        answer = self.send(inputs, model, **parameters)
        assert answer.is_final.wait(timeout_s), f"no end within {timeout_s} s: {answer}"
        return answer

    def _read(self, responses: Iterator[Any]) -> None:
        try:
            for message in responses:
                self._note(message)
        except grpc.RpcError as error:
            for answer in self._answers.values():
                if not answer.is_final.is_set():
                    answer.errors.append(f"stream: {error}")
                    answer.is_final.set()

    def _note(self, message: Any) -> None:
        response = message.infer_response
        answer = self._answers[response.id]
        if message.error_message:
            answer.errors.append(message.error_message)
        elif response.outputs:
            answer.responses.append(InferResult(response))
        is_final = response.parameters["triton_final_response"].bool_param
        answer.num_finals += is_final
        if is_final or message.error_message:
            answer.is_final.set()


def _add_input(request: Any, name: str, value: Any) -> None:
    array = tensor(name, value)
    dtype = wire.input_names()[name].dtype
    added = request.inputs.add(name=name, datatype=_DATATYPES.get(dtype, dtype), shape=np.shape(array))
    getattr(added.contents, _CONTENTS[dtype]).extend(array.tolist())
