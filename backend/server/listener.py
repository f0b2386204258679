"""The Unix socket that stubs connect to, held by one process and put back when somebody deletes its file.

Cleaners of temporary directories delete sockets that look unused. Stubs that are connected do not notice, but one that
starts later would find no engine. Holding the socket means holding a lock on the file beside it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
from pathlib import Path

from backend.core.ownership import make_own_folder, own

logger = logging.getLogger(__name__)

CHECK_PERIOD_S = 1.0  # how often the file is looked at; a stub tries again every two seconds (engine_link)

_FileId = tuple[int, int]  # device and inode


class AlreadyServedError(Exception):
    """Another engine process serves this socket."""


class Listener:
    """Listens at `path` from its making to `close`. Raises AlreadyServedError where another process does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock_path = Path(f"{path}.lock")
        make_own_folder(path.parent)
        self._lock_fd = self._take_lock()
        self._is_closed = threading.Event()
        self._guard = threading.Lock()  # a socket that is put back is closed, too
        try:
            self._socket, self._file_id = self._bind()
        except OSError:
            os.close(self._lock_fd)
            raise

    def accept(self) -> socket.socket | None:
        """Wait for the next connection; None once this is closed. Raises OSError, for want of descriptors say."""
        while not self._is_closed.is_set():
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                self._put_back()
                continue
            except OSError:
                if self._is_closed.is_set():
                    return None
                raise
            connection.settimeout(None)
            return connection
        return None

    def close(self) -> None:
        """Stop listening, also in another thread, and leave no file."""
        with self._guard:
            self._is_closed.set()
            _end(self._socket)
            if _id_of(self._path) == self._file_id:
                self._path.unlink(missing_ok=True)
            os.close(self._lock_fd)

    def _put_back(self) -> None:
        """Listen at the path again where its file is no longer ours. An error is met again at the next look."""
        with self._guard:
            if self._is_closed.is_set() or _id_of(self._path) == self._file_id:
                return
            try:
                make_own_folder(self._path.parent)
                if _id_of(self._lock_path) != _id_of(self._lock_fd):
                    lock_fd = self._take_lock()
                    os.close(self._lock_fd)
                    self._lock_fd = lock_fd
                old, (self._socket, self._file_id) = self._socket, self._bind()
            except (OSError, AlreadyServedError) as error:
                logger.error("the socket %s is gone and cannot be put back: %s", self._path, error)
            else:
                logger.warning("the socket %s was gone; listening there again", self._path)
                _end(old)

    def _take_lock(self) -> int:
        lock = own(str(self._lock_path), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise AlreadyServedError(str(self._path)) from error
        return lock

    def _bind(self) -> tuple[socket.socket, _FileId]:
        """Return a socket that listens at the path, and its file. With the lock taken, an existing socket is dead."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(self._path))
            self._path.chmod(0o600)
            listener.listen()
            listener.settimeout(CHECK_PERIOD_S)
            file_id = _id_of(self._path)
            if file_id is None:
                raise FileNotFoundError(f"{self._path} was deleted again")
        except OSError:
            listener.close()
            raise
        return listener, file_id


def _id_of(file: Path | int) -> _FileId | None:
    """Return which file is there, None where none is."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _end(listener: socket.socket) -> None:
    """Close a listening socket; a thread that waits in `accept` returns."""
    try:
        listener.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        logger.debug("the listener was shut down already: %s", error)
    listener.close()
