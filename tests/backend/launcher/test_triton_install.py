"""The embedded server is found, or one clear line says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.core.errors import ConfigError
from backend.launcher import triton_install
from backend.launcher.triton_install import find_triton


def test_a_checkout_that_the_stubs_cannot_name_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr(triton_install, "REPOSITORY_ROOT", Path("/home/büro/bros"))
    with pytest.raises(ConfigError, match="'/home/büro/bros' has letters outside ASCII"):
        find_triton(None, tmp_path)


def test_each_edit_has_its_one_place_in_the_pinned_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    found = find_triton(None, tmp_path)
    assert found.warnings == []
    assert found.binary.is_relative_to(tmp_path)
