"""The process of `schema_check`: reads grammars, answers why one cannot be compiled, and how many bytes it takes.

It imports nothing of this project. argv: the library's limits as JSON, seconds of processor time for a grammar, bytes
of address space. It ends with its input, or by a signal where a grammar exceeds them.
"""

from __future__ import annotations

import ctypes
import json
import resource
import signal
import struct
import sys

_LENGTH = struct.Struct(">I")
_ANSWER = struct.Struct(">IQ")  # length of the reason, bytes of the compiled grammar
_LIBC = ctypes.CDLL(None)


def main(limits_json: str, cpu_s: str, memory_bytes: str) -> None:
    """Answer until the input ends. The timer's signal has no handler: it ends the process."""
    import llguidance  # here, since the engine reads `bytes_in_use`, and may have no such library

    resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes), int(memory_bytes)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limits = llguidance.LLParserLimits(**json.loads(limits_json))
    tokenizer = llguidance.LLTokenizer("byte")
    while head := sys.stdin.buffer.read(_LENGTH.size):
        grammar = sys.stdin.buffer.read(*_LENGTH.unpack(head)).decode()
        signal.setitimer(signal.ITIMER_PROF, float(cpu_s))
        matcher = None  # or the former grammar would end between the two readings
        before = bytes_in_use()
        matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        reason, num_bytes = matcher.get_error().encode(), max(0, bytes_in_use() - before)
        sys.stdout.buffer.write(_ANSWER.pack(len(reason), num_bytes) + reason)
        sys.stdout.buffer.flush()


def bytes_in_use() -> int:
    """Return what malloc has given out: of glibc, by `mallinfo2`, or before 2.33 by `mallinfo`."""
    names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    is_wide = hasattr(_LIBC, "mallinfo2")
    kind = ctypes.c_size_t if is_wide else ctypes.c_int
    read = _LIBC.mallinfo2 if is_wide else _LIBC.mallinfo
    read.restype = type("Mallinfo", (ctypes.Structure,), {"_fields_": [(name, kind) for name in names]})
    info = read()
    return int(info.uordblks + info.hblkhd)


if __name__ == "__main__":
    main(*sys.argv[1:])
