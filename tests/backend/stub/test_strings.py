"""A tensor of strings is decoded as the Python backend does, but not further than a request may need."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.stub.strings import count_keys, decode_strings


def encode(*strings: bytes) -> NDArray[Any]:
    content = b"".join(struct.pack("<I", len(string)) + string for string in strings)
    return np.frombuffer(content, np.uint8)


@pytest.mark.parametrize("strings", [[], [b""], [b"a"], [b"", b"two", b"\xff\0"]])
def test_strings_come_as_they_were_sent(strings: list[bytes]) -> None:
    decoded = decode_strings(3, encode(*strings)).reshape([len(strings)])
    assert decoded.tolist() == strings


def test_more_strings_than_allowed_keep_their_number_and_are_not_decoded() -> None:
    decoded = decode_strings(3, encode(b"a", b"b", b"c", b"d")).reshape([4])
    assert decoded.size == 4
    assert decoded.tolist() == [b""] * 4


def test_a_length_beyond_the_buffer_ends_the_search() -> None:
    assert decode_strings(3, np.frombuffer(b"\xff\0\0\0ab", np.uint8)).reshape([1]).tolist() == [b"ab"]


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": "b"},
        {"a\\": 1, "b\\\\": 2, '"': 3},
        {"a": 'x":y', "b": '\\":'},
        {"a:": ['":']},
        {"a": {"b": 1, '":': 2}},
    ],
    ids=str,
)
def test_keys_are_counted_without_decoding(value: dict[str, Any]) -> None:
    text = json.dumps(value, separators=(",", ":"))
    keys: list[str] = []
    json.loads(text, object_pairs_hook=lambda pairs: keys.extend(key for key, _ in pairs))
    assert count_keys(text) == len(keys)
