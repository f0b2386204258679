"""A tokenizer without a model, for the simulated executor: a token a byte going in, made-up words coming out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backend.core.errors import InvalidRequestError

FIRST_BYTE_ID = 3  # ids below are special: 0 pad, 1 bos, 2 eos


class SimTokenizer:
    """Bytes are ids 3 to 258; any higher id reads as a word of its own, so that a text can be told from another."""

    strips_first_space = False
    max_token_bytes = 1  # of a prompt's text

    def __init__(self, vocab_size: int, eos_token_id: int) -> None:
        self.vocab_size = vocab_size
        self.eos_token_ids = frozenset({eos_token_id})

    def encode(self, text: str) -> list[int]:
        """Return one id for each byte of the text."""
        return [byte + FIRST_BYTE_ID for byte in text.encode()]

    def render_chat(self, messages: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]] = ()) -> str:
        """Return the messages, one a line. Raises InvalidRequestError where there are tools."""
        if tools:
            raise InvalidRequestError("tools: a simulated model calls none")
        return "".join(f"{message['role']}: {message['content']}\n" for message in messages)

    def encode_chat_text(self, text: str) -> list[int]:
        """Return one id for each byte of what `render_chat` gave."""
        return self.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids`."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for; none for special tokens."""
        if token_id < FIRST_BYTE_ID or token_id in self.eos_token_ids:
            return b""
        byte = token_id - FIRST_BYTE_ID
        return bytes([byte]) if byte < 256 else f" t{token_id}".encode()
