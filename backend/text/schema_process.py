"""The process of `schema_check`: reads grammars, answers why one cannot be compiled.

It imports nothing of this project. argv: the library's limits as JSON, seconds of processor time for a grammar, bytes
of address space. It ends with its input, or by a signal where a grammar exceeds them.
"""

from __future__ import annotations

import json
import resource
import signal
import struct
import sys

import llguidance

_LENGTH = struct.Struct(">I")


def main(limits_json: str, cpu_s: str, memory_bytes: str) -> None:
    """Answer until the input ends. The timer's signal has no handler: it ends the process."""
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes), int(memory_bytes)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limits = llguidance.LLParserLimits(**json.loads(limits_json))
    tokenizer = llguidance.LLTokenizer("byte")
    while head := sys.stdin.buffer.read(_LENGTH.size):
        grammar = sys.stdin.buffer.read(*_LENGTH.unpack(head)).decode()
        signal.setitimer(signal.ITIMER_PROF, float(cpu_s))
        reason = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits).get_error().encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(_LENGTH.pack(len(reason)) + reason)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
