"""Starts a Triton server so that it neither shows what it holds nor pushes the engine aside.

    python confine.py PROGRAM ARGUMENT…      sets the limits below, then becomes PROGRAM

The stubs inherit all of it. Standard library only: it starts in a few milliseconds, as a plain file.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys

STACK_BYTES = 256 << 20  # a form-encoded body of some MB overflows the default stack of server 2.51
# linux/prctl.h, linux/seccomp.h, linux/audit.h, linux/bpf_common.h
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_RETURN_ALLOW, _RETURN_ERRNO_0 = 0x7FFF0000, 0x00050000
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_SECOND_ARGUMENT = 0, 4, 24  # struct seccomp_data, little-endian
_FCHMOD = {"x86_64": (0xC000003E, 91), "aarch64": (0xC00000B7, 52)}  # machine: audit architecture, system call
_WORLD_READABLE = 0o644


def main() -> None:
    """Confine this process, and become what the command line names."""
    os.umask(0o077)
    raise_limits()
    _run_as_batch()
    keep_shared_memory_private()
    os.execv(sys.argv[1], sys.argv[1:])


def keep_shared_memory_private() -> None:
    """Let `fchmod(…, 0644)` do nothing, here and in all descendants.

    Stubs exchange prompts and answers through shared memory. Triton creates it with Boost, which undoes the umask by
    such a call for every region. Every user of the machine could then read them.
    """
    machine = platform.machine()
    code = _filter(*_FCHMOD[machine]) if machine in _FCHMOD else []
    program = ctypes.create_string_buffer(b"".join(code))
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    is_set = code and libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    if not is_set or libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, head, 0, 0) != 0:
        print(f"WARNING: no seccomp here ({os.strerror(ctypes.get_errno())}): other users of this machine may read "
              "the stubs' shared memory, which holds prompts and answers", file=sys.stderr)  # fmt: skip


def _filter(architecture: int, number: int) -> list[bytes]:
    """Return a BPF program: that system call with that mode seems to work, all others do."""
    return [
        _instruction(_LOAD, _OFFSET_ARCH),
        _instruction(_JUMP_IF_EQUAL, architecture, if_not=5),
        _instruction(_LOAD, _OFFSET_NUMBER),
        _instruction(_JUMP_IF_EQUAL, number, if_not=3),
        _instruction(_LOAD, _OFFSET_SECOND_ARGUMENT),
        _instruction(_JUMP_IF_EQUAL, _WORLD_READABLE, if_not=1),
        _instruction(_RETURN, _RETURN_ERRNO_0),
        _instruction(_RETURN, _RETURN_ALLOW),
    ]


def _instruction(code: int, value: int, if_not: int = 0) -> bytes:
    """Return a `struct sock_filter`; a jump skips `if_not` instructions where the values differ."""
    return struct.pack("HBBI", code, 0, if_not, value)


def raise_limits() -> None:
    """Raise the stack to what server 2.51 needs, and open files to all that this user may have.

    That server never closes some connections that its clients reset, about one in a thousand.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    soft = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _run_as_batch() -> None:
    """Run this process's threads as batch threads: one that wakes up waits for a free core.

    A response wakes several threads on its way. Each could push a thread of the engine off its core, and the engine's
    other threads would wait for that one.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:
        print(f"no batch scheduling: {error.strerror}", file=sys.stderr)


if __name__ == "__main__":
    main()
