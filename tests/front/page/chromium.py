"""Drives a headless Chromium through its debugging pipe: no driver, no port."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BINARY = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_S = 60.0
_FLAGS = (
    "--headless",
    "--no-sandbox",  # tests may run as root, in containers; the only page is ours
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
    "--window-size=1280,800",
    "--no-first-run",
)


class Page:
    """One tab. Every call waits for its answer, at most PATIENCE_S."""

    def __init__(self, requests: int, replies: int) -> None:
        self._requests = requests
        self._replies = replies
        self._buffer = b""
        self._num_sent = 0
        self._session: str | None = None
        self.problems: list[str] = []  # errors of the page: scripts that threw, what its policy refused

    def attach(self) -> None:
        """Open a tab and talk to it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return what the browser answers."""
        self._num_sent += 1
        message = {"id": self._num_sent, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._read()
            if reply.get("id") == self._num_sent:
                assert "error" not in reply, f"{method}: {reply['error']}"
                return dict(reply["result"])
            self._note(reply)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of the page."""
        got = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in got, got["exceptionDetails"]
        return got["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until a condition of the page holds; the page itself looks, at each of its frames."""
        loop = f"(async () => {{ while (!({condition})) await new Promise((go) => requestAnimationFrame(go)); }})()"
        self.evaluate(loop)

    def screenshot(self, path: Path) -> None:
        """Save what the page looks like."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _read(self) -> dict[str, Any]:
        deadline_s = time.monotonic() + PATIENCE_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._replies], [], [], max(0.0, deadline_s - time.monotonic()))
            assert ready, f"no answer of the browser within {PATIENCE_S:g} s; the page's problems: {self.problems}"
            piece = os.read(self._replies, 1 << 20)
            assert piece, "the browser has ended"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(event["params"]["exceptionDetails"])[:500])
        if event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.problems.append(event["params"]["entry"]["text"])


@contextmanager
def browsing(folder: Path) -> Iterator[Page]:
    """Give a tab of a browser whose profile lies in `folder`."""
    assert BINARY is not None
    their_input, requests = os.pipe()
    replies, their_output = os.pipe()
    command = [BINARY, *_FLAGS, f"--user-data-dir={folder}"]
    ends = (f'exec 3<&{their_input} 4>&{their_output}; exec "$@"', "sh", *command)
    browser = subprocess.Popen(
        ["bash", "-c", *ends],
        pass_fds=(their_input, their_output),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    os.close(their_input)
    os.close(their_output)
    try:
        page = Page(requests, replies)
        page.attach()
        yield page
    finally:
        browser.kill()
        browser.wait()
        os.close(requests)
        os.close(replies)
