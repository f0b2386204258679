"""Who is told what comes into the index and what leaves it, and believes nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kv.prefix_log import PrefixEvent, Stored, hashes_of
from kv.prefixes import TOKEN_BYTES, token_bytes


class PrefixWatcher:
    """`known`: the segments there are, by hash, and the hash of the one before (None: it begins a prompt)."""

    def __init__(self, block_size: int, everything: Iterable[PrefixEvent]) -> None:
        self._segment_bytes = block_size * TOKEN_BYTES
        self.known: dict[int, int | None] = {}
        self.known_after(everything)

    def known_after(self, events: Iterable[PrefixEvent]) -> dict[int, int | None]:
        """Take in `events`; each must fit the contents known by then. Return the contents known."""
        for event in events:
            if isinstance(event, Stored):
                self._store(event)
            else:
                for segment in reversed(event.hashes):
                    del self.known[segment]
                    assert segment not in self.known.values(), "a segment was removed before what follows it"
        return self.known

    def check(self, lent: Sequence[tuple[str, list[int]]]) -> None:
        """Assert that the segments known are the ends of the prefixes `lent`, by salt and tokens, and no others."""
        ends = [self.chain(salt, tokens)[-1] for salt, tokens in lent]
        assert sorted(ends) == sorted(self.known)

    def chain(self, salt: str, tokens: list[int]) -> list[int]:
        """Return the hashes of the segments of `tokens`."""
        return hashes_of(None, salt, token_bytes(tokens), self._segment_bytes)

    def _store(self, event: Stored) -> None:
        assert event.parent is None or event.parent in self.known, "a segment came before what it follows"
        assert event.hashes == hashes_of(event.parent, event.salt, event.tokens, self._segment_bytes)
        assert self.known.keys().isdisjoint(event.hashes), "a segment came twice"
        assert len(event.tokens) == len(event.hashes) * self._segment_bytes
        parent = event.parent
        for segment in event.hashes:
            self.known[segment], parent = parent, segment
