"""Tries a grammar in a process of its own, which ends when that takes too much time or memory.

us ──length, grammar──► process: compiles it, tokens left out ──length and bytes, reason against it──► us
"""

from __future__ import annotations

import contextlib
import json
import logging
import selectors
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

logger = logging.getLogger(__name__)

CPU_S = 1.0  # for one grammar; a schema of 1,500 properties takes a quarter of it
WALL_S = 10.0  # the same on a machine with no core to spare
MEMORY_BYTES = 1 << 30  # of addresses; a process with an empty grammar has a tenth of it
_LENGTH = struct.Struct(">I")
_ANSWER = struct.Struct(">IQ")
_PROGRAM = Path(__file__).with_name("schema_process.py")


class Trial(NamedTuple):
    """Why a grammar cannot be compiled, empty where it can; and about how many bytes it takes."""

    reason: str
    num_bytes: int = 0


class SchemaCheck:
    """Holds one process, which is started when first asked, and again after it has ended. For any thread."""

    def __init__(self, limits: Mapping[str, object], cpu_s: float = CPU_S, wall_s: float = WALL_S) -> None:
        self._arguments = [json.dumps(limits), str(cpu_s), str(MEMORY_BYTES)]
        self._cpu_s = cpu_s
        self._wall_s = wall_s
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def try_out(self, grammar: str) -> Trial:
        """Compile `grammar` in the process."""
        with self._lock:
            process = self._running()
            try:
                return self._ask(process, grammar.encode())
            except (OSError, EOFError) as error:
                logger.info("a schema was given up: %s", error)
                self._end()
                return Trial(f"takes more than {self._cpu_s:g} s or {MEMORY_BYTES >> 20} MiB to compile")

    def close(self) -> None:
        """End the process, where there is one."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            command = [sys.executable, "-P", str(_PROGRAM), *self._arguments]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], grammar: bytes) -> Trial:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(_LENGTH.pack(len(grammar)) + grammar)
        process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(self._wall_s):
                raise TimeoutError(f"no answer within {self._wall_s:g} s")
        length, num_bytes = _ANSWER.unpack(_read(process.stdout, _ANSWER.size))
        return Trial(_read(process.stdout, length).decode(), num_bytes)

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):  # bytes not yet written
                    assert pipe is not None
                    pipe.close()
            self._process.wait()
            self._process = None


def _read(stream: IO[bytes], num_bytes: int) -> bytes:
    data = stream.read(num_bytes)
    if len(data) < num_bytes:
        raise EOFError("the process ended")
    return data
