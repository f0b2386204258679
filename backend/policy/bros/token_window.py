"""The adaptive window: best-effort tokens per step, by slow start, additive increase, multiplicative decrease."""

from __future__ import annotations

_INITIAL_TOKENS = 256
_INCREASES_TO_FULL = 32  # additive increase reaches the maximum in this many steps


class AdaptiveWindow:
    """Corrects what the latency model gets wrong (design §3); `tokens` is the limit of the next step.

    min_tokens: what best-effort work keeps under any load. A window that is not adaptive stays at max_tokens.
    """

    def __init__(self, min_tokens: int, max_tokens: int, is_adaptive: bool = True) -> None:
        self.tokens = min(max_tokens, max(min_tokens, _INITIAL_TOKENS)) if is_adaptive else max_tokens
        self._min_tokens = min_tokens
        self._max_tokens = max_tokens
        self._is_adaptive = is_adaptive
        self._slow_start_until = max_tokens

    def observe(self, num_tokens: int, was_late: bool) -> None:
        """Halve after a step that ran `num_tokens` best-effort tokens and made a real-time token late; else grow.

        Only a step that used the window says anything about a larger one.
        """
        if not self._is_adaptive:
            return
        if was_late and num_tokens > 0:
            self._slow_start_until = self.tokens = max(self._min_tokens, min(self.tokens, num_tokens) // 2)
        elif num_tokens >= 0.8 * self.tokens:
            self.tokens = min(self._max_tokens, self._grown())

    def _grown(self) -> int:
        if self.tokens < self._slow_start_until:
            return 2 * self.tokens
        return self.tokens + max(1, self._max_tokens // _INCREASES_TO_FULL)
