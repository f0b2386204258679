"""Our own mistakes."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from client import FakeServer
from front import routes
from tests.front.door import Door, error_of


class Broken(FakeServer):
    """Fails in a way that nobody expects, before its first response or after it."""

    def __init__(self, num_good: int) -> None:
        super().__init__()
        self.num_good = num_good

    def _responses(self, _: Any) -> Any:
        for number in range(self.num_good):
            yield {"text_output": ["a"], "output_ids": [number]}
        raise RuntimeError("a\nsecret " + "x" * 5000)


def test_a_mistake_is_one_line_with_the_name_that_the_client_has(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    response = Door(Broken(0)).chat()
    assert (response.status_code, error_of(response)["code"]) == (500, "server_error")
    (record,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
    line = record.getMessage()
    assert response.headers["x-request-id"] in line
    assert response.headers["x-request-id"] in error_of(response)["message"]
    assert (len(line) < 1000, "\n" in line, record.exc_info) == (True, False, None)
    assert "secret" not in response.text


def test_a_mistake_in_a_stream_is_one_line_and_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    response = Door(Broken(1)).chat(stream=True)
    assert "[DONE]" not in response.text
    assert '"code":"server_error"' in response.text.split("\n\n")[-2]
    assert len([each for each in caplog.records if each.levelno >= logging.ERROR]) == 1


def test_the_traceback_is_there_for_who_asks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="front.failures")
    Door(Broken(0)).chat()
    assert any(each.exc_info for each in caplog.records)
    assert routes.CHAT.path in caplog.text
