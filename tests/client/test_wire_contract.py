"""The client's and the server's tables of names agree: they ship separately."""

from __future__ import annotations

import pytest

from backend.core import errors as backend_errors
from backend.wire import names as backend_wire
from client import wire

BACKEND_DATATYPES = {"BYTES": "STRING"}  # config.pbtxt's word for it


@pytest.mark.parametrize(
    ("table", "backend_fields"), [(wire.INPUTS, backend_wire.INPUTS), (wire.OUTPUTS, backend_wire.OUTPUTS)]
)
def test_tensors_have_the_servers_names_types_and_shapes(
    table: dict[str, wire.TensorSpec], backend_fields: tuple[backend_wire.Field, ...]
) -> None:
    served = {field.name: (field.dtype, field.dims) for field in backend_fields}
    for name, spec in table.items():
        assert served[name] == (BACKEND_DATATYPES.get(spec.datatype, spec.datatype), spec.dim), name


def test_the_client_reads_every_output() -> None:
    assert set(wire.OUTPUTS) == {field.name for field in backend_wire.OUTPUTS}


def test_models_and_parameters_are_the_servers() -> None:
    assert set(wire.MODELS) == set(backend_wire.MODELS)
    assert {wire.INSPECT, wire.TIMEOUT} <= set(backend_wire.PARAMETERS)


def test_error_codes_are_the_servers() -> None:
    subclasses: list[type[backend_errors.BrosError]] = [backend_errors.BrosError]
    subclasses += _descendants(backend_errors.BrosError)
    assert {error.code for error in subclasses} - {"CONFIG"} == set(wire.ERROR_CODES)  # CONFIG ends the server's start


def _descendants(error_type: type[backend_errors.BrosError]) -> list[type[backend_errors.BrosError]]:
    return [found for child in error_type.__subclasses__() for found in (child, *_descendants(child))]
