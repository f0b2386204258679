"""Names of a door, and pages of other sites, which may not use it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from front.settings import Settings
from tests.front.door import Door, error_of

LOOPBACK = Settings()
LISTED = Settings(allowed_hosts=("chat.example.com",))
OPEN = Settings(host="0.0.0.0")
OPEN_LISTED = Settings(host="0.0.0.0", allowed_hosts=("chat.example.com",))
OWN = "http://127.0.0.1:8080"


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "LOCALHOST:8080", "app.localhost", "[::1]:8080"])
def test_a_door_on_loopback_answers_to_names_of_loopback(host: str) -> None:
    assert Door(settings=LOOPBACK).chat({"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "", "[", "127.0.0.1.x"]
)
@pytest.mark.parametrize("settings", [LOOPBACK, LISTED, OPEN_LISTED], ids=["loopback", "listed", "open"])
def test_a_name_that_leads_here_by_rebinding_is_refused(host: str, settings: Settings) -> None:
    door = Door(settings=settings)
    for response in (door.chat({"host": host}), door.get("/snapshot", host=host)):
        assert (response.status_code, error_of(response)["code"]) == (403, "origin_not_allowed")
        assert "--allow-host" in error_of(response)["message"]
    assert door.server.calls == []


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        (LISTED, "Chat.Example.com"),
        (OPEN_LISTED, "chat.example.com:8080"),
        (OPEN, "bros.default.svc"),
        (OPEN, "10.0.0.7"),
    ],
)
def test_a_name_that_the_operator_lists_or_leaves_open_is_answered(settings: Settings, host: str) -> None:
    assert Door(settings=settings).chat({"host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1:3000", "null", "https://127.0.0.1", "http://["]
)
@pytest.mark.parametrize("settings", [LOOPBACK, OPEN], ids=["loopback", "open"])
def test_a_page_of_another_site_is_refused(origin: str, settings: Settings) -> None:
    door = Door(settings=settings)
    response = door.chat({"host": "127.0.0.1:8080", "origin": origin})
    assert (response.status_code, error_of(response)["type"]) == (403, "permission_error")
    assert door.server.calls == []


@pytest.mark.parametrize(
    ("settings", "host", "origin"),
    [
        (LOOPBACK, "127.0.0.1:8080", OWN),
        (LOOPBACK, "localhost", "http://localhost:80"),
        (OPEN, "Chat.example.com", "https://chat.example.com"),
        (LISTED, "127.0.0.1:8080", "https://chat.example.com"),
    ],
)
def test_a_page_of_this_door_and_of_a_listed_name_may_ask(settings: Settings, host: str, origin: str) -> None:
    assert Door(settings=settings).chat({"host": host, "origin": origin}).status_code == 200


def test_where_keys_are_asked_for_a_key_is_what_counts(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"sk-chat-12345": ["flex"]}))
    door = Door(settings=Settings(api_key_file=keys))
    strange = {"host": "evil.example", "origin": "http://evil.example"}
    assert door.chat(strange | {"Authorization": "Bearer sk-chat-12345"}).status_code == 200
    assert door.chat(strange).status_code == 401


def test_a_cross_site_upload_and_a_cancel_are_refused_before_they_are_read(tmp_path: Path) -> None:
    door = Door(settings=Settings(data_dir=tmp_path))
    headers = {"origin": "http://evil.example"}
    files = {"file": ("in.jsonl", b"x"), "purpose": (None, "batch")}
    assert door.send("POST", "/v1/files", files=files, headers=headers).status_code == 403
    assert door.send("POST", "/v1/batches/x/cancel", headers=headers).status_code == 403
