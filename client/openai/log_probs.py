"""Log-probabilities as each endpoint shows them. A token is named by its id: its text may be half a character."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

from client.generation import Chunk, Generation, TopLogProbs
from client.openai.asked import Asked, Json

_LOWEST = -9999.0  # OpenAI's word for a probability of nothing; JSON has no infinity
Part = Chunk | Generation


def chat_log_probs(asked: Asked, part: Part) -> Json | None:
    """Return what a choice of a chat, or a piece of one, says of its tokens; None without them."""
    if not _has_log_probs(asked, part):
        return None
    tops: Sequence[TopLogProbs] = part.top_log_probs or list(repeat([], len(part.token_ids)))
    content = [
        _entry(token_id, log_prob) | {"top_logprobs": [_entry(*each) for each in top]}
        for token_id, log_prob, top in zip(part.token_ids, part.log_probs or (), tops, strict=True)
    ]
    return {"content": content, "refusal": None}


def completion_log_probs(asked: Asked, part: Part) -> Json | None:
    """Return what a choice of a completion, or a piece of one, says of its tokens; None without them."""
    if not _has_log_probs(asked, part):
        return None
    tops = part.top_log_probs
    return {
        "tokens": [_name(token_id) for token_id in part.token_ids],
        "token_logprobs": [_finite(log_prob) for log_prob in part.log_probs or ()],
        "top_logprobs": None if tops is None else [{_name(key): _finite(value) for key, value in top} for top in tops],
        "text_offset": None,
    }


def _has_log_probs(asked: Asked, part: Part) -> bool:
    """Tell whether there is anything to show. The simulated executor has no probabilities."""
    return asked.wants_log_probs and bool(part.token_ids) and len(part.log_probs or ()) == len(part.token_ids)


def _entry(token_id: int, log_prob: float) -> Json:
    return {"token": _name(token_id), "logprob": _finite(log_prob), "bytes": None}


def _name(token_id: int) -> str:
    return f"token_id:{token_id}"


def _finite(log_prob: float) -> float:
    return max(_LOWEST, log_prob)
