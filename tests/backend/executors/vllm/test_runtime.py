"""A request as vLLM gets it."""

from __future__ import annotations

from typing import Any

import pytest

from backend.executors.foreign.source import Ticket
from backend.executors.vllm.runtime import VllmRuntime
from tests.backend.factories import make_request


class Llm:
    def __init__(self) -> None:
        self.told: list[Any] = []

    def add_request(self, request_id: str, prompt: Any, params: Any, *, priority: int) -> str:
        self.told.append((prompt, params["max_tokens"], priority))
        return request_id


@pytest.mark.parametrize(("salt", "told"), [("", {}), ("tenant-a", {"cache_salt": "tenant-a"})])
def test_vllm_is_told_the_prompt_and_its_salt(salt: str, told: dict[str, str]) -> None:
    llm: Any = Llm()
    request = make_request(prompt=[5, 6, 7], cache_salt=salt)
    VllmRuntime(llm, lambda arguments: arguments, {}, {2}).submit(Ticket(request))
    assert llm.told == [({"prompt_token_ids": [5, 6, 7], **told}, 8, 1)]
