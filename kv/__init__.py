"""The bidirectional paged KV cache's bookkeeping: pure code, no torch, no clock, no I/O."""

from kv.budget import KVBudget
from kv.errors import KVConfigError, KVError
from kv.manager import KVCacheManager
from kv.types import KVConfig, KVUsage, Layout, Row, Side, SlotCopy

__all__ = [
    "KVBudget",
    "KVCacheManager",
    "KVConfig",
    "KVConfigError",
    "KVError",
    "KVUsage",
    "Layout",
    "Row",
    "Side",
    "SlotCopy",
]
