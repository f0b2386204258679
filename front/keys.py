"""API keys: who may ask, and in which classes.

The file is JSON, key -> tiers:  {"sk-chat": ["priority", "default"], "sk-jobs": ["flex"]}
"""

from __future__ import annotations

import hashlib
import json
import logging
import stat
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address
from pathlib import Path

import msgspec
from starlette.requests import Request

from client.generation import PriorityClass
from client.openai.errors import ApiError
from client.openai.tiers import TIER_NAMES, Rule, classes_of

_LOG = logging.getLogger(__name__)
_MIN_KEY_CHARS = 8
_SCHEME = "bearer"
_IPV6_SITE_BITS = 64  # a site has as many addresses as it likes
ANYONE = "anyone"  # the name of who needs no key


class KeyFileError(Exception):
    """The file of keys cannot be used as it is; the message says why, and holds no key."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: `name` tells callers apart and is no secret; `rule` says what they may."""

    name: str
    rule: Rule


class Keys:
    """The keys that are known, by their digests: a look-up takes as long for a key that is nearly right."""

    def __init__(self, callers: dict[bytes, Caller] | None, anyone: Caller) -> None:
        self._callers = callers
        self._anyone = anyone

    def caller(self, authorization: str | None) -> Caller:
        """Return who says `Authorization: Bearer KEY`. Raises ApiError."""
        if self._callers is None:
            return self._anyone
        scheme, _, key = (authorization or "").partition(" ")
        found = self._callers.get(_digest(key.strip())) if scheme.lower() == _SCHEME else None
        if found is None:
            raise ApiError(
                "no API key, or one that is not known: send the header Authorization: Bearer KEY",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found


def client_of(request: Request, caller: Caller) -> str:
    """Return what tells clients apart: the key, and where none is asked for the address, or its IPv6 network."""
    if caller.name != ANYONE:
        return caller.name
    host = "" if request.client is None else request.client.host
    try:
        address = ip_address(_without_port(host).partition("%")[0])
    except ValueError:
        return host  # a proxy wrote something else
    if isinstance(address, IPv6Address) and (of_version_4 := address.ipv4_mapped) is not None:
        address = of_version_4  # of a listener for both versions
    return str(address) if address.version == 4 else str(IPv6Network((address, _IPV6_SITE_BITS), strict=False))


def _without_port(host: str) -> str:
    """Return an address as some proxies write it, `10.0.0.1:5000` or `[2001:db8::1]:5000`, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host


def open_keys(path: Path | None, default: PriorityClass) -> Keys:
    """Return the keys of a file; without one everybody may everything. Raises KeyFileError."""
    anyone = Caller(ANYONE, Rule(default))
    if path is None:
        return Keys(None, anyone)
    try:
        text, mode = path.read_bytes(), path.stat().st_mode
        tiers_by_key = msgspec.json.decode(text, type=dict[str, list[str]])
    except OSError as error:
        raise KeyFileError(f"cannot read the API keys {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path} is not an object of keys, each with a list of tiers") from error
    if len(json.loads(text, object_pairs_hook=list)) > len(tiers_by_key):
        raise KeyFileError(f"{path} has a key twice")
    callers = [_caller(path, number, key, tiers, default) for number, (key, tiers) in enumerate(tiers_by_key.items())]
    if not callers:
        raise KeyFileError(f"{path} holds no API key")
    if mode & stat.S_IROTH:
        _LOG.warning("everybody on this machine may read the API keys in %s: chmod o-r", path)
    return Keys(dict(zip(map(_digest, tiers_by_key), callers, strict=True)), anyone)


def _caller(path: Path, number: int, key: str, tiers: list[str], default: PriorityClass) -> Caller:
    if len(key) < _MIN_KEY_CHARS or not key.isascii() or any(char.isspace() for char in key):
        raise KeyFileError(f"{path}: key {number} is not {_MIN_KEY_CHARS} or more ASCII characters without spaces")
    if not tiers or (wrong := [tier for tier in tiers if tier not in TIER_NAMES]):
        words = f"{wrong[0]!r} is none of" if tiers else "no tier; name one or more of"
        raise KeyFileError(f"{path}: key {number}: {words} {', '.join(TIER_NAMES)}")
    return Caller(_digest(key).hex()[:16], Rule(default, classes_of(tiers, default)))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()
