"""The page, its three files, and the view that it draws."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Depends, Request, Response

from front.http import json_response
from front.page.view import Watch
from front.routes import caller_of

_FOLDER = Path(__file__).parent / "static"
_FILES = {  # path -> file and media type
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def make_router() -> APIRouter:
    """Return the routes. They find the engine's watch at `app.state.watch`. The files ask for no key."""
    router = APIRouter()
    for path, (name, media_type) in _FILES.items():
        router.add_api_route(path, _serve(name, media_type), methods=["GET", "HEAD"], include_in_schema=False)

    @router.get("/snapshot", tags=["server"], dependencies=[Depends(caller_of)])
    async def snapshot(request: Request) -> Response:
        """Counts of requests and tokens by class, and how full each KV block is from its two ends."""
        watch: Watch = request.app.state.watch
        return json_response(await watch.view(), headers={"Cache-Control": "no-store"})

    return router


def _serve(name: str, media_type: str) -> Callable[[], Awaitable[Response]]:
    content = (_FOLDER / name).read_bytes()

    async def serve() -> Response:
        return Response(content, headers=_HEADERS, media_type=media_type)

    return serve
