"""Log-probabilities as each endpoint shows them. A token is named by its id: its text may be half a character."""

from __future__ import annotations

from collections.abc import Sequence

from front.asked import Asked, Json

_LOWEST = -9999.0  # OpenAI's word for a probability of nothing; JSON has no infinity


def chat_log_probs(asked: Asked, token_ids: Sequence[int], log_probs: Sequence[float] | None) -> Json | None:
    """Return what a choice of a chat, or a piece of one, says of its tokens; None without them."""
    if not _has_log_probs(asked, token_ids, log_probs):
        return None
    pairs = zip(_names(token_ids), _values(log_probs), strict=True)
    content: list[Json] = [
        {"token": name, "logprob": value, "bytes": None, "top_logprobs": []} for name, value in pairs
    ]
    return {"content": content, "refusal": None}


def completion_log_probs(asked: Asked, token_ids: Sequence[int], log_probs: Sequence[float] | None) -> Json | None:
    """Return what a choice of a completion, or a piece of one, says of its tokens; None without them."""
    if not _has_log_probs(asked, token_ids, log_probs):
        return None
    return {
        "tokens": _names(token_ids),
        "token_logprobs": _values(log_probs),
        "top_logprobs": None,
        "text_offset": None,
    }


def _has_log_probs(asked: Asked, token_ids: Sequence[int], log_probs: Sequence[float] | None) -> bool:
    """Tell whether there is anything to show. The simulated executor has no probabilities."""
    return asked.wants_log_probs and bool(token_ids) and len(log_probs or ()) == len(token_ids)


def _names(token_ids: Sequence[int]) -> list[str]:
    return [f"token_id:{token_id}" for token_id in token_ids]


def _values(log_probs: Sequence[float] | None) -> list[float]:
    return [max(_LOWEST, value) for value in log_probs or ()]
