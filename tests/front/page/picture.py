"""The README's picture of the page: `python -m tests.front.page.picture http://127.0.0.1:8080 docs/img/page.png`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.front.page.chromium import Page, browsing

NUM_LOAD = 16  # best-effort requests behind the talk
_HIGHER = """(load => {
    load.value = %d;
    load.dispatchEvent(new Event('input'));
    load.dispatchEvent(new Event('change'));
})(document.getElementById('load'))"""
_FILL_S = 12  # for best-effort to take blocks


def take_picture(page: Page, url: str, path: Path) -> None:
    """Load a server with best-effort requests, ask it something as real-time, and save the page amid the answer."""
    page.call("Page.navigate", url=url)
    page.wait_for("document.readyState === 'complete' && document.getElementById('ask')")
    page.evaluate(_HIGHER % NUM_LOAD)
    page.wait_for(f"Number(document.getElementById('be-running').textContent) >= {NUM_LOAD // 2}")
    page.wait_for(f"(window.begun ??= performance.now()) + {_FILL_S}000 < performance.now()")
    page.evaluate("document.getElementById('prompt').value = 'Why is the sky blue?'; ask.requestSubmit()")
    page.wait_for("document.querySelector('.message.priority')?.textContent.length > 250")
    page.screenshot(path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, browsing(Path(profile)) as page:
        take_picture(page, sys.argv[1], Path(sys.argv[2]))
