"""What `confine.py` sets before it becomes Triton."""

import resource
import subprocess
import sys

from backend.launcher import confine

_PRINT = "import resource as r; print(r.getrlimit(r.RLIMIT_NOFILE), r.getrlimit(r.RLIMIT_STACK)[0])"


def test_the_server_may_open_as_many_files_as_its_user() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    command = ["sh", "-c", 'ulimit -Sn 256 && exec "$@"', "sh", sys.executable, confine.__file__, sys.executable, "-c"]
    result = subprocess.run([*command, _PRINT], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [f"({hard},", f"{hard})", str(confine.STACK_BYTES)]
