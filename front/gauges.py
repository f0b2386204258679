"""`/metrics`: how much work the engine has, for routers that ask each replica where they send its requests.

Three of the gauges on Triton's metrics port, under the same names, read from a snapshot. Like `/health` it asks for no
key, since routers have none; a gateway need not route it.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from front.page.view import View, Watch

WAITING, RUNNING, KV_USED = "bros_waiting_requests", "bros_running_requests", "bros_kv_used_ratio"
_MEDIA_TYPE = "text/plain; version=0.0.4"


def make_router() -> APIRouter:
    """Return the route. It finds the engine's watch at `app.state.watch`."""
    router = APIRouter()

    @router.get("/metrics", tags=["server"])
    async def metrics(request: Request) -> Response:
        """Waiting and running requests, and how full the KV cache is, 0 to 1. Asks for no key."""
        watch: Watch = request.app.state.watch
        return Response(_text(gauges(await watch.view())), media_type=_MEDIA_TYPE)

    return router


def gauges(view: View) -> dict[str, float]:
    """Return the gauges by name."""
    everyone = view.requests_by_class.values()
    num_held = sum(view.kv.head_fill) + sum(view.kv.tail_fill)
    return {
        WAITING: sum(count.num_waiting + count.num_preempted for count in everyone),
        RUNNING: sum(count.num_running for count in everyone),
        KV_USED: num_held / max(1, view.kv.num_blocks * view.kv.block_size),
    }


def _text(values: dict[str, float]) -> str:
    return "".join(f"# TYPE {name} gauge\n{name} {value:.6g}\n" for name, value in values.items())
