"""The folder that holds everything: contents of files under their ids, and the database beside them.

    data_dir/lock             held by the one process that owns the folder
    data_dir/state.sqlite3    see `store`
    data_dir/files/<id>       contents
    data_dir/parts/<name>     uploads that have not ended: worthless after a restart

A content that the database does not know is left from a death between two steps; opening the folder deletes it. Files
of other names stay. Files and links of another user are neither followed, read nor deleted.
"""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from backend.core.ownership import is_foreign, make_own_folder, own
from front.batches.store import Store, StoreError

_CONTENT = re.compile(r"file-[0-9a-f]{32}")
_PART = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Folder:
    """The paths."""

    root: Path

    @property
    def database(self) -> Path:
        return self.root / "state.sqlite3"

    @property
    def files(self) -> Path:
        return self.root / "files"

    @property
    def parts(self) -> Path:
        return self.root / "parts"

    def content(self, file_id: str) -> Path:
        """Return where the content of a file lies; `file_id` is one that the store knows."""
        assert file_id.startswith("file-"), f"{file_id!r} is no id of ours"
        return self.files / file_id

    def keep(self, part: Path, file_id: str) -> None:
        """Make a part, which its writer has put on the disk, the content of a file."""
        os.replace(part, self.content(file_id))
        self.sync()

    def sync(self) -> None:
        """Put the names of the contents on the disk."""
        descriptor = os.open(self.files, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def open_folder(root: Path) -> Iterator[tuple[Folder, Store]]:
    """Own a folder, made where there is none, and its database. Raises StoreError, OSError: also where another user has
    a part of it."""
    folder = Folder(root)
    for path in (root, folder.files, folder.parts):
        make_own_folder(path)
    if is_foreign(folder.database):
        raise StoreError(f"{folder.database} belongs to another user")
    with open(root / "openai.lock", "ab", opener=own) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(f"{root}: another process owns these files and batches") from error
        store = Store(folder.database)
        try:
            _sweep(folder, store.known_ids())
            yield folder, store
        finally:
            store.close()


def check_folder(root: Path) -> None:
    """Own a folder for a moment. Raises StoreError, also where none can be made or it cannot be read."""
    try:
        with open_folder(root):
            return
    except OSError as error:
        raise StoreError(f"{root} cannot hold files and batches: {_words(error, root)}") from error
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{root} cannot hold files and batches: {error}") from error


def _words(error: OSError, root: Path) -> str:
    """Name the fault, and the path where it is not `root`."""
    is_root = error.filename is None or Path(error.filename) == root
    return str(error.strerror) if is_root else f"{error.filename}: {error.strerror}"


def _sweep(folder: Folder, known: set[str]) -> None:
    contents = [path for path in folder.files.iterdir() if _CONTENT.fullmatch(path.name) and path.name not in known]
    for path in (*contents, *(path for path in folder.parts.iterdir() if _PART.fullmatch(path.name))):
        path.unlink()
