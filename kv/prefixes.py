"""The tokens that rows hold: a tree of runs, in which a new request finds the longest prefix that it can borrow.

    (salt) ─ "You are a helpful assistant." ─┬─ "What is a cat?" …    each run: the tokens of some segments, and
             rows 3, 8                       └─ "What is a dog?" …    the rows that can lend all of them

A segment is `block_size` tokens and starts at a multiple of `block_size`. A run is one or more whole segments. A run is
split where one of its rows lends only a part of it. A row that shares with no other is therefore one run of any length.

The index compares tokens, not hashes, so it never confuses two prefixes. A row lends only the positions that it owns.
Its lenders lend the positions that it borrows, and they keep them as long as it does. So each run in the tree has rows.

While a `PrefixLog` is attached, the index records in it each segment that enters or leaves the tree (kv/prefix_log.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from struct import Struct
from typing import NamedTuple

import numpy as np

from kv.prefix_log import PrefixEvent, PrefixLog, Removed, Stored, hashes_of
from kv.types import Row

TOKEN_BYTES = 4  # tokens are int32


def token_bytes(token_ids: Sequence[int]) -> bytes:
    """Return tokens as int32 bytes, which the index compares."""
    return _struct_of(len(token_ids)).pack(*token_ids)  # three times as fast as through a numpy array


@cache  # one of each length up to the longest sequence; `struct` itself keeps 100
def _struct_of(num_tokens: int) -> Struct:
    return Struct(f"={num_tokens}i")


class _Run:
    """Tokens [start, stop) after those of its parents. A run without `rows` is no longer in the tree.

    hashes: one per segment while a log is attached; else empty.
    """

    __slots__ = ("children", "hashes", "parent", "rows", "salt", "start", "stop", "tokens")

    def __init__(self, tokens: bytes, salt: str, parent: _Run | None, start: int) -> None:
        self.tokens = tokens
        self.salt = salt
        self.parent = parent
        self.start = start
        self.stop = start + len(tokens) // TOKEN_BYTES
        self.children: dict[bytes, _Run] = {}  # by the first segment of each
        self.rows: list[Row] = []
        self.hashes: Sequence[int] = ()


class Lost(NamedTuple):
    """Segments that leave the tree, by index, and all tokens up to the end of the last one."""

    salt: str
    tokens: bytes
    segments: list[int]


class Prefix:
    """The tokens of a prompt, and where they left the tree at the last search (see `PrefixIndex.find`)."""

    __slots__ = (
        *("data", "num_tokens", "salt", "token_ids"),
        *("found_at", "last", "lent", "names", "num_found", "num_known"),
    )

    def __init__(self, token_ids: Sequence[int], salt: str = "") -> None:
        """Take the tokens of a prompt. Prefixes share only under the same `salt`.

        The request may append to `token_ids` what it generates: its row holds, and lends, those tokens too.
        """
        self.data = token_bytes(token_ids)
        self.token_ids = token_ids
        self.num_tokens = len(token_ids)  # of the prompt
        self.salt = salt
        self.last: _Run | None = None  # the last run whose tokens all match
        self.num_known = 0  # tokens up to its end, when it was found
        self.lent: _Run | None = None  # the last run of which at least the first segment matches
        self.num_found = 0
        self.names: list[bytes] | None = None  # of its segments on the host (kv/host_prefixes.py), once it was asked
        self.found_at = -1  # the change of the tree after which the last search was made

    @property
    def lenders(self) -> Sequence[Row]:
        """The rows that can lend the prefix that the last search found."""
        return () if self.lent is None else self.lent.rows

    def between(self, start: int, stop: int) -> bytes:
        """Return tokens [start, stop) of the prompt and of what the request generated."""
        if stop <= self.num_tokens:
            return self.data[start * TOKEN_BYTES : stop * TOKEN_BYTES]
        return token_bytes(self.token_ids[start:stop])


class PrefixIndex:
    """The tree. The manager reports which tokens each row holds, and when it loses some."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._size = block_size * TOKEN_BYTES  # bytes of a segment
        self._roots: dict[str, dict[bytes, _Run]] = {}
        self._owned: dict[Row, list[_Run]] = {}  # the runs that a row can lend, in order
        self._log: PrefixLog | None = None
        self._num_changes = 0  # of runs, so that nothing is searched again while they stay

    def watch(self) -> list[PrefixEvent]:
        """Attach a log. Return an event for each run that is in the tree already."""
        self._log = PrefixLog()
        stack = [run for children in self._roots.values() for run in children.values()]
        while stack:
            run = stack.pop()
            run.hashes = ()
            self._note_stored(run, run.tokens)
            stack += run.children.values()
        return self._log.take()

    def unwatch(self) -> None:
        """Remove the log."""
        self._log = None

    def take_events(self) -> list[PrefixEvent]:
        """Return the events since the last call, or since `watch`."""
        return [] if self._log is None else self._log.take()

    def find(self, prefix: Prefix) -> int:
        """Return how many leading tokens of `prefix` a row could borrow, in whole segments.

        Record in `prefix` where its tokens leave the tree. The next search starts there.
        """
        if prefix.found_at == self._num_changes:
            return prefix.num_found
        data, size, last, num_known = prefix.data, self._size, prefix.last, prefix.num_known
        while last is not None and (not last.rows or last.stop > num_known):  # it left the tree, or grew
            num_known = min(num_known, last.start)  # the parent may have grown since, too
            last = last.parent
        children = self._roots.get(prefix.salt) if last is None else last.children
        start = 0 if last is None else last.stop * TOKEN_BYTES
        lent, num_alike = last, 0
        while children and (run := children.get(data[start : start + size])) is not None:
            lent = run
            if not data.startswith(run.tokens, start):
                num_alike = self._num_alike(run.tokens, data[start:])
                break
            last, children = run, run.children
            start += len(run.tokens)
        prefix.last, prefix.lent, prefix.num_known = last, lent, start // TOKEN_BYTES
        prefix.num_found, prefix.found_at = prefix.num_known + num_alike, self._num_changes
        return prefix.num_found

    def add(self, row: Row, prefix: Prefix, num_borrowed: int, num_held: int) -> None:
        """Record that `row` holds the first `num_held` tokens of `prefix` and borrows the first `num_borrowed` of them.

        Tokens that an earlier call recorded are skipped.
        """
        size, stop = self.block_size, num_held // self.block_size * self.block_size
        owned = self._owned.get(row)
        start = owned[-1].stop if owned else num_borrowed // size * size
        if start >= stop:
            return
        if owned is None:
            last = self._lent_to(row, prefix, start) if start else None
            owned = self._owned[row] = []
        else:
            last = owned[-1]
            if len(last.rows) == 1 and not last.children:  # no other row has this run: extend it
                tokens = prefix.between(start, stop)
                last.tokens += tokens
                last.stop = stop
                self._num_changes += 1
                if self._log is not None:
                    self._note_stored(last, tokens)
                return
        while start < stop:
            last = self._next(last, prefix, start, stop)
            last.rows.append(row)
            owned.append(last)
            start = last.stop

    def cut(self, row: Row, num_kept: int) -> None:
        """Record that `row` holds only its first `num_kept` positions."""
        owned = self._owned.get(row)
        if owned is None or owned[-1].stop <= num_kept:
            return
        stop = num_kept // self.block_size * self.block_size
        while owned and owned[-1].start >= stop:
            run = owned.pop()
            run.rows.remove(row)
            if not run.rows:
                self._remove(run)
        if not owned:
            del self._owned[row]
        elif owned[-1].stop > stop:
            self._split(owned[-1], stop)
            self.cut(row, stop)

    def lost_by(self, row: Row, num_kept: int) -> Lost:
        """Return what nobody lends any more once `row` holds only its first `num_kept` positions."""
        owned, size = self._owned.get(row, ()), self.block_size
        lost = [run for run in owned if run.stop > num_kept and len(run.rows) == 1]
        starts = [max(run.start, num_kept // size * size) // size for run in lost]
        segments = [index for run, start in zip(lost, starts, strict=True) for index in range(start, run.stop // size)]
        tokens, run = [], lost[-1] if lost else None
        while run is not None:
            tokens.append(run.tokens)
            run = run.parent
        return Lost(owned[-1].salt if owned else "", b"".join(reversed(tokens)), segments)

    def is_double(self, row: Row) -> bool:
        """Whether other rows lend all the tokens that `row` can lend."""
        return row not in self._owned or len(self._owned[row][-1].rows) > 1

    def check_invariants(self, held: Sequence[int]) -> None:
        """Assert that the tree holds exactly the runs of the rows. `held`: the positions of each row."""
        for row, owned in self._owned.items():
            assert owned[-1].stop <= held[row], f"row {row} lends what it does not hold"
            for run, after in zip(owned, [*owned[1:], None], strict=True):
                assert run.rows.count(row) == 1, f"row {row} is not listed once in a run it owns"
                assert after is None or after.parent is run, f"row {row} owns runs that do not follow each other"
        num_rows = 0
        for salt, children in self._roots.items():
            assert children, f"nothing is left under salt {salt!r}"
            stack: list[tuple[bytes, _Run, _Run | None]] = [(first, run, None) for first, run in children.items()]
            while stack:
                first, run, parent = stack.pop()
                self._check_run(first, run, parent)
                num_rows += len(run.rows)
                stack += [(first, child, run) for first, child in run.children.items()]
        assert num_rows == sum(map(len, self._owned.values())), "a row is in a run it does not own"

    def _check_run(self, first: bytes, run: _Run, parent: _Run | None) -> None:
        assert run.rows, "a run that nobody holds is in the tree"
        assert run.tokens[: self._size] == first, "a run is not found by its first segment"
        assert len(run.tokens) % self._size == 0, "a run is not whole segments"
        assert run.stop == run.start + len(run.tokens) // TOKEN_BYTES, "a run does not know where it ends"
        num_segments = len(run.tokens) // self._size
        assert self._log is None or len(run.hashes) == num_segments, "segments of a run were not noted"
        assert run.parent is parent, "a run does not know what leads to it"
        assert run.start == (parent.stop if parent else 0), "a run does not begin where the one before ends"

    def _lent_to(self, row: Row, prefix: Prefix, stop: int) -> _Run | None:
        """Return the run that ends at `stop`. `row` borrows all tokens before `stop`."""
        last, start = None, 0
        while start < stop:
            last = self._next(last, prefix, start, stop)
            assert last.rows, f"row {row} borrows from nobody"
            start = last.stop
        return last

    def _next(self, last: _Run | None, prefix: Prefix, start: int, stop: int) -> _Run:
        """Return the run after `last` that holds tokens [start, stop) of `prefix`, or the first of them.

        Add such a run where the tree has none. Split a run that holds other tokens too.
        """
        tokens = prefix.between(start, stop)
        first = tokens[: self._size]
        children = self._roots.setdefault(prefix.salt, {}) if last is None else last.children
        run = children.get(first)
        if run is None:
            run = children[first] = _Run(tokens, prefix.salt, last, start)
            self._num_changes += 1
            if self._log is not None:
                self._note_stored(run, tokens)
            return run
        num_alike = self._num_alike(run.tokens, tokens)
        return run if start + num_alike == run.stop else self._split(run, start + num_alike)

    def _num_alike(self, tokens: bytes, others: bytes) -> int:
        """Return how many leading tokens are equal, in whole segments."""
        size = min(len(tokens), len(others)) // self._size * self._size
        if tokens[:size] == others[:size]:
            return size // TOKEN_BYTES
        differs = np.frombuffer(tokens[:size], np.int32) != np.frombuffer(others[:size], np.int32)
        return int(differs.argmax()) // self.block_size * self.block_size

    def _split(self, run: _Run, stop: int) -> _Run:
        """Let `run` begin at `stop`. Return a new run of the same rows that holds the tokens before it."""
        self._num_changes += 1
        size = (stop - run.start) * TOKEN_BYTES
        before = _Run(run.tokens[:size], run.salt, run.parent, run.start)
        before.rows = run.rows.copy()
        siblings = self._siblings(run)
        siblings[run.tokens[: self._size]] = before
        run.tokens, run.parent, run.start = run.tokens[size:], before, stop
        num_before = size // self._size
        before.hashes, run.hashes = run.hashes[:num_before], run.hashes[num_before:]
        before.children[run.tokens[: self._size]] = run
        for row in run.rows:
            owned = self._owned[row]
            owned.insert(owned.index(run), before)
        return before

    def _remove(self, run: _Run) -> None:
        """Take a run that no row holds out of the tree."""
        assert not run.children, "a run that nobody holds leads to one that somebody does"
        self._num_changes += 1
        siblings = self._siblings(run)
        del siblings[run.tokens[: self._size]]
        if run.parent is None and not siblings:
            del self._roots[run.salt]
        if self._log is not None:
            self._log.note(Removed([*run.hashes]))

    def _note_stored(self, run: _Run, tokens: bytes) -> None:
        """Record in the log that `run` entered the tree, or grew by `tokens`."""
        assert self._log is not None, "no log is attached"
        before = run if run.hashes else run.parent
        parent = None if before is None else before.hashes[-1]
        hashes = hashes_of(parent, run.salt, tokens, self._size)
        run.hashes = [*run.hashes, *hashes]
        self._log.note(Stored(parent, hashes, tokens, run.salt))

    def _siblings(self, run: _Run) -> dict[bytes, _Run]:
        """Return the children of the run's parent, the run itself among them."""
        return self._roots[run.salt] if run.parent is None else run.parent.children
