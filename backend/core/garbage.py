"""Python's collector of garbage, kept out of the way of streams.

A full collection stops the process while it looks at all objects. It takes longer the more requests are open, and
finds next to nothing. Reference counts free what a request leaves behind, or collections of young objects do. A cycle
of long life has to be cut by hand, as in `front/protocol.py`.
"""

from __future__ import annotations

import gc

_PARTIAL_PER_FULL = 1_000  # collections of younger objects before a full one; Python's own number is 10


def collect_rarely() -> None:
    """Make full collections rare, and never again look at the objects that exist now. Call it once all is loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], _PARTIAL_PER_FULL)
