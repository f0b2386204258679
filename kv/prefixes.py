"""Which tokens the rows hold: a tree of segments, in which a new request finds the longest prefix that it can borrow.

    (salt) ─ "You are a help" ─ "ful assistant." ─┬─ "What is a cat?" …    each edge: the tokens of one segment
             rows 3, 8          rows 3, 8         └─ "What is a dog?" …    each node: the rows that can lend so far

A segment is `block_size` tokens, from a multiple of it on. Edges are the tokens themselves, so nothing is ever taken
for something else: a dictionary compares them where hashes agree. A row lends what it owns; what it borrows, its
lenders lend: they keep it as long as it does, so a node that has rows is led to by nodes that have some.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from kv.types import Row

TOKEN_TYPE = "i"  # tokens are int32
TOKEN_BYTES = array(TOKEN_TYPE).itemsize


def token_bytes(token_ids: Iterable[int]) -> bytes:
    """Return tokens as the index compares them."""
    return array(TOKEN_TYPE, token_ids).tobytes()


class _Segment:
    """A segment after all those before it. Without `rows` it is no longer in the tree."""

    __slots__ = ("children", "num_positions", "parent", "rows", "salt", "tokens")

    def __init__(self, tokens: bytes, salt: str, parent: _Segment | None, num_positions: int) -> None:
        self.tokens = tokens
        self.salt = salt
        self.parent = parent
        self.num_positions = num_positions  # from the beginning to its end
        self.children: dict[bytes, _Segment] = {}
        self.rows: list[Row] = []


class Prefix:
    """The tokens of a request and, as of the last look, where they leave the tree."""

    __slots__ = ("_last", "data", "salt")

    def __init__(self, token_ids: Sequence[int], salt: str = "") -> None:
        """Tokens of different `salt` are never shared."""
        self.data = token_bytes(token_ids)
        self.salt = salt
        self._last: _Segment | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.data) // TOKEN_BYTES

    @property
    def lenders(self) -> Sequence[Row]:
        """The rows that could lend what was found."""
        return () if self._last is None else self._last.rows

    def append(self, token_ids: Sequence[int]) -> None:
        """Note that the request went on with `token_ids`."""
        self.data += token_bytes(token_ids)

    def find(self, index: PrefixIndex) -> int:
        """Return how many of the tokens, from the first on, can be borrowed, in whole segments; it remembers where."""
        last = self._last
        while last is not None and not last.rows:
            last = last.parent
        start = 0 if last is None else last.num_positions * TOKEN_BYTES
        self._last = index.last_of(last, self.salt, self.data[start:])
        return 0 if self._last is None else self._last.num_positions


class PrefixIndex:
    """The tree. Rows are told by the manager: what they hold, and when they hold less."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._roots: dict[str, dict[bytes, _Segment]] = {}
        self._owned: dict[Row, list[_Segment]] = {}  # the segments that a row can lend, in order

    def last_of(self, last: _Segment | None, salt: str, data: bytes) -> _Segment | None:
        """Return the segment to which `data` leads from `last` (None: the beginning), or `last` itself."""
        children = self._roots.get(salt) if last is None else last.children
        size = self.block_size * TOKEN_BYTES
        for start in range(0, len(data) - size + 1, size):
            found = children.get(data[start : start + size]) if children else None
            if found is None:
                break
            last, children = found, found.children
        return last

    def add(self, row: Row, prefix: Prefix, num_borrowed: int, num_held: int) -> None:
        """Note that `row` holds the first `num_held` tokens of `prefix`, of which the first `num_borrowed` are not its
        own; what is noted already is skipped."""
        size = self.block_size * TOKEN_BYTES
        owned = self._owned.get(row, [])
        first = num_borrowed // self.block_size * size
        last = owned[-1] if owned else self.last_of(None, prefix.salt, prefix.data[:first])
        assert owned or first == (last.num_positions * TOKEN_BYTES if last else 0), f"row {row} borrows from nobody"
        first += len(owned) * size
        for start in range(first, num_held * TOKEN_BYTES - size + 1, size):
            last = self._child(last, prefix.salt, prefix.data[start : start + size])
            last.rows.append(row)
            owned.append(last)
        if owned:
            self._owned[row] = owned

    def cut(self, row: Row, num_kept: int) -> None:
        """Note that `row` holds its first `num_kept` positions only."""
        owned = self._owned.get(row)
        while owned and owned[-1].num_positions > num_kept:
            segment = owned.pop()
            segment.rows.remove(row)
            if not segment.rows:
                self._remove(segment)
        if owned is not None and not owned:
            del self._owned[row]

    def is_double(self, row: Row) -> bool:
        """Whether others hold all that `row` can lend."""
        return row not in self._owned or len(self._owned[row][-1].rows) > 1

    def check_invariants(self, held: Sequence[int]) -> None:
        """Assert that the tree is the rows' segments; `held`: positions by row."""
        num_segments = 0
        for row, owned in self._owned.items():
            assert owned[-1].num_positions <= held[row], f"row {row} lends what it does not hold"
            for segment in owned:
                assert segment.rows.count(row) == 1, f"row {row} is not once in a segment it owns"
        for salt, children in self._roots.items():
            assert children, f"nothing is left under salt {salt!r}"
            stack = list(children.values())
            while stack:
                segment = stack.pop()
                assert segment.rows, "a segment that nobody holds is in the tree"
                num_segments += len(segment.rows)
                stack += segment.children.values()
        assert num_segments == sum(map(len, self._owned.values())), "a row is in a segment it does not own"

    def _child(self, last: _Segment | None, salt: str, tokens: bytes) -> _Segment:
        """Return the segment `tokens` after `last`; a new one where there is none."""
        children = self._roots.setdefault(salt, {}) if last is None else last.children
        if tokens not in children:
            num_positions = self.block_size + (last.num_positions if last else 0)
            children[tokens] = _Segment(tokens, salt, last, num_positions)
        return children[tokens]

    def _remove(self, segment: _Segment) -> None:
        assert not segment.children, "a segment that nobody holds leads to one that somebody does"
        siblings = self._roots[segment.salt] if segment.parent is None else segment.parent.children
        del siblings[segment.tokens]
        if segment.parent is None and not siblings:
            del self._roots[segment.salt]
