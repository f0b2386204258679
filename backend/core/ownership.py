"""Whose a file is: what another user put under a name that this one can be told in advance is neither written nor read.

Root may do all that it likes anyway. So what belongs to root counts as this user's own, and so does a link of either.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path


def is_foreign(path: str | Path) -> bool:
    """Return whether another user owns what stands at `path`: a link there, or what it leads to. False: nothing."""
    return any(owner not in (os.getuid(), 0) for owner in _owners(path))


def own(path: str, flags: int) -> int:
    """Open a file for `open(…, opener=own)`. Raises PermissionError where another user owns it, and leaves it as it is.

    A link of another user is not followed, also where it comes between the look and the opening.
    """
    if is_foreign(path):
        raise _foreign(path)
    no_follow = 0 if os.path.islink(path) else os.O_NOFOLLOW
    descriptor = os.open(path, (flags & ~os.O_TRUNC) | no_follow | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_uid not in (os.getuid(), 0):
            raise _foreign(path)
        if flags & os.O_TRUNC and os.path.isfile(path):
            os.ftruncate(descriptor, 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def make_own_folder(path: Path) -> None:
    """Make a private folder where there is none. Raises PermissionError where another user owns it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if is_foreign(path):
        raise _foreign(path)


def _owners(path: str | Path) -> list[int]:
    owners = []
    for look in (os.lstat, os.stat):
        try:
            owners.append(look(path).st_uid)
        except (FileNotFoundError, NotADirectoryError):
            break
    return owners


def _foreign(path: str | Path) -> PermissionError:
    return PermissionError(errno.EPERM, "belongs to another user", str(path))
