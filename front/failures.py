"""Our own mistakes: the client gets a 500 that names its request, and the log one line with the same name."""

from __future__ import annotations

import logging
import traceback
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client.openai.errors import ApiError
from front.http import error_response

_LOG = logging.getLogger(__name__)
_MAX_WORDS = 300  # of an error; it may quote a body


class FailuresInOneLine:
    """Answers what no route has caught. The traceback is logged at level DEBUG."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def pass_on(message: Message) -> None:
            nonlocal has_begun
            has_begun = has_begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, pass_on)
        except Exception as error:
            if scope["type"] != "http":
                raise
            answer = note(f"{scope['method']} {scope['path'][:200]}", error)
            if not has_begun:
                await error_response(answer)(scope, receive, send)


def note(what: str, error: Exception) -> ApiError:
    """Log that `what` failed and return the error for its client."""
    name = f"req-{uuid4().hex}"
    kind, words = type(error).__name__, str(error)[:_MAX_WORDS].replace("\n", " ")
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{frame.filename}:{frame.lineno}"
    _LOG.error("%s: %s failed: %s: %s (%s)", name, what, kind, words, where)
    _LOG.debug("%s", name, exc_info=error)
    told = f"the front door failed: {kind} (request {name})"
    return ApiError(told, status=500, kind="server_error", code="server_error", headers={"x-request-id": name})
