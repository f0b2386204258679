"""The adapter looks for each name of vLLM that it needs at start, and names the missing ones."""

from __future__ import annotations

from typing import Any

import pytest

from backend.core.errors import ConfigError
from backend.executors.vllm.surface import require_known
from tests.backend.executors.vllm.driver import make_rig


class Base:
    """A scheduler class as vLLM's is written, as far as its signatures go."""

    def schedule(self, throttle_prefills: bool = False) -> Any:
        _ = throttle_prefills
        return self._reserve_prefill_lookahead(0, 0, 0) + self._reserve_prefill_lookahead(1, 1, 1)

    def add_request(self, request: Any) -> None: ...
    def _free_request(self, request: Any, delay_free_blocks: bool = False) -> None: ...
    def _preempt_request(self, request: Any, timestamp: float, drop_stale_output: bool = False) -> None: ...
    def _request_blocks_can_be_freed(self, request: Any) -> bool: ...  # type: ignore[empty-body]  # never called

    def _reserve_prefill_lookahead(self, request: Any, num_computed_tokens: int, num_new_tokens: int) -> int:
        _ = request, num_computed_tokens
        return num_new_tokens


def test_a_known_version_passes() -> None:
    require_known(make_rig().scheduler, Base, "0.32")


def test_a_missing_attribute_is_named() -> None:
    scheduler = make_rig().scheduler
    del scheduler.kv_holding_waiting
    with pytest.raises(ConfigError, match=r"vLLM 0\.99: its scheduler has no kv_holding_waiting; vLLM 0\.32 is known"):
        require_known(scheduler, Base, "0.99")


def test_a_missing_method_is_named_with_its_parameters() -> None:
    class Other(Base):
        def _preempt_request(self, request: Any) -> None: ...  # type: ignore[override]  # of another version

    with pytest.raises(ConfigError, match=r"_preempt_request\(request, timestamp\)"):
        require_known(make_rig().scheduler, Other, "0.99")


def test_a_schedule_that_does_not_ask_for_a_limit_is_refused() -> None:
    class Other(Base):
        def schedule(self, throttle_prefills: bool = False) -> Any:
            return throttle_prefills

    with pytest.raises(ConfigError, match=r"limits each request's tokens \(0 of 2 calls found\)"):
        require_known(make_rig().scheduler, Other, "0.99")


def test_several_groups_of_kv_caches_are_refused() -> None:
    scheduler = make_rig().scheduler
    scheduler.kv_cache_config.kv_cache_groups = [None, None]
    with pytest.raises(ConfigError, match="disable_hybrid_kv_cache_manager"):
        require_known(scheduler, Base, "0.32")
