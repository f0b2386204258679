"""The application: routes, errors and the connection to Triton, which lives as long as the event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI

import front.batches.routes
import front.gauges
import front.page.routes
from client.transports import AsyncTransport, connect_async
from front import routes
from front.batches.service import Batches, open_batches
from front.engine import Engine
from front.failures import FailuresInOneLine
from front.http import Bodies, answer_errors
from front.keys import open_keys
from front.origins import OwnNamesOnly, names_of
from front.page.view import Watch
from front.settings import Settings

Connect = Callable[[str], AsyncTransport]


def make_app(settings: Settings, connect: Connect = connect_async) -> FastAPI:
    """Return the application. `connect` makes the transport, inside the event loop. Raises KeyFileError."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = Engine(connect(settings.triton_url))
        app.state.engine = engine
        app.state.health = routes.Health(engine)
        app.state.watch = Watch(engine.inspect)
        try:
            async with _batches(settings, engine) as app.state.batches:
                yield
        finally:
            await engine.close()

    app = FastAPI(title="BROS for Triton", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.settings = settings
    app.state.bodies = Bodies()
    app.state.keys = open_keys(settings.api_key_file, settings.default_class)
    answer_errors(app)
    app.add_middleware(FailuresInOneLine)
    app.add_middleware(OwnNamesOnly, names=names_of(settings))
    app.include_router(routes.make_router(settings))
    app.include_router(front.batches.routes.make_router())
    app.include_router(front.page.routes.make_router())
    app.include_router(front.gauges.make_router())
    return app


@asynccontextmanager
async def _batches(settings: Settings, engine: Engine) -> AsyncIterator[Batches | None]:
    """Open the files and batches, where there is a folder for them."""
    if settings.data_dir is None:
        yield None
        return
    async with open_batches(settings.data_dir, engine.answer) as batches:
        yield batches
