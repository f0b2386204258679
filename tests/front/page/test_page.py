"""The page: its headers, its view of the engine, and its behaviour in a browser."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client import FakeServer, colors
from client.transports.fake import FAKE_SNAPSHOT
from front.page.view import Watch
from front.settings import Settings
from tests.front.door import Door, listening, opened
from tests.front.page.chromium import BINARY, Page, browsing

STATIC = Path(__file__).resolve().parents[3] / "front" / "page" / "static"
in_a_browser = pytest.mark.skipif(BINARY is None, reason="no chromium: apt-get install chromium")
EVIL = "<img/src=x/onerror=document.title='pwned'><script>document.title='pwned'</script>"


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/icon.svg"])
def test_each_file_comes_with_a_strict_policy(path: str) -> None:
    response = Door().get(path)
    assert response.status_code == 200
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    assert "*" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"


def test_nothing_is_fetched_from_elsewhere() -> None:
    for path in STATIC.iterdir():
        found = re.findall(r"(?:https?:)?//[\w.]+\.\w+\S*", path.read_text())
        assert [url for url in found if url != 'http://www.w3.org/2000/svg"'] == [], path.name


def test_no_text_goes_into_the_page_as_html() -> None:
    script = (STATIC / "page.js").read_text()
    assert re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function", script) == []
    assert not re.search(r"<script(?! type=\"module\" src=)| on\w+=| style=", (STATIC / "index.html").read_text())


def test_colours_are_those_of_bros_top() -> None:
    css = dict(re.findall(r"--(\w+): (#\w+);", (STATIC / "page.css").read_text()))
    mine = (css["rt"], css["be"], css["taken"], css["free"])
    assert mine == (colors.RT_COLOR, colors.BE_COLOR, colors.ALARM_COLOR, colors.FREE_COLOR)


def test_the_view_holds_the_pool_and_no_name_of_a_request() -> None:
    response = Door().get("/snapshot")
    view = response.json()
    assert view["kv"]["block_size"] == FAKE_SNAPSHOT.kv.block_size
    assert view["requests_by_class"]["be"] == {"num_waiting": 3, "num_running": 0, "num_preempted": 1}
    assert "fake-1" not in response.text
    assert response.headers["cache-control"] == "no-store"


def test_the_view_asks_for_a_key_and_the_page_for_none(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text('{"key-of-mine": ["flex"]}')
    door = Door(settings=Settings(api_key_file=keys))
    assert door.get("/").status_code == 200
    assert door.get("/snapshot").status_code == 401
    assert door.get("/snapshot", Authorization="Bearer key-of-mine").status_code == 200


def test_many_watchers_cost_the_engine_one_look() -> None:
    server = FakeServer()

    async def main() -> None:
        async with opened(server) as (_, http):
            seen = await asyncio.gather(*(http.get("/snapshot") for _ in range(20)))
            assert [response.status_code for response in seen] == [200] * 20

    asyncio.run(main())
    assert len(server.calls) < 5


def test_a_look_that_fails_is_not_kept() -> None:
    looks = iter([RuntimeError("down"), FAKE_SNAPSHOT])

    async def inspect() -> Any:
        look = next(looks)
        if isinstance(look, Exception):
            raise look
        return look

    async def main() -> None:
        watch = Watch(inspect)
        with pytest.raises(RuntimeError):
            await watch.view()
        assert (await watch.view()).policy == "fake"

    asyncio.run(main())


@pytest.fixture(scope="module")
def server() -> FakeServer:
    return FakeServer(token_s=0.001)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, server: FakeServer) -> Iterator[Page]:
    with listening(server) as url, browsing(tmp_path_factory.mktemp("profile")) as page:
        page.call("Page.navigate", url=url)
        page.wait_for("document.readyState === 'complete' && document.getElementById('ask')")
        yield page


def say(page: Page, words: str, tier: str) -> None:
    """Send a message and wait until its answer is there."""
    page.evaluate(
        f"document.querySelector('input[value={tier}]').click(); document.getElementById('prompt').value = "
        f"{json.dumps(words)}; document.getElementById('send').click()"
    )
    page.wait_for("!document.getElementById('send').disabled")


@in_a_browser
def test_a_talk_streams_and_shows_its_speed(page: Page, server: FakeServer) -> None:
    say(page, "one two three", "priority")
    shown = page.evaluate("document.querySelector('.message.priority').textContent")
    assert shown.startswith("one two three one two")
    assert page.evaluate("document.getElementById('ttft').textContent").endswith(" ms")
    assert float(page.evaluate("document.getElementById('rate').textContent")) > 0
    chats = [call for call in server.calls if "messages" in call.inputs]
    assert chats[-1].inputs["priority_class"] == "rt"


@in_a_browser
def test_the_switch_chooses_the_class(page: Page, server: FakeServer) -> None:
    say(page, "hello there", "flex")
    chats = [call for call in server.calls if "messages" in call.inputs]
    assert chats[-1].inputs["priority_class"] == "be"
    assert page.evaluate("document.querySelectorAll('.message.flex').length") >= 1


@in_a_browser
def test_what_the_model_says_is_text(page: Page) -> None:
    say(page, EVIL, "priority")
    assert page.evaluate("[...document.querySelectorAll('.message.priority')].at(-1).textContent").startswith(EVIL)
    assert page.evaluate("document.querySelectorAll('#messages img, #messages script').length") == 0
    assert page.evaluate("document.title") == "BROS for Triton"


@in_a_browser
def test_the_pool_is_drawn_from_both_ends(page: Page) -> None:
    page.wait_for("document.getElementById('be-waiting').textContent === '3'")

    def color_at(block: int, height: float) -> str:
        where = f"Math.floor(({block} + 0.4) * c.width / 8), Math.floor({height} * c.height), 1, 1"
        image = f"(c => [...c.getContext('2d').getImageData({where}).data])(document.getElementById('kv'))"
        data = page.evaluate(image)
        return "#" + "".join(f"{value:02x}" for value in data[:3])

    assert color_at(0, 0.5) == colors.RT_COLOR
    assert (color_at(2, 0.1), color_at(2, 0.35), color_at(2, 0.8)) == (
        colors.BE_COLOR,
        colors.FREE_COLOR,
        colors.RT_COLOR,
    )
    assert color_at(3, 0.5) == colors.BE_COLOR
    assert color_at(7, 0.5) == colors.FREE_COLOR


@in_a_browser
def test_nothing_went_wrong_in_the_page(page: Page) -> None:
    page.wait_for("document.getElementById('rt-running').textContent === '1'")
    assert page.problems == []
    assert page.evaluate("document.getElementById('trouble').textContent") == ""
