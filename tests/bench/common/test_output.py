"""What a benchmark puts out: a file keeps the results that other commands put there."""

from __future__ import annotations

import json
from pathlib import Path

from bench.common.output import merge_into


def test_a_part_replaces_its_own_keys_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    merge_into(path, {"runs": [1], "prefixes": {"runs": []}})
    merge_into(path, {"runs": [2]})
    assert json.loads(path.read_text()) == {"runs": [2], "prefixes": {"runs": []}}
