"""Phases `shared_memory` and `disk`: machines with too little of either. Needs root, else it is skipped.

Others see only a new directory: shared memory is small in a mount namespace of the server's own.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.campaign.course import Course
from tests.campaign.house import HouseError
from tests.campaign.killing import kill
from tests.campaign.load import Load, Sender

_DOCKER_MIB = 64  # what a container has when nobody says otherwise
_TINY_MIB = 4
_DISK_MIB = 64
_LONG_PROMPT = 4_000  # tokens
_NUM_AT_ONCE = 16


class SkippedError(Exception):
    """This machine cannot arrange the phase; the message says why."""


def small_shared_memory(mebibytes: int) -> list[str]:
    """Return what to put in front of a command to give it a /dev/shm of that size. Raises SkippedError."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        raise SkippedError("needs root and `unshare`")
    script = f'mount -t tmpfs -o size={mebibytes}m tmpfs /dev/shm && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode != 0:
        raise SkippedError("no mount namespace may be made here")
    return prefix


@contextmanager
def small_disk(mebibytes: int) -> Iterator[Path]:
    """Make a directory on a file system of that size. Raises SkippedError."""
    path = Path(tempfile.mkdtemp(prefix="bros-disk-", dir="/tmp"))  # short: Unix sockets allow 107 bytes
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(path)]
    try:
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            raise SkippedError("needs root, and the right to mount")
        try:
            yield path
        finally:
            subprocess.run(["umount", "--lazy", str(path)], check=True)
    finally:
        path.rmdir()


async def shared_memory(course: Course) -> None:
    """Long prompts through Docker's default of 64 MiB, and a start with next to nothing."""
    await asyncio.to_thread(course.house.stop)
    course.house.prefix = small_shared_memory(_DOCKER_MIB)
    await asyncio.to_thread(course.house.start)
    client = Sender(course)
    while course.goes_on:
        num = min(_NUM_AT_ONCE, course.num - course.num_done)
        sent = (client.send(course.chance, index, num_prompt=_LONG_PROMPT, max_tokens=8) for index in range(num))
        await asyncio.gather(*sent)
        await course.check_canary(f"with {_DOCKER_MIB} MiB of shared memory")
        course.done(num)
    await client.close()
    await course.check_idle()
    await _try_tiny(course)


async def _try_tiny(course: Course) -> None:
    """With a few MiB a launch serves, or ends and names shared memory; it never hangs and never half works."""
    await asyncio.to_thread(course.house.stop)
    course.house.prefix = small_shared_memory(_TINY_MIB)
    key = f"with_{_TINY_MIB}_mib"
    try:
        await asyncio.to_thread(course.house.start)
    except HouseError as error:
        course.facts[key] = f"does not start: {' '.join(str(error).split())[-200:]}"
        if "shared memory" not in str(error).lower() and "shm" not in str(error).lower():
            course.fault("a start without shared memory does not name it", str(error)[-300:])
        return
    course.facts[key] = "serves"
    await course.check_canary(f"with {_TINY_MIB} MiB of shared memory")


async def disk(course: Course) -> None:
    """Logs, sockets and step file on a disk that is full: it is served all the same, also by another engine."""
    await asyncio.to_thread(course.house.stop)
    with small_disk(_DISK_MIB) as path:
        course.house.environment["TMPDIR"] = str(path)
        course.house.options += ["--log-dir", str(path / "logs"), "--set", f"service.step_file={path / 'steps'}"]
        try:
            await asyncio.to_thread(course.house.start)
            await _fill(course, path)
        finally:
            with suppress(HouseError):
                await asyncio.to_thread(course.house.stop)


async def _fill(course: Course, path: Path) -> None:
    while course.goes_on:
        async with Load(course, num_streams=8) as load:
            await load.see_answers(10)
            filler = path / "filler"
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(1 << 16)):
                    pass
            await load.see_answers(30)
            await course.check_canary("on a full disk")
            await kill(course, "engine")
            filler.unlink()
            await load.see_answers(10)
        course.done()
    await course.check_idle()
