"""The store of files and batches: one SQLite database, each change of state one transaction on the disk.

One thread at a time uses it. Rows are numbered in the order of their making; lists and cursors go by that.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from front.batches.objects import NEXT, Batch, StoredFile

_VERSION = 1
_SCHEMA = """
CREATE TABLE files (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL,
    purpose TEXT NOT NULL, num_bytes INTEGER NOT NULL, record BLOB NOT NULL) STRICT;
CREATE TABLE batches (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL,
    input_id TEXT NOT NULL, is_end INTEGER NOT NULL, record BLOB NOT NULL) STRICT;
CREATE INDEX files_of ON files (owner, number);
CREATE INDEX batches_of ON batches (owner, number);
CREATE INDEX unfinished ON batches (is_end) WHERE is_end = 0;
"""
# What each owner has, kept up with every change: a sum over a million files takes a second.
_TOTALS = """
CREATE TABLE totals (owner TEXT PRIMARY KEY, num_files INTEGER NOT NULL, num_bytes INTEGER NOT NULL) STRICT;
INSERT INTO totals SELECT owner, count(*), sum(num_bytes) FROM files GROUP BY owner;
CREATE TRIGGER file_came AFTER INSERT ON files BEGIN
    INSERT OR IGNORE INTO totals VALUES (NEW.owner, 0, 0);
    UPDATE totals SET num_files = num_files + 1, num_bytes = num_bytes + NEW.num_bytes WHERE owner = NEW.owner;
END;
CREATE TRIGGER file_went AFTER DELETE ON files BEGIN
    UPDATE totals SET num_files = num_files - 1, num_bytes = num_bytes - OLD.num_bytes WHERE owner = OLD.owner;
    DELETE FROM totals WHERE owner = OLD.owner AND num_files = 0;
END;
"""
R = TypeVar("R", StoredFile, Batch)


class StoreError(Exception):
    """The database cannot be used: the message says why."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Which part of a list: at most `limit` after the one with id `after`, the newest first unless it says not."""

    limit: int
    after: str | None = None
    newest_first: bool = True


class Store:
    """The database. Every method that changes something returns once the disk has it."""

    def __init__(self, path: Path) -> None:
        """Open or make the database. Raises StoreError."""
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise StoreError(f"{path}: version {version} of another bros; this one reads {_VERSION}")
        if version == 0:
            self._database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        if not self._number("SELECT count(*) FROM sqlite_master WHERE name = 'totals'", ()):
            self._database.executescript(f"BEGIN; {_TOTALS} COMMIT;")

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    # --- files

    def add_file(self, file: StoredFile) -> None:
        """Note a file whose content lies on the disk."""
        with self._change():
            self._insert_file(file)

    def file(self, owner: str, file_id: str) -> StoredFile | None:
        """Return a file; None where `owner` has none of that id."""
        return self._one("SELECT record FROM files WHERE id = ? AND owner = ?", (file_id, owner), StoredFile)

    def files(self, owner: str, cut: Cut, purpose: str | None = None) -> list[StoredFile] | None:
        """Return files of `owner`; None where there is no `cut.after`."""
        condition = "TRUE" if purpose is None else "purpose = ?"
        return self._list("files", StoredFile, owner, cut, condition, () if purpose is None else (purpose,))

    def delete_file(self, owner: str, file_id: str) -> bool:
        """Forget a file; False where `owner` has none of that id. Its content is for who calls to delete."""
        with self._change():
            deleted = self._database.execute("DELETE FROM files WHERE id = ? AND owner = ?", (file_id, owner))
            return deleted.rowcount == 1

    def is_in_use(self, file_id: str) -> bool:
        """Return whether a batch that has not ended reads this file."""
        query = "SELECT EXISTS (SELECT 1 FROM batches WHERE is_end = 0 AND input_id = ?)"
        return bool(self._number(query, (file_id,)))

    def num_files(self, owner: str) -> int:
        """Return how many files `owner` has."""
        return self._number("SELECT coalesce(sum(num_files), 0) FROM totals WHERE owner = ?", (owner,))

    def stored_bytes(self, owner: str | None = None) -> int:
        """Return the size of all files, or of those of one owner."""
        query = "SELECT coalesce(sum(num_bytes), 0) FROM totals"
        return self._number(query, ()) if owner is None else self._number(f"{query} WHERE owner = ?", (owner,))

    def known_ids(self) -> set[str]:
        """Return the ids of all files, and of those that unfinished batches are writing."""
        ids = {file_id for (file_id,) in self._database.execute("SELECT id FROM files")}
        return ids.union(*({batch.output_id, batch.errors_id} for batch in self.unfinished()))

    # --- batches

    def add_batch(self, batch: Batch) -> None:
        """Note a new batch."""
        with self._change():
            self._database.execute(
                "INSERT INTO batches (id, owner, input_id, is_end, record) VALUES (?, ?, ?, ?, ?)",
                (batch.id, batch.owner, batch.input_id, batch.status.is_end, msgspec.json.encode(batch)),
            )

    def forget_ended(self, owner: str, num_kept: int) -> None:
        """Forget what has ended of the batches of `owner`, but for the `num_kept` newest of them all."""
        newest = "SELECT number FROM batches WHERE owner = ? ORDER BY number DESC LIMIT 1 OFFSET ?"
        query = f"DELETE FROM batches WHERE owner = ? AND is_end = 1 AND number <= ({newest})"
        with self._change():
            self._database.execute(query, (owner, owner, num_kept))

    def batch(self, owner: str, batch_id: str) -> Batch | None:
        """Return a batch; None where `owner` has none of that id."""
        return self._one("SELECT record FROM batches WHERE id = ? AND owner = ?", (batch_id, owner), Batch)

    def batches(self, owner: str, cut: Cut) -> list[Batch] | None:
        """Return batches of `owner`; None where there is no `cut.after`."""
        return self._list("batches", Batch, owner, cut)

    def unfinished(self) -> list[Batch]:
        """Return the batches of everybody that have not ended, the oldest first."""
        rows = self._database.execute("SELECT record FROM batches WHERE is_end = 0 ORDER BY number")
        return [msgspec.json.decode(record, type=Batch) for (record,) in rows]

    def move(self, batch: Batch, files: Sequence[StoredFile] = ()) -> Batch:
        """Replace the record of `batch` and add `files`, in one transaction; return the record that then stands.

        The new status may not follow the one that the batch has reached meanwhile. Then nothing changes.
        """
        with self._change():
            now = self._one("SELECT record FROM batches WHERE id = ?", (batch.id,), Batch)
            assert now is not None, f"batch {batch.id!r} is not in the store"
            if batch.status not in NEXT[now.status]:
                return now
            for file in files:
                self._insert_file(file)
            self._database.execute(
                "UPDATE batches SET is_end = ?, record = ? WHERE id = ?",
                (batch.status.is_end, msgspec.json.encode(batch), batch.id),
            )
            return batch

    # --- the database

    @contextmanager
    def _change(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def _insert_file(self, file: StoredFile) -> None:
        self._database.execute(
            "INSERT INTO files (id, owner, purpose, num_bytes, record) VALUES (?, ?, ?, ?, ?)",
            (file.id, file.owner, file.purpose, file.num_bytes, msgspec.json.encode(file)),
        )

    def _one(self, query: str, values: tuple[str, ...], kind: type[R]) -> R | None:
        row = self._database.execute(query, values).fetchone()
        return None if row is None else msgspec.json.decode(row[0], type=kind)

    def _number(self, query: str, values: tuple[str, ...]) -> int:
        return int(self._database.execute(query, values).fetchone()[0])

    def _list(
        self, table: str, kind: type[R], owner: str, cut: Cut, condition: str = "TRUE", values: tuple[str, ...] = ()
    ) -> list[R] | None:
        order, sign = ("DESC", "<") if cut.newest_first else ("ASC", ">")
        given: list[str | int] = [owner, *values]
        where = f"owner = ? AND {condition}"
        if cut.after is not None:
            find = f"SELECT number FROM {table} WHERE id = ? AND owner = ?"
            if (row := self._database.execute(find, (cut.after, owner)).fetchone()) is None:
                return None
            where += f" AND number {sign} ?"
            given.append(row[0])
        query = f"SELECT record FROM {table} WHERE {where} ORDER BY number {order} LIMIT ?"
        rows = self._database.execute(query, (*given, cut.limit))
        return [msgspec.json.decode(record, type=kind) for (record,) in rows]
