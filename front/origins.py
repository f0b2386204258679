"""Which names a door answers to, so that a page of another site cannot use it through a browser.

Such a page may send a request across sites: `Origin` then names it. Or its own name may lead to this machine (DNS
rebinding): `Host` then has that name. An address in `Host` is no such name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from client.openai.errors import ApiError
from front.headers import require_one_meaning
from front.http import error_response
from front.settings import Settings

_ALLOW = "bros-openai --allow-host NAME (bros-serve: --openai-allow-host) allows a name"


@dataclass(frozen=True, slots=True)
class Names:
    """`own`: the name it listens on. `allowed`: further names. `any_host`, `any_origin`: no name is asked for."""

    own: str
    allowed: Collection[str]
    any_host: bool
    any_origin: bool

    def require(self, headers: Headers) -> None:
        """Raise ApiError for a request that a page of another site may have sent."""
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and not self.any_host and not self._is_own(_name_of(f"//{host}")):
            raise _refused(f"host: {host[:100]!r} is no name of this server")
        if origin is None or self.any_origin:
            return
        is_same = host is not None and _place_of(origin) == _place_of(f"{origin.partition(':')[0]}://{host}")
        if not is_same and _name_of(origin) not in self.allowed:
            raise _refused(f"origin: {origin[:100]!r} is another site")

    def _is_own(self, name: str) -> bool:
        return (
            name == "localhost" or name.endswith(".localhost") or name in (self.own, *self.allowed) or _is_address(name)
        )


def names_of(settings: Settings) -> Names:
    """Return the names of a door: where keys are asked for, and beyond loopback, any name unless some are listed."""
    has_keys_alone = settings.api_key_file is not None and not settings.allowed_hosts
    allowed = frozenset(name.lower() for name in settings.allowed_hosts)
    is_open = not settings.allowed_hosts and not is_loopback(settings.host)
    return Names(settings.host.lower(), allowed, any_host=has_keys_alone or is_open, any_origin=has_keys_alone)


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    return ipaddress.ip_address(host).is_loopback if _is_address(host) else host == "localhost"


class OwnNamesOnly:
    """Answers what a page of another site may have sent with a 403, two hosts or keys with a 400; hands on the rest."""

    def __init__(self, app: ASGIApp, names: Names) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                headers = Headers(scope=scope)
                require_one_meaning(headers)
                self._names.require(headers)
            except ApiError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _refused(words: str) -> ApiError:
    return ApiError(f"{words}; {_ALLOW}", status=403, kind="permission_error", code="origin_not_allowed")


def _name_of(url: str) -> str:
    """Return the host of a URL without its port; none of a URL that cannot be read."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _place_of(url: str) -> tuple[str, int | None]:
    """Return host and port of a URL, with the port that its scheme has."""
    try:
        port = urlsplit(url).port
    except ValueError:
        port = -1
    usual = {"http": 80, "https": 443}.get(url.partition(":")[0].lower())
    return _name_of(url), usual if port is None else port


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
