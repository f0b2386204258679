"""Run `pip install` and say what it fetches and how far it is: a line for each package and every few seconds.

Plain lines, in a terminal and elsewhere: pip alone says nothing, or forty lines a package. Standard library only.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable

_FETCH = re.compile(r"\s*(?:Downloading|Using cached) (?:\S*/)?(?P<file>\S+(?:\.whl|\.gz)) \((?P<size>[^)]+)\)")
_PROGRESS = re.compile(r"Progress (?P<done>\d+) of (?P<total>\d+)")
_INSTALL = "Installing collected packages: "
_BETWEEN_S = 5.0  # two lines about one download
_NUM_LAST_WORDS = 20


def main(arguments: list[str]) -> int:
    """Install what the arguments say; return pip's exit code."""
    command = [sys.executable, "-m", "pip", "install", "--no-input", "--progress-bar", "raw", *arguments]
    last_words: deque[str] = deque(maxlen=_NUM_LAST_WORDS)
    started_s = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        assert pip.stdout is not None
        for line in tell(_kept(pip.stdout, last_words), time.monotonic):
            print(f"  {line}", flush=True)
    if pip.returncode:
        print("".join(last_words), end="", file=sys.stderr)
    else:
        print(f"  done after {time.monotonic() - started_s:.0f} s", flush=True)
    return pip.returncode


def tell(lines: Iterable[str], now_s: Callable[[], float]) -> Iterable[str]:
    """Yield the lines worth showing of pip's output, whose progress comes several times a second."""
    name, told_s = "", now_s()
    for line in lines:
        if fetch := _FETCH.match(line):
            name, told_s = _package(fetch["file"]), now_s()
            yield f"{name} ({fetch['size']})"
        elif progress := _PROGRESS.match(line):
            done, total = int(progress["done"]), int(progress["total"])
            if now_s() - told_s >= _BETWEEN_S and total:
                told_s = now_s()
                yield f"{name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB"
        elif line.startswith(_INSTALL):
            yield f"unpacking {line.count(',') + 1} packages"


def _package(file: str) -> str:
    """Return name and version of a wheel or archive: the first two parts of a wheel's name."""
    return "-".join(file.split("-")[:2]).removesuffix(".tar.gz")


def _kept(lines: Iterable[str], last_words: deque[str]) -> Iterable[str]:
    """Yield all lines, and keep the last ones that are more than progress."""
    for line in lines:
        if not _PROGRESS.match(line):
            last_words.append(line)
        yield line


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
