"""A `triton_python_backend_utils` made by hand, as strict as the real one where that ends servers."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.wire import names as wire
from tests.backend.bad_requests import tensor
from tests.backend.serving import WAIT_S

FINAL = 1


class Tensor:
    """A named array."""

    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> NDArray[Any]:
        return self._array


class TritonError(Exception):
    """An error with a status."""

    INTERNAL, INVALID_ARG, UNAVAILABLE, CANCELLED = "INTERNAL", "INVALID_ARG", "UNAVAILABLE", "CANCELLED"

    def __init__(self, message: str, status: str) -> None:
        super().__init__(message)
        self.status = status


class TritonModelException(Exception):  # Triton's name
    """What every call into Triton may raise."""


class InferenceResponse:
    """Tensors or an error."""

    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self.outputs = {tensor.name(): tensor.as_numpy() for tensor in output_tensors or []}
        self.error = error
        undeclared = set(self.outputs) - {field.name for field in wire.OUTPUTS}
        assert not undeclared, f"Triton drops undeclared outputs: {undeclared}"


class Sender:
    """A response sender. After the final flag `send` raises, and `is_cancelled` would end a server: both are noted."""

    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.is_gone = False
        self.num_finals = 0
        self.misuses: list[str] = []
        self._changed = threading.Condition()

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        with self._changed:
            if self.num_finals:
                self.misuses.append("send after the final flag")
                raise TritonModelException("Response sender has been closed.")
            if response is not None:
                self.responses.append(response)
            self.num_finals += flags == FINAL
            self._changed.notify_all()

    def is_cancelled(self) -> bool:
        if self.num_finals:
            self.misuses.append("is_cancelled after the final flag: the server is dead")
        return self.is_gone

    def wait(self, num_responses: int = 0) -> Sender:
        """Wait for this many responses, or for the end."""
        with self._changed:
            done = self._changed.wait_for(
                lambda: self.num_finals or (num_responses and len(self.responses) >= num_responses), WAIT_S
            )
        assert done, "the sender was not heard of again"
        return self

    @property
    def text(self) -> str:
        return b"".join(response.outputs["text_output"][0] for response in self.responses).decode()


class Request:
    """A request as Triton hands it over."""

    def __init__(self, inputs: dict[str, Any], parameters: dict[str, Any] | None = None, timeout_us: int = 0) -> None:
        self.sender = Sender()
        self._inputs = [Tensor(name, tensor(name, value)) for name, value in inputs.items()]
        self._parameters = parameters or {}
        self._timeout_us = timeout_us

    def get_response_sender(self) -> Sender:
        return self.sender

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def parameters(self) -> str:
        return json.dumps(self._parameters)

    def request_id(self) -> str:
        return "a7"

    def timeout(self) -> int:
        return self._timeout_us


class MetricFamily:
    """A family whose names and kinds are checked as the server should: a wrong one ends it."""

    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
    all: dict[str, MetricFamily] = {}  # noqa: RUF012  # what the server keeps

    def __init__(self, name: str, description: str, kind: str) -> None:
        assert name.replace("_", "a").isalnum(), f"this name ends the server: {name}"
        assert description
        self.kind = kind
        self.series: dict[str, Series] = {}
        MetricFamily.all[name] = self

    def Metric(self, labels: dict[str, str], buckets: list[float] | None = None) -> Series:  # Triton's name
        assert (buckets is not None) == (self.kind == self.HISTOGRAM)
        assert all(isinstance(value, str) for value in labels.values())
        assert not buckets or buckets == sorted(set(buckets))
        return self.series.setdefault(json.dumps(labels, sort_keys=True), Series(self.kind))


class Series:
    """One time series."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.value = 0.0
        self.observations: list[float] = []

    def increment(self, amount: float) -> None:
        assert self.kind != MetricFamily.HISTOGRAM
        assert amount >= 0.0 or self.kind == MetricFamily.GAUGE
        self.value += amount

    def set(self, value: float) -> None:
        assert self.kind == MetricFamily.GAUGE
        self.value = value

    def observe(self, value: float) -> None:
        assert self.kind == MetricFamily.HISTOGRAM
        self.observations.append(value)


def make_module() -> SimpleNamespace:
    """Return what `import triton_python_backend_utils` gives."""
    MetricFamily.all = {}
    logged: list[str] = []
    return SimpleNamespace(
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
        InferenceResponse=InferenceResponse,
        MetricFamily=MetricFamily,
        Tensor=Tensor,
        TritonError=TritonError,
        TritonModelException=TritonModelException,
        Logger=SimpleNamespace(
            log_info=logged.append, log_warn=logged.append, log_error=logged.append, log_verbose=logged.append
        ),
        logged=logged,
    )


def make_args(model: str, directory: str) -> dict[str, str]:
    """Return what `initialize` gets, with the parameters that the model's config.pbtxt states."""
    reports = "true" if model == "bros" else "false"
    parameters = {
        wire.MODEL_CLASS: wire.MODELS[model],
        wire.MODEL_MAX_INFLIGHT: "2" if model == "bros_be" else "0",
        wire.MODEL_REPORTS_METRICS: reports,
    }
    config = {"parameters": {key: {"string_value": value} for key, value in parameters.items()}}
    return {"model_name": model, "model_repository": directory, "model_config": json.dumps(config)}


def values(array: NDArray[Any]) -> list[Any]:
    """Return an output's values as Python has them."""
    return [value.decode() if isinstance(value, bytes) else value for value in np.asarray(array).tolist()]
