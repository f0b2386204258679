"""One stub's socket as the engine writes to it: a write never waits.

Bytes that the socket does not take at once are kept, up to a limit, and sent by the connection's own thread. A stub
that does not read, or is gone, is disconnected. The socket's reader then sees the close and cleans up. A stub that
reads stays connected, even if many answers end at once: 256 answers of 8,192 tokens are 18 MB.
"""

from __future__ import annotations

import logging
import socket
import threading
import time

from backend.core.request import RequestId
from backend.wire.protocol import ToStub, frame

logger = logging.getLogger(__name__)

_PATIENCE_S = 2.0  # with a stub that takes nothing; one that works reads at once
_BURST = 8  # times the limit, that a stub which reads may be behind


class Connection:
    """A stub as the engine sees it. `send` may be called from any thread."""

    def __init__(self, sock: socket.socket, index: int, max_unsent_bytes: int) -> None:
        self.socket = sock
        self.index = index  # tells connections of one engine apart
        self.name = "?"  # the model's, once it has said hello
        self.wants_metrics = False
        self._max_unsent_bytes = max_unsent_bytes
        self._unsent = bytearray()
        self._has_unsent = threading.Condition()
        self._is_closed = False
        self._last_taken_s = time.monotonic()  # when the socket last took something, or there was nothing to take
        self._writer: threading.Thread | None = None

    @property
    def num_unsent_bytes(self) -> int:
        """Bytes that the socket has not taken yet."""
        return len(self._unsent)

    def request_id(self, handle: int, client_id: str) -> RequestId:
        """Return the engine's name of a request: the client's, made unique."""
        return RequestId(f"{client_id or self.name}#{self.index}.{handle}")

    def send(self, message: ToStub) -> None:
        """Send `message` without blocking; disconnect a stub whose unsent output grows over the limit."""
        data = frame(message)
        with self._has_unsent:
            if self._is_closed:
                return
            if not self._unsent:
                self._last_taken_s = time.monotonic()
            num_sent = 0 if self._unsent else self._send_now(data)
            self._unsent += memoryview(data)[num_sent:]
            if self._is_too_slow():
                logger.warning(
                    "disconnecting stub %s, which does not read: %d bytes wait", self.name, len(self._unsent)
                )
                self._close()
            elif self._unsent:
                self._start_writer()
                self._has_unsent.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is sent; return False when it takes longer than `timeout_s`."""
        with self._has_unsent:
            return self._has_unsent.wait_for(lambda: self._is_closed or not self._unsent, timeout_s)

    def close(self) -> None:
        """Disconnect; idempotent. The thread that reads from the socket sees its end."""
        with self._has_unsent:
            self._close()

    def _is_too_slow(self) -> bool:
        num_bytes, limit = len(self._unsent), self._max_unsent_bytes
        has_stopped = time.monotonic() - self._last_taken_s > _PATIENCE_S
        return num_bytes > limit * _BURST or (num_bytes > limit and has_stopped)

    def _close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._unsent.clear()
        self._has_unsent.notify_all()
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            logger.debug("stub %s was gone already: %s", self.name, error)

    def _send_now(self, data: bytes | bytearray) -> int:
        """Hand the kernel what it takes at once; return how many bytes that were."""
        try:
            return self.socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError:
            self._close()
            return len(data)

    def _start_writer(self) -> None:
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name=f"write-{self.name}", daemon=True)
            self._writer.start()

    def _write(self) -> None:
        """Send the unsent bytes, blocking; ends when the connection does."""
        while True:
            with self._has_unsent:
                self._has_unsent.wait_for(lambda: self._is_closed or self._unsent)
                if self._is_closed:
                    return
                piece = bytes(self._unsent[:65536])
            try:
                num_sent = self.socket.send(piece, socket.MSG_NOSIGNAL)
            except OSError:
                self.close()
                return
            with self._has_unsent:
                del self._unsent[:num_sent]
                self._last_taken_s = time.monotonic()
                if not self._unsent:
                    self._has_unsent.notify_all()
