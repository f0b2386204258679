"""NVIDIA Dynamo for real: two workers behind its frontend, one killed in mid-stream. Needs `make serve-many` once."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator

import httpx2 as httpx
import pytest

from tests.backend.dynamo.running import Many, needs_dynamo, serving

pytestmark = needs_dynamo


@pytest.fixture(scope="module")
def many() -> Iterator[Many]:
    with serving("--replicas", "2") as many:
        yield many


def stream(many: Many, num_tokens: int, priority_class: str = "rt") -> Iterator[dict[str, object]]:
    body = {"model": "bros", "prompt": "Hello", "max_tokens": num_tokens, "stream": True}
    body |= {"stream_options": {"include_usage": True}}
    headers = {"x-dynamo-meta-policy-class": priority_class}
    with httpx.stream("POST", f"{many.url}/v1/completions", json=body, headers=headers, timeout=60.0) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


def test_a_stream_goes_on_when_its_worker_is_killed(many: Many) -> None:
    """Whichever of the two serves it: both are killed in turn, the second when the first is back."""
    for pid in list(many.worker_pids):
        chunks = stream(many, 600)
        texts = [next(chunks) for _ in range(5)]
        os.kill(pid, signal.SIGKILL)
        texts += chunks
        usage = texts[-1]["usage"]
        assert isinstance(usage, dict)
        assert usage["completion_tokens"] == 600
        text = "".join(chunk["choices"][0]["text"] for chunk in texts[:-1])  # type: ignore[index]
        rest, num_words = re.subn(r" t\d{3,5}", "", text)
        assert 595 <= num_words + len(rest) <= 600  # a token is a word or a byte, and some bytes are no text
        many.wait_for_instances(2)


def test_a_class_that_does_not_exist_is_the_clients_error(many: Many) -> None:
    body = {"model": "bros", "prompt": "Hello", "max_tokens": 4}
    answer = httpx.post(f"{many.url}/v1/completions", json=body, headers={"x-dynamo-meta-policy-class": "vip"})
    assert answer.status_code == 400
    assert "vip" in answer.text


@pytest.mark.parametrize(("fields", "named"), [({"n": 2}, "n: 2"), ({"logprobs": 2}, "num_top_log_probs")])
def test_what_an_engine_lacks_is_a_400_that_names_it(many: Many, fields: dict[str, int], named: str) -> None:
    body = {"model": "bros", "prompt": "Hello", "max_tokens": 4, **fields}
    answer = httpx.post(f"{many.url}/v1/completions", json=body)
    assert (answer.status_code, named in answer.text) == (400, True)


def test_both_classes_are_served_and_counted(many: Many) -> None:
    for priority_class in ("rt", "be"):
        assert len(list(stream(many, 3, priority_class))) >= 2
    metrics = httpx.get(f"{many.url}/metrics").text
    for priority_class in ("rt", "be"):
        pattern = rf'router_admission_received_total\{{[^}}]*policy_class="{priority_class}"[^}}]*\}} (\d+)'
        found = re.search(pattern, metrics)
        assert found is not None
        assert int(found[1]) > 0
