"""`serve_many` asks the frontend that it has started without the proxy of its environment."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from backend.dynamo.many_options import parser
from backend.dynamo.serve_many import _Many
from tests.triton.servers import DEAD_PROXY


class Frontend(BaseHTTPRequestHandler):
    """Knows one worker, and completes everything."""

    def do_GET(self) -> None:
        self._answer({"instances": [{"endpoint": "generate"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({})

    def _answer(self, content: object) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: object) -> None:
        """Leave stderr alone."""


def test_the_frontend_is_found_whatever_proxy_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, url in DEAD_PROXY.items():
        monkeypatch.setenv(name, url)
    with HTTPServer(("127.0.0.1", 0), Frontend) as server:
        many = _Many(parser(None).parse_args(["--port", str(server.server_address[1])]), tmp_path)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        found = many._num_instances(), many._answers()
        server.shutdown()
        thread.join()
    assert found == (1, True)
