"""Whether a grammar of the tests' tokenizer, which has a token for each byte, lets a text through."""

from __future__ import annotations

import json

from backend.core.request import Grammar
from backend.text.tokenizer import Tokenizer


def follows(grammar: Grammar, text: bytes) -> bool:
    """Return whether the grammar lets each byte follow those before it."""
    output = [byte + 3 for byte in text]
    return all(grammar.allowed(output[:end])[token_id] for end, token_id in enumerate(output))


def is_taken(grammar: Grammar, tokenizer: Tokenizer, text: str) -> bool:
    """Return whether an answer may be `text` in JSON, and end there."""
    answer = json.dumps(text, ensure_ascii=False).encode()
    ends = sorted(tokenizer.eos_token_ids)
    return follows(grammar, answer) and bool(grammar.allowed([byte + 3 for byte in answer])[ends].all())
