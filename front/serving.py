"""How uvicorn serves the front door."""

from __future__ import annotations

from typing import Any

from front.protocol import BoundedProtocol
from front.settings import Settings

_KEEP_ALIVE_S = 30  # of a connection that asks nothing


def options_of(settings: Settings) -> dict[str, Any]:
    """Return the options of `uvicorn.run` and of `uvicorn.Config`. A client's address is that of its connection.

    uvicorn by default believes the header X-Forwarded-For of any client at 127.0.0.1. A client could then be as many as
    it likes, and take the turns and limits of all of them. Only proxies that the operator names are believed.
    """
    return {
        "host": settings.host,
        "port": settings.port,
        "http": BoundedProtocol,
        "loop": "front.loop:DoorLoop",
        "ws": "none",
        "access_log": False,
        "log_level": "warning",
        "server_header": False,
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": list(settings.trusted_proxies),
        "timeout_keep_alive": _KEEP_ALIVE_S,
        "timeout_graceful_shutdown": max(1, round(settings.drain_timeout_s)),
    }
