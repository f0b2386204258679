"""Finds layers that compute from the packed row what they should compute from their tokens' positions.

Such a layer gives a request other tokens in other chunks, or beside other requests. Many do so beyond a threshold only
(Llama 4's temperature: 8,192 tokens), which a probe of few tokens never reaches. So the probe looks at two more things:
which calls count the row's tokens, and whether a request's logits depend on another's position.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from backend.core.errors import ConfigError
from backend.executors.torch_engine.inputs import StepInputs
from backend.executors.torch_engine.library_model import LibraryModel

_OURS = "backend."


class WatchedModel:
    """A model whose steps are watched."""

    def __init__(self, model: LibraryModel) -> None:
        self._model = model
        self._counts: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._last: tuple[StepInputs, torch.Tensor] | None = None

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        """Return the model's logits."""
        with _Counting(inputs.num_tokens, self._counts):
            logits = self._model.forward(inputs)
        self._last = inputs, logits
        return logits

    def require_independent(self, name: str, last_position: int, limit: float) -> None:
        """Raise ConfigError where tokens of the row were counted, or a far neighbour changed the last step's logits."""
        for place, counts in sorted(self._counts.items()):
            if len({num_tokens for num_tokens, _ in counts}) > 1 and all(n == counted for n, counted in counts):
                raise ConfigError(
                    f"{name} cannot be served: {place} counts the tokens of a step, which belong to several requests"
                )
        if not (error := self._error_beside(last_position)) <= limit:
            raise ConfigError(
                f"{name} would be served wrong: a request at position {last_position} changes another's logits "
                f"by {error:.2g} of their spread, the limit is {limit:g}"
            )

    @torch.inference_mode()
    def _error_beside(self, position: int) -> float:
        """Move the first of the last step's two tokens to `position`; return how far that moves the other's logits."""
        assert self._last is not None, "no step was watched"
        inputs, logits = self._last
        positions = inputs.positions.copy()
        positions[0] = position
        before, after = logits[-1].double(), self._model.forward_at(inputs, positions)[-1].double()
        return float((after - before).square().mean().sqrt() / before.std(correction=0))


class _Counting(TorchFunctionMode):
    """Notes where layers call `torch.arange`: the number of tokens in the row, and the length of the result."""

    def __init__(self, num_tokens: int, counts: dict[str, list[tuple[int, int]]]) -> None:
        super().__init__()
        self._num_tokens = num_tokens
        self._counts = counts

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.arange:
            caller = sys._getframe(1)
            module = str(caller.f_globals.get("__name__"))
            if not module.startswith(_OURS):
                place = f"{module}.{caller.f_code.co_qualname}, line {caller.f_lineno},"
                self._counts[place].append((self._num_tokens, len(result)))
        return result
