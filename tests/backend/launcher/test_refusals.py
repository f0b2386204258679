"""What `bros-serve` refuses before it starts anything names the option or key to change."""

from __future__ import annotations

import errno
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from backend.core.errors import ConfigError
from backend.launcher import serve
from backend.launcher.endpoints import choose_endpoints
from backend.launcher.serve import check_model, main, own_logs

ELSEWHERE = "192.0.2.1"  # for documents (RFC 5737): no machine has it


@pytest.mark.parametrize(
    ("vllm", "words"),
    [
        ({"python": "/nope"}, "vllm.python: '/nope' is no program"),
        ({"python": __file__}, "is no program"),
        ({"model": "/nope"}, "vllm.model: '/nope' does not exist"),
    ],
)
def test_a_wrong_path_of_vllm_is_named_by_its_key(vllm: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_model({"executor": "vllm", "vllm": vllm})


def test_a_folder_for_logs_that_is_a_file_is_named_by_its_option(tmp_path: Path) -> None:
    with own_logs(tmp_path / "new" / "logs"):
        pass
    (taken := tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"^--log-dir '{taken}': File exists$"), own_logs(taken):
        pass


def test_a_folder_for_logs_has_one_launch_at_a_time(tmp_path: Path) -> None:
    with (
        own_logs(tmp_path),
        pytest.raises(ConfigError, match=f"^--log-dir '{tmp_path}': another bros-serve logs there$"),
        own_logs(tmp_path),
    ):
        pass
    with own_logs(tmp_path):
        pass


def test_an_address_of_another_machine_is_changed_by_host() -> None:
    with pytest.raises(
        ConfigError, match=f"port 0 on {ELSEWHERE}: Cannot assign .*; choose an address .* with --host$"
    ):
        choose_endpoints(ELSEWHERE, {"http": 0, "grpc": 0, "metrics": 0})


@pytest.mark.parametrize(("number", "is_full"), [(errno.ENOSPC, True), (errno.EFBIG, True), (errno.ENOENT, False)])
def test_only_a_full_disk_points_to_temporary_files(
    number: int, is_full: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_options: Namespace, _console: object) -> None:
        raise OSError(number, "words", "file")

    monkeypatch.setattr(serve, "serve", fail)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 1
    assert ("temporary files go to TMPDIR" in capsys.readouterr().err) == is_full
