"""Bodies made from the OpenAPI document, and spoilt: every answer is a 2xx, or a 4xx with one of OpenAI's errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client import FakeServer
from front.app import make_app
from front.settings import Settings
from tests.front.door import CHAT_PATH, COMPLETIONS_PATH, error_of, opened

DOCUMENT = make_app(Settings()).openapi()
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"])},
        optional={"content": st.text(max_size=20) | JUNK, "name": st.text(max_size=5), "tool_calls": JUNK},
    ),
    min_size=1,
    max_size=3,
)


def schema_of(path: str) -> dict[str, Any]:
    content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]
    return dict(content["application/json"]["schema"])


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return values that a schema allows."""
    if "anyOf" in schema:
        return st.one_of(*map(values, schema["anyOf"]))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    makers: dict[str, Callable[[dict[str, Any]], st.SearchStrategy[Any]]] = {
        "null": lambda _: st.none(),
        "boolean": lambda _: st.booleans(),
        "integer": lambda s: st.integers(s.get("minimum", -(2**63)), min(s.get("maximum", 2**63 - 1), 2**63 - 1)),
        "number": lambda s: st.floats(s.get("minimum", -1e6), min(s.get("maximum", 1e6), 1e6)),
        "string": lambda s: st.text(min_size=s.get("minLength", 0), max_size=min(s.get("maxLength", 20), 20)),
        "array": lambda s: st.lists(values(s.get("items", {})), min_size=s.get("minItems", 0), max_size=3),
        "object": _objects,
    }
    return makers[schema["type"]](schema) if "type" in schema else JUNK


def _objects(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    fields = {name: values(its_schema) for name, its_schema in schema.get("properties", {}).items()}
    required = {name: fields.pop(name) for name in schema.get("required", ())}
    return st.fixed_dictionaries(required, optional=fields)


def spoilt(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return bodies that a schema allows, with up to two fields of junk put in."""
    fields = dict(schema["properties"])
    allowed = {name: values(its_schema) for name, its_schema in fields.items()}
    small = allowed | {
        "n": st.integers(1, 3),
        "max_tokens": st.integers(1, 5),
        "model": st.sampled_from(["bros", "bros_rt"]),
    }
    if "messages" in fields:
        small |= {"messages": MESSAGES, "max_completion_tokens": st.integers(1, 5)}
    required = {name: small.pop(name) for name in schema["required"]}
    bodies = st.fixed_dictionaries(required, optional=small)
    junk = st.dictionaries(st.sampled_from(sorted(fields)) | st.text(max_size=10), JUNK, max_size=2)
    return st.builds(lambda body, extra: body | extra, bodies, junk)


def check(path: str, body: dict[str, Any]) -> None:
    server = FakeServer()

    async def main() -> Any:
        async with opened(server) as (_, http):
            return await http.post(path, json=body)

    response = asyncio.run(main())
    assert response.status_code < 500, response.text
    if response.status_code >= 300:
        assert error_of(response)["message"]
    assert server.open_ids == set()


@pytest.mark.parametrize("path", [CHAT_PATH, COMPLETIONS_PATH])
@pytest.mark.parametrize("num_cases", [30, pytest.param(1500, marks=pytest.mark.slow)])
def test_no_body_is_answered_with_a_failure(path: str, num_cases: int) -> None:
    @settings(max_examples=num_cases)
    @given(spoilt(schema_of(path)))
    def run(body: dict[str, Any]) -> None:
        check(path, body)

    run()
