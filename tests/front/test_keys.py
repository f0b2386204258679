"""Who may ask, and in which classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.requests import Request

from client.openai.tiers import Rule
from front.keys import ANYONE, Caller, KeyFileError, client_of, open_keys
from front.settings import Settings
from tests.front.door import Door, error_of

CHAT_KEY, JOB_KEY, FAST_KEY = "sk-chat-12345", "sk-jobs-12345", "sk-fast-12345"


@pytest.fixture
def door(tmp_path: Path) -> Door:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({CHAT_KEY: ["priority", "default"], JOB_KEY: ["flex"], FAST_KEY: ["priority"]}))
    return Door(settings=Settings(api_key_file=path))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "headers", [{}, bearer("sk-nobody-1"), {"Authorization": CHAT_KEY}, {"Authorization": "Basic x"}]
)
def test_who_has_no_key_is_told_so(door: Door, headers: dict[str, str]) -> None:
    for response in (door.chat(headers), door.send("GET", "/v1/models", headers=headers)):
        assert response.status_code == 401
        assert error_of(response)["code"] == "invalid_api_key"
        assert CHAT_KEY not in response.text
    assert door.server.calls == []


def test_health_asks_for_no_key(door: Door) -> None:
    assert door.get("/health").status_code == 200


def test_a_key_has_the_tiers_that_the_file_names(door: Door) -> None:
    assert door.chat(bearer(CHAT_KEY), service_tier="priority").json()["service_tier"] == "priority"
    assert door.chat(bearer(JOB_KEY)).json()["service_tier"] == "default"
    refused = door.chat(bearer(JOB_KEY), service_tier="priority")
    assert (refused.status_code, error_of(refused)["code"]) == (403, "tier_not_allowed")


@pytest.mark.parametrize("fields", [{}, {"service_tier": "auto"}])
def test_a_key_with_one_class_gets_it_unasked_and_the_answer_says_so(door: Door, fields: dict[str, str]) -> None:
    assert door.chat(bearer(FAST_KEY), **fields).json()["service_tier"] == "priority"
    assert door.inputs["priority_class"] == "rt"


def test_a_key_with_one_class_does_not_get_the_default_by_its_name(door: Door) -> None:
    assert door.chat(bearer(FAST_KEY), service_tier="default").status_code == 403


@pytest.mark.parametrize("headers", [{"x-priority-class": "rt"}, {}])
def test_no_other_road_leads_to_a_class_that_a_key_has_not(door: Door, headers: dict[str, str]) -> None:
    model = "bros" if headers else "bros_rt"
    assert door.chat(bearer(JOB_KEY) | headers, model=model).status_code == 403


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read the API keys"),
        ("[]", "is not an object of keys"),
        ("{}", "holds no API key"),
        ('{"short": ["flex"]}', "key 0 is not 8 or more"),
        ('{"sk-long-enough": []}', "key 0: no tier"),
        ('{"sk-long-enough": ["gold"]}', "key 0: 'gold' is none of"),
        ('{"sk-long-enough": ["flex"], "sk-long-enough": ["priority"]}', "has a key twice"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_line(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "keys.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(KeyFileError, match=words) as caught:
        open_keys(path, "be")
    assert "sk-long-enough" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_a_file_that_everybody_may_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    path = tmp_path / "keys.json"
    path.write_text('{"sk-long-enough": ["flex"]}')
    path.chmod(mode)
    open_keys(path, "be")
    assert ("everybody on this machine may read the API keys" in caplog.text) is (mode == 0o644)


@pytest.mark.parametrize(
    ("caller", "host", "client"),
    [
        (ANYONE, "10.0.0.1", "10.0.0.1"),
        (ANYONE, "2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        (ANYONE, "fe80::1%eth0", "fe80::/64"),
        (ANYONE, "::ffff:10.0.0.1", "10.0.0.1"),
        (ANYONE, "10.0.0.1:5000", "10.0.0.1"),
        (ANYONE, "[2001:db8:1:2:3::4]:5000", "2001:db8:1:2::/64"),
        ("3f", "10.0.0.1", "3f"),
    ],
)
def test_a_client_is_a_key_or_else_an_address(caller: str, host: str, client: str) -> None:
    request = Request({"type": "http", "client": (host, 1)})
    assert client_of(request, Caller(caller, Rule("be"))) == client
