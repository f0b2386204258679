"""Errors of the KV cache.

    KVError
    └── KVConfigError    the cache's size or layout cannot work; the message names the field, its value and the limit

No room is not an error: `KVCacheManager.grow` returns False. Misuse by our own code is an assertion.
"""

from __future__ import annotations


class KVError(Exception):
    """Any error this package raises on purpose."""


class KVConfigError(KVError, ValueError):
    """The cache cannot be built as configured."""
