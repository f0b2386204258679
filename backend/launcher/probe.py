"""Questions to a running server over HTTP: is it ready, does a real request come back.

`python -m backend.launcher.probe http://127.0.0.1:8000` exits with 0 when a generated token comes back. It sees a
dead engine or a dead stub; Triton's own health endpoints (2.51) do not.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
from urllib.parse import urlsplit

CANARY_MODEL = "bros_rt"
CANARY = {"input_ids": [1], "max_tokens": 1}
_CANARY_PATH = f"/v2/models/{CANARY_MODEL}/generate"
TIMEOUT_S = 30.0


def is_ready(http_url: str) -> bool:
    """Return whether the server says that it and all its models are ready. Blocks up to TIMEOUT_S, as all here."""
    return _status(http_url, "GET", "/v2/health/ready") == http.HTTPStatus.OK


def answers_canary(http_url: str) -> bool:
    """Return whether one generated token comes back: server, stub, engine and model all work."""
    return _status(http_url, "POST", _CANARY_PATH, CANARY) == http.HTTPStatus.OK


def front_answers(openai_url: str) -> bool:
    """Return whether a generated token comes back through the front door."""
    return _status(openai_url, "GET", "/health") == http.HTTPStatus.OK


def _status(http_url: str, method: str, path: str, body: object | None = None) -> int | None:
    """Return the HTTP status of a request, None when nobody answers."""
    try:
        return _ask(http_url, method, path, body)
    except (OSError, http.client.HTTPException):
        return None


def _ask(http_url: str, method: str, path: str, body: object | None) -> int:
    """Return the HTTP status of a request. Raises OSError and HTTPException."""
    connection = http.client.HTTPConnection(urlsplit(http_url).netloc, timeout=TIMEOUT_S)
    content = None if body is None else json.dumps(body)
    try:
        connection.request(method, path, content, {"Content-Type": "application/json"})
        return connection.getresponse().status
    finally:
        connection.close()


def main() -> int:
    """Ask for one token; return the exit status, and say on stderr why none came."""
    parser = argparse.ArgumentParser(
        prog="python -m backend.launcher.probe",
        description="Exit with 0 when a generated token comes back, else with 1.",
    )
    parser.add_argument("url", metavar="URL", type=_http_url, help="HTTP port of Triton, as http://127.0.0.1:8000")
    url = parser.parse_args().url
    try:
        status = _ask(url, "POST", _CANARY_PATH, CANARY)
    except (OSError, http.client.HTTPException) as error:
        print(f"{url}: {getattr(error, 'strerror', None) or error or type(error).__name__}", file=sys.stderr)
        return 1
    if status == http.HTTPStatus.OK:
        return 0
    print(f"{url}: {CANARY_MODEL} answered with HTTP status {status}", file=sys.stderr)
    return 1


def _http_url(word: str) -> str:
    try:
        parts = urlsplit(word)
        is_wrong = parts.scheme != "http" or not parts.hostname or parts.port == 0
    except ValueError:  # a port that is no number
        is_wrong = True
    if is_wrong:
        raise argparse.ArgumentTypeError(f"{word!r} is no URL such as http://127.0.0.1:8000")
    return word


if __name__ == "__main__":
    sys.exit(main())
