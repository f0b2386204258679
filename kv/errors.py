"""Errors of the KV cache.

    KVError
    └── KVConfigError    a size is out of range; the message names the field, its value and the limit

No room is not an error: `KVCacheManager.grow` returns False. An assertion catches misuse by our own code.
"""

from __future__ import annotations


class KVError(Exception):
    """Base of the errors that this package raises for its callers."""


class KVConfigError(KVError, ValueError):
    """A size in the cache's configuration is out of range."""
