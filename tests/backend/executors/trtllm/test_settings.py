from __future__ import annotations

import pytest

from backend.core.errors import ConfigError
from backend.executors.trtllm.settings import TrtllmSettings


def test_llm_arguments_pass_through_as_they_are() -> None:
    arguments = {"tensor_parallel_size": 2, "kv_cache_config": {"host_cache_size": 1 << 30}}
    assert TrtllmSettings("/model", llm_args=arguments).llm_args is arguments


@pytest.mark.parametrize(
    ("arguments", "num_ranks"),
    [
        ({}, 1),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 3}, 6),
        ({"tensor_parallel_size": 2, "context_parallel_size": 2}, 4),
        ({"tensor_parallel_size": "auto"}, 1),
    ],
)
def test_ranks_are_the_product_of_the_parallel_sizes(arguments: dict[str, object], num_ranks: int) -> None:
    assert TrtllmSettings("/model", llm_args=arguments).num_ranks == num_ranks


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"model": ""}, "model"),
        ({"llm_args": {"model": "/other"}}, "llm_args"),
        ({"reserved_rt_seqs": 0}, "reserved_rt_seqs"),
        ({"be_kv_ratio": 0.0}, "be_kv_ratio"),
        ({"be_kv_ratio": 1.5}, "be_kv_ratio"),
    ],
)
def test_wrong_values_are_refused_by_name(fields: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        TrtllmSettings(**{"model": "/model", **fields})  # type: ignore[arg-type]  # what an operator may write
