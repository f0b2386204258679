"""docs/kv.md names functions that exist."""

from __future__ import annotations

import re
from pathlib import Path

from kv import block
from kv.budget import KVBudget
from kv.checkpoint import HostPool
from kv.host_prefixes import HostPrefixes
from kv.manager import KVCacheManager
from kv.pool import Pool
from kv.prefixes import Prefix, PrefixIndex
from kv.table import SlotTable

OWNERS = {
    owner.__name__: owner
    for owner in (HostPool, HostPrefixes, KVBudget, KVCacheManager, Pool, Prefix, PrefixIndex, SlotTable)
} | {"block": block}


def test_every_function_that_the_drawing_names_exists() -> None:
    text = (Path(__file__).parents[2] / "docs" / "kv.md").read_text()
    names = re.findall(r"`([A-Z]\w+|block)\.(\w+)`", text)
    assert len(names) > 20
    missing = [f"{owner}.{name}" for owner, name in names if not hasattr(OWNERS[owner], name)]
    assert missing == []
