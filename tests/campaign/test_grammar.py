"""The grammar: the same cases from the same seed, whole requests, and every kind of change among them."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from tritonclient.grpc import service_pb2

from tests.campaign.grammar import MUTATIONS, make_case
from tests.campaign.messages import generate_bytes, grpc_bytes, http_bytes, to_json
from tests.campaign.values import HALF_EMOJI, HOSTILE, Raw, nested

NUM = 400


def test_a_case_is_made_by_seed_and_number_alone() -> None:
    assert [make_case(3, number) for number in range(50)] == [make_case(3, number) for number in range(50)]
    assert make_case(3, 7) != make_case(4, 7)


def test_both_request_paths_and_every_change_come_up() -> None:
    cases = [make_case(0, number) for number in range(NUM)]
    request_paths = Counter(case.request_path for case in cases)
    assert min(request_paths["grpc"], request_paths["http"]) > NUM / 4
    words = " ".join(case.words for case in cases)
    assert [name for name in MUTATIONS if name not in words] == []
    assert 0 < sum(not case.is_whole for case in cases) < NUM / 4


def test_some_cases_are_good_requests() -> None:
    good = [case for case in (make_case(0, number) for number in range(NUM)) if case.words.endswith(": good")]
    assert {case.request_path for case in good} == {"grpc", "http"}


def test_a_request_over_grpc_is_a_message_that_says_what_was_asked() -> None:
    message = service_pb2.ModelInferRequest.FromString(grpc_bytes("bros", "me", {"text_input": "hi", "frob": 7}))
    assert (message.model_name, message.id, message.inputs[0].name) == ("bros", "me", "text_input")
    assert message.raw_input_contents[0] == b"\x02\0\0\0hi"
    assert message.parameters["frob"].int64_param == 7


@pytest.mark.parametrize("value", HOSTILE)
def test_any_value_can_be_said_on_both_request_paths(value: object) -> None:
    fields = dict.fromkeys(("text_input", "max_tokens", "seed", "top_p", "stream", "frob"), value)
    assert generate_bytes("bros", fields).startswith(b"POST /v2/models/bros/generate_stream HTTP/1.1\r\n")
    assert len(service_pb2.ModelInferRequest.FromString(grpc_bytes("bros", "x", fields)).inputs) == 5


def test_json_carries_what_python_cannot_hold() -> None:
    assert to_json({"a": HALF_EMOJI, "b": [Raw("1e400")], "c": "é"}) == '{"a": "\\ud83d", "b": [1e400], "c": "\\u00e9"}'
    assert json.loads(nested(5)) == [[[[[]]]]]


def test_the_length_in_a_head_can_lie() -> None:
    assert b"Content-Length: 9\r\n\r\nabc" in http_bytes("POST", "/", b"abc", length=9)
