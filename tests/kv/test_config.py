"""What a cache can be."""

from __future__ import annotations

import pytest

from kv.errors import KVConfigError, KVError
from kv.types import KVConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_blocks", 0),
        ("block_size", 0),
        ("block_size", 4097),
        ("max_seq_len", 0),
        ("num_host_slots", -1),
    ],
)
def test_a_cache_that_cannot_work_is_refused_by_name_value_and_limit(field: str, value: int) -> None:
    with pytest.raises(KVConfigError, match=rf"{field}: {value} is not in \["):
        KVConfig(**{"num_blocks": 4, field: value})


def test_slots_beyond_int32_are_refused() -> None:
    with pytest.raises(KVError, match="num_slots"):
        KVConfig(num_blocks=2**31 // 16)
