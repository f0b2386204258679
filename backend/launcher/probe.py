"""Questions to a running server over HTTP: is it ready, does a real request come back.

`python -m backend.launcher.probe http://127.0.0.1:8000` exits with 0 when a generated token comes back. It sees a
dead engine or a dead stub; Triton's own health endpoints (2.51) do not.
"""

from __future__ import annotations

import http.client
import json
import sys
from urllib.parse import urlsplit

CANARY_MODEL = "bros_rt"
CANARY = {"input_ids": [1], "max_tokens": 1}
TIMEOUT_S = 30.0


def is_ready(http_url: str) -> bool:
    """Return whether the server says that it and all its models are ready. Blocks up to TIMEOUT_S, as all here."""
    return _status(http_url, "GET", "/v2/health/ready") == http.HTTPStatus.OK


def answers_canary(http_url: str) -> bool:
    """Return whether one generated token comes back: server, stub, engine and model all work."""
    return _status(http_url, "POST", f"/v2/models/{CANARY_MODEL}/generate", CANARY) == http.HTTPStatus.OK


def front_answers(openai_url: str) -> bool:
    """Return whether a generated token comes back through the front door."""
    return _status(openai_url, "GET", "/health") == http.HTTPStatus.OK


def _status(http_url: str, method: str, path: str, body: object | None = None) -> int | None:
    """Return the HTTP status of a request, None when nobody answers."""
    connection = http.client.HTTPConnection(urlsplit(http_url).netloc, timeout=TIMEOUT_S)
    content = None if body is None else json.dumps(body)
    try:
        connection.request(method, path, content, {"Content-Type": "application/json"})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if answers_canary(sys.argv[1]) else 1)
