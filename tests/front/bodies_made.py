"""Strategies for `test_fuzz`: requests that the OpenAPI document allows, such with junk in them, and nonsense."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from tests.front.door import CHAT_PATH, COMPLETIONS_PATH

BODIES = {CHAT_PATH, COMPLETIONS_PATH}
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
SMALL = {"n": st.integers(1, 3), "max_tokens": st.integers(1, 5), "max_completion_tokens": st.integers(1, 5)}
WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
HEADERS = ("x-priority-class", "x-slo-ttft-ms", "x-llm-d-slo-tpot-ms", "authorization", "x-request-id")
DEEP = 100_000


@dataclass(frozen=True)
class Sent:
    """One request: the arguments of httpx2."""

    method: str
    url: str
    options: dict[str, Any] = field(default_factory=dict)


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return values that a schema allows."""
    if "anyOf" in schema:
        return st.one_of(*map(values, schema["anyOf"]))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    makers: dict[str, Callable[[dict[str, Any]], st.SearchStrategy[Any]]] = {
        "null": lambda _: st.none(),
        "boolean": lambda _: st.booleans(),
        "integer": lambda s: st.integers(s.get("minimum", -(2**63)), min(s.get("maximum", 2**63 - 1), 2**63 - 1)),
        "number": lambda s: st.floats(s.get("minimum", -1e6), min(s.get("maximum", 1e6), 1e6)),
        "string": lambda s: st.text(min_size=s.get("minLength", 0), max_size=min(s.get("maxLength", 20), 20)),
        "array": lambda s: st.lists(values(s.get("items", {})), min_size=s.get("minItems", 0), max_size=3),
        "object": _objects,
    }
    return makers[schema["type"]](schema) if schema.get("type") in makers else JUNK


def _objects(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    fields = {name: values(its_schema) for name, its_schema in schema.get("properties", {}).items()}
    required = {name: fields.pop(name) for name in schema.get("required", ())}
    return st.fixed_dictionaries(required, optional=fields)


def spoilt(schema: dict[str, Any], file_ids: Sequence[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Return bodies that a schema allows, small in what they ask for, with up to two fields of junk put in."""
    made = {name: values(its_schema) for name, its_schema in schema["properties"].items()}
    small = {name: strategy for name, strategy in SMALL.items() if name in made}
    whole = {
        "model": st.sampled_from(["bros", "bros_rt", "bros_be"]),
        "messages": MESSAGES,
        "input_file_id": st.sampled_from(sorted(file_ids)) | st.text(max_size=20),
    }
    small |= {name: strategy for name, strategy in whole.items() if name in made}
    made |= small
    required = {name: made.pop(name) for name in schema.get("required", ())}
    bodies = st.fixed_dictionaries(required, optional=made)
    junk = st.dictionaries(st.sampled_from(sorted(schema["properties"])) | st.text(max_size=10), JUNK, max_size=2)
    return st.builds(lambda body, extra: body | extra, bodies, junk)


def json_contents() -> st.SearchStrategy[dict[str, Any]]:
    """Return bodies that are no object of JSON: bytes, texts cut short, nesting without end, other media types."""
    whole = st.builds(json.dumps, JUNK).map(str.encode)
    cut = st.builds(lambda text, at: text[: len(text) * at // 8], whole, st.integers(1, 7))
    deep = st.sampled_from([b"[" * DEEP, b'{"messages":' * DEEP, b'{"n":' + b"9" * 5_000 + b"}", b'{"n": NaN}'])
    types = st.sampled_from(
        ["application/json", "application/json", "text/plain", "", "application/json; charset=\xff"]
    )
    return st.builds(
        lambda content, kind: {"content": content, "headers": {"content-type": kind.encode("latin-1")}},
        st.one_of(whole, cut, deep, st.binary(max_size=40)),
        types,
    )


def headers() -> st.SearchStrategy[dict[str, str]]:
    """Return headers that we read, with words of all kinds."""
    words = WORDS | st.sampled_from(["rt", "be", "1", "250", "-1", "nan", "inf", "1e999", "Bearer x"])
    return st.dictionaries(st.sampled_from(HEADERS), words, max_size=2)


def parameters(operation: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return query parameters that an operation names, right and wrong."""
    named = [each for each in operation.get("parameters", ()) if each["in"] == "query"]
    right = {each["name"]: values(each["schema"]).filter(lambda value: value is not None) for each in named}
    either = {name: strategy | st.text(max_size=20) for name, strategy in right.items()}
    return st.fixed_dictionaries({}, optional=either | {"nobody": st.text(max_size=5)})


def paths(path: str, operation: dict[str, Any], file_ids: Sequence[str]) -> st.SearchStrategy[str]:
    """Return the path with its parameters filled in: with ids that exist, and with ids that do not."""
    named = [each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"]
    odd = st.sampled_from(["..", "%2e%2e%2f", "%00", "%ff", "a" * 3000, "bros", "*", "?", "%2F"])
    word = st.sampled_from(sorted(file_ids)) | odd | WORDS.map(lambda text: "".join(filter(str.isalnum, text)) or "x")
    return st.builds(path.format, **dict.fromkeys(named, word)) if named else st.just(path)


def uploads() -> st.SearchStrategy[dict[str, Any]]:
    """Return forms: right, with parts missing or doubled, torn, or no form at all."""
    purpose = st.sampled_from(["batch", "batch", "vision", ""]) | st.text(max_size=9)
    content = st.binary(max_size=60)
    name = st.text(max_size=12)
    forms = st.builds(lambda p, n, c: {"files": {"purpose": (None, p), "file": (n or "x", c)}}, purpose, name, content)
    part = st.builds(
        lambda header, body: b"--X\r\n" + header + b"\r\n\r\n" + body + b"\r\n",
        st.sampled_from(
            [
                b'Content-Disposition: form-data; name="purpose"',
                b'Content-Disposition: form-data; name="file"; filename="a"',
                b'Content-Disposition: form-data; name="file"; filename="\xff\xfe"',
                b"Content-Disposition: form-data",
                b"nonsense",
            ]
        ),
        st.sampled_from([b"batch"]) | content,
    )
    ends = st.sampled_from([b"--X--\r\n", b"", b"--X"])
    kinds = st.sampled_from(
        ["multipart/form-data; boundary=X", "multipart/form-data", "multipart/form-data; boundary="]
    )
    torn = st.builds(
        lambda parts, end, kind: {"content": b"".join(parts) + end, "headers": {"content-type": kind}},
        st.lists(part, max_size=3),
        ends,
        kinds,
    )
    return st.one_of(forms, torn, json_contents())
